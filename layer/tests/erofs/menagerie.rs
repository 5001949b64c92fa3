//! Trees that have one of everything, or much of something.

use silk_layer::{
    toc::Time,
    tree::{NodeId, NodeKind},
};

use crate::make::Make;

/// One of everything: kinds, modes, times, attributes, odd names, all shapes of sparse files.
pub fn menagerie() -> Make {
    let mut make = Make::new(1 << 20);
    let etc = make.dir(NodeId(0), b"etc", 0o755);
    let passwd = make.file(etc, b"passwd", 1000, &[(0, 512, 1000)]);
    make.link(etc, b"passwd.hard", passwd);
    make.link(NodeId(0), b"another name", passwd);
    make.node(passwd).mtime = Time { secs: -1, nanos: 999_999_999 };
    make.node(etc).mtime = Time { secs: -2_000_000_000, nanos: 1 };
    make.file(etc, b"empty", 0, &[]);
    let suid = make.file(etc, b"suid", 513, &[(0, 4096, 513)]);
    (make.node(suid).mode, make.node(suid).uid, make.node(suid).gid) = (0o6755, 4_000_000_000, 100_000);
    make.node(suid)
        .xattrs
        .insert(b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    make.node(suid).xattrs.insert(b"user.long".to_vec(), (0..5000u32).map(|n| n as u8).collect());
    make.node(suid).xattrs.insert([b"user.".as_slice(), &[b'x'; 250]].concat(), b"".to_vec());
    make.node(etc).xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
    let odd = make.dir(NodeId(0), &[0xff; 255], 0o1777);
    for name in [b"!".as_slice(), b"+", b"-", b".-", b"...", b"..a", b".hidden", b"0", b"\n", b"\xc3\x28"] {
        make.file(odd, name, 3, &[(0, 1024, 3)]);
    }
    let deep = (0..8).fold(odd, |dir, _| make.dir(dir, &[b'd'; 255], 0o700));
    make.symlink(deep, b"short", b"../x");
    for len in [1, 100, 447, 448, 449, 511, 512, 513, 4095] {
        make.symlink(deep, format!("link{len}").as_bytes(), &vec![b't'; len]);
    }
    make.special(deep, b"null", NodeKind::Char(1, 3));
    make.special(deep, b"whiteout", NodeKind::Char(0, 0));
    make.special(deep, b"disk", NodeKind::Block(259, 70_000));
    make.special(deep, b"pipe", NodeKind::Fifo);
    sparse(&mut make, deep);
    make
}

fn sparse(make: &mut Make, dir: NodeId) {
    make.file(dir, b"hole", 1 << 33, &[]);
    make.file(dir, b"data then hole", 1 << 20, &[(0, 8192, 4096)]);
    make.file(dir, b"hole then data", (1 << 20) + 5, &[(1 << 20, 8192, 5)]);
    make.file(dir, b"odd pieces", 100_000, &[(100, 5000, 777), (40_001, 9999, 3), (99_999, 1, 1)]);
    make.file(
        dir,
        b"aligned pieces",
        1 << 30,
        &[(1 << 16, 512, 65536), (1 << 20, 1 << 17, 1 << 16), (1 << 29, 0, 4096)],
    );
    make.file(dir, b"unaligned whole", 70_000, &[(0, 3, 70_000)]);
    make.file(dir, b"two neighbours", 2048, &[(0, 1024, 512), (512, 1536, 1536)]);
    make.file(dir, b"out of order", 2048, &[(0, 4096, 1024), (1024, 512, 1024)]);
}

/// A hundred thousand names in one directory.
pub fn crowd() -> Make {
    let mut make = Make::new(1 << 16);
    for nr in 0..100_000u64 {
        make.file(
            NodeId(0),
            format!("name-{nr:06}-{}", "x".repeat((nr % 40) as usize)).as_bytes(),
            1,
            &[(0, nr % 128 * 512, 1)],
        );
    }
    make
}
