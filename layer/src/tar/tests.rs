//! The scanner against archives made by hand, byte for byte. `tests/tools.rs` has those of real tools.

use proptest::prelude::*;

use super::*;

/// A header block: what a test does not set is empty.
#[derive(Clone)]
struct Block([u8; BLOCK]);

impl Block {
    fn new(name: &str, flag: u8, size: u64) -> Self {
        Self([0; BLOCK])
            .set(0, name.as_bytes())
            .set(100, b"0000644\0")
            .set(108, b"0001750\0")
            .set(116, b"0000062\0")
            .set(124, format!("{size:011o}\0").as_bytes())
            .set(136, b"00000000011\0")
            .set(156, &[flag])
            .set(257, b"ustar\x0000")
    }

    fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn gnu(self) -> Self {
        self.set(257, b"ustar  \0")
    }

    /// With its checksum, and a body padded to whole blocks.
    fn with(self, body: &[u8]) -> Vec<u8> {
        let header = self.set(148, b"        ");
        let sum: u32 = header.0.iter().map(|byte| u32::from(*byte)).sum();
        let header = header.set(148, format!("{sum:06o}\0 ").as_bytes());
        [&header.0[..], body, &vec![0; padding(body.len() as u64) as usize]].concat()
    }
}

fn file(name: &str, body: &[u8]) -> Vec<u8> {
    Block::new(name, b'0', body.len() as u64).with(body)
}

/// Keys and values of PAX records.
type Pairs<'a> = &'a [(&'a str, &'a [u8])];

fn records(records: Pairs<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let bare = key.len() + value.len() + 3;
        let len = (bare..).find(|len| bare + len.to_string().len() == *len).unwrap();
        body.extend([format!("{len} {key}=").as_bytes(), value, b"\n"].concat());
    }
    body
}

fn pax(pairs: Pairs<'_>) -> Vec<u8> {
    let body = records(pairs);
    Block::new("PaxHeaders/x", b'x', body.len() as u64).with(&body)
}

const END: [u8; 1024] = [0; 1024];

fn scan_with(limits: Limits, parts: &[&[u8]]) -> Result<Toc, TarError> {
    let mut scanner = Scanner::new(limits);
    for part in parts {
        scanner.push(part)?;
    }
    scanner.finish()
}

fn scan(parts: &[&[u8]]) -> Result<Toc, TarError> {
    scan_with(Limits::default(), parts)
}

/// The only entry of an archive of these parts.
fn one(parts: &[&[u8]]) -> Entry<'static> {
    let mut entries = entries(&[parts, &[&END]].concat());
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn entries(parts: &[&[u8]]) -> Vec<Entry<'static>> {
    Box::leak(Box::new(scan(parts).unwrap())).entries().collect()
}

fn fails(parts: &[&[u8]]) -> TarError {
    scan(parts).unwrap_err()
}

fn extents(entry: &Entry<'_>) -> (u64, Vec<(u64, u64, u64)>) {
    match &entry.kind {
        Kind::File { size, extents } => {
            (*size, extents.iter().map(|extent| (extent.logical, extent.offset, extent.len)).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn plain_headers_are_read() {
    let entry = one(&[&file("etc/passwd", b"hello")]);
    assert_eq!(entry.path, &b"etc/passwd"[..]);
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o644, 1000, 50, Time { secs: 9, nanos: 0 }));
    assert_eq!(extents(&entry), (5, vec![(0, 512, 5)]));
    assert_eq!(extents(&one(&[&file("empty", b"")])), (0, vec![]));
    let long = Block::new("name", b'0', 0).set(345, b"some/prefix");
    assert_eq!(one(&[&long.with(b"")]).path, &b"some/prefix/name"[..]);
    let star = Block::new("name", b'0', 0).set(345, &[b'p'; 131]).set(476, b"0\0").set(508, b"tar\0");
    assert_eq!(one(&[&star.with(b"")]).path, [&[b'p'; 131][..], b"/name"].concat());
    // The GNU format has times there; a prefix only where they make no sense (Go before 1.8).
    let gnu = Block::new("name", b'0', 0).gnu();
    assert_eq!(one(&[&gnu.clone().set(345, b"00000000011\0").with(b"")]).path, &b"name"[..]);
    assert_eq!(one(&[&gnu.set(345, b"prefix").with(b"")]).path, &b"prefix/name"[..]);
    let v7 = Block::new("name", b'0', 0).set(257, &[0; 8]).set(345, b"prefix");
    assert_eq!(one(&[&v7.with(b"")]).path, &b"name"[..]);
}

#[test]
fn every_type_is_told() {
    let kind = |flag, name: &str| {
        let block = Block::new(name, flag, 0).set(157, b"target").set(329, b"0000012\0").set(337, b"0000377\0");
        one(&[&block.with(b"")]).kind
    };
    let file = Kind::File { size: 0, extents: [][..].into() };
    assert_eq!((kind(b'0', "a"), kind(0, "a"), kind(b'0', "a/")), (file.clone(), file.clone(), file));
    assert_eq!((kind(b'5', "a"), kind(0, "a/")), (Kind::Dir, Kind::Dir));
    assert_eq!(kind(b'1', "a"), Kind::Hardlink(b"target".into()));
    assert_eq!(kind(b'2', "a"), Kind::Symlink(b"target".into()));
    assert_eq!(kind(b'3', "a"), Kind::Char { major: 10, minor: 255 });
    assert_eq!(kind(b'4', "a"), Kind::Block { major: 10, minor: 255 });
    assert_eq!(kind(b'6', "a"), Kind::Fifo);
    for flag in [b'7', b'V', b'M', b'D', b'?', 0xff] {
        let error = fails(&[&Block::new("a", flag, 0).with(b"")]);
        assert_eq!(error, TarError::UnknownType { path: "a".into(), flag });
    }
}

#[test]
fn types_without_a_body_have_none_whatever_their_size() {
    for flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let toc = scan(&[&Block::new("a", flag, 5000).with(b""), &file("b", b"x"), &END]).unwrap();
        assert_eq!(toc.count(), 2, "{flag}");
    }
    let toc = scan(&[&Block::new("dir/", 0, 5000).with(b""), &file("b", b"x"), &END]).unwrap();
    assert_eq!(toc.entries().next().unwrap().kind, Kind::Dir);
}

#[test]
fn numbers_are_read_in_every_form() {
    assert_eq!(header::numeric(b"0000644\0"), Some(0o644));
    assert_eq!(header::numeric(b"   644  "), Some(0o644));
    assert_eq!(header::numeric(b"\0\x00 17 \0"), Some(0o17));
    assert_eq!(header::numeric(b"12\x0077\0"), Some(0o12));
    assert_eq!(header::numeric(b""), Some(0));
    assert_eq!(header::numeric(b"\0\0 \0"), Some(0));
    for bad in [&b"8"[..], b"-1", b"+1", b"1 1", b"0x1", b"7777777777777777777777"] {
        assert_eq!(header::numeric(bad), None, "{bad:?}");
    }
    assert_eq!(header::numeric(b"\x80\0\0\0\0\0\x01\x02"), Some(0x102));
    assert_eq!(header::numeric(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
    assert_eq!(header::numeric(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), Some(i64::MAX));
    assert_eq!(header::numeric(b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0"), Some(i64::MIN));
    assert_eq!(header::numeric(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
    assert_eq!(header::numeric(b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), None);
    let entry = one(&[&Block::new("a", b'0', 0).set(108, b"\xff\xff\xff\xff\xff\xff\xff\xff").with(b"")]);
    assert_eq!(entry.uid, u32::MAX);
}

#[test]
fn both_checksums_count_and_others_do_not() {
    let name = "\u{e9}t\u{e9}";
    let unsigned = file(name, b"");
    let mut signed = unsigned.clone();
    let high = unsigned[..512].iter().filter(|byte| **byte > 127).count() as u32;
    let sum = u32::from_str_radix(std::str::from_utf8(&unsigned[148..154]).unwrap(), 8).unwrap();
    signed[148..154].copy_from_slice(format!("{:06o}", sum - 256 * high).as_bytes());
    assert_eq!(scan(&[&unsigned]).unwrap(), scan(&[&signed]).unwrap());
    signed[149] ^= 1;
    assert_eq!(fails(&[&signed]), TarError::NotAHeader { offset: 0 });
    assert_eq!(fails(&[&file("a", b"x"), &[1; 512]]), TarError::NotAHeader { offset: 1024 });
}

#[test]
fn the_end_may_be_marked_or_not() {
    let a = file("a", b"hello");
    for end in [&END[..], &END[..512], &[], &[END.to_vec(), b"any\0thing".to_vec()].concat()] {
        let toc = scan(&[&a, end]).unwrap();
        assert_eq!((toc.count(), toc.size()), (1, 1024 + end.len() as u64));
    }
    // The last padding may be missing, in part or altogether.
    assert_eq!(scan(&[&a[..517]]).unwrap().count(), 1);
    assert_eq!(scan(&[&a[..600]]).unwrap().size(), 600);
    assert_eq!(scan(&[]).unwrap(), Toc::default());
    assert_eq!(fails(&[&a[..516]]), TarError::Truncated { path: "a".into(), missing: 1 });
    assert_eq!(fails(&[&a, &a[..511]]), TarError::TruncatedHeader { offset: 1024 });
    assert_eq!(fails(&[&a, &END[..513]]), TarError::TruncatedHeader { offset: 1536 });
    assert_eq!(fails(&[&END[..512], &a]), TarError::StrayZeros { offset: 0 });
}

#[test]
fn gnu_long_names_and_links_apply_to_the_next_member() {
    let (name, link) = ("n".repeat(300), "l".repeat(700));
    let long = |flag, text: &str| {
        Block::new("././@LongLink", flag, text.len() as u64 + 1).gnu().with(format!("{text}\0").as_bytes())
    };
    let entry = one(&[&long(b'L', &name), &long(b'K', &link), &Block::new("short", b'2', 0).gnu().with(b"")]);
    assert_eq!((entry.path, entry.kind), (name.as_bytes().into(), Kind::Symlink(link.as_bytes().into())));
    let entries = entries(&[&long(b'L', &name), &file("a", b""), &file("b", b"")]);
    assert_eq!(*entries[1].path, *b"b");
    // The trailing slash of the long name makes the directory.
    assert_eq!(one(&[&long(b'L', "dir/"), &Block::new("x", 0, 0).with(b"")]).kind, Kind::Dir);
    assert_eq!(scan(&[&long(b'L', &name)]).unwrap().count(), 0, "at the end it says nothing");
}

#[test]
fn pax_records_override_the_header() {
    let long = "d/".repeat(200);
    let header = pax(&[
        ("path", long.as_bytes()),
        ("linkpath", b"\xff\xfe"),
        ("uid", b"4000000000"),
        ("gid", b"-1"),
        ("mtime", b"-1.25"),
        ("SCHILY.xattr.user.a", b"1\n\0=2"),
        ("SCHILY.xattr.user.b", b""),
        ("SCHILY.xattr.user.a", b"last"),
        ("comment", b"any"),
    ]);
    let entry = one(&[&header, &Block::new("x", b'2', 0).with(b"")]);
    assert_eq!((entry.path, entry.kind), (long.as_bytes().into(), Kind::Symlink(b"\xff\xfe".into())));
    assert_eq!((entry.uid, entry.gid), (4_000_000_000, u32::MAX));
    assert_eq!(entry.mtime, Time { secs: -2, nanos: 750_000_000 });
    let xattrs = [("user.b", &b""[..]), ("user.a", b"last")].map(|(name, value)| (name.into(), value.to_vec()));
    assert_eq!(entry.xattrs, xattrs);
    let entry = one(&[&pax(&[("size", b"3")]), &Block::new("x", b'0', 0).with(b"abc")]);
    assert_eq!(extents(&entry), (3, vec![(0, 1536, 3)]));
    // An empty value is none, and only the last header of its kind counts.
    let entry = one(&[&pax(&[("path", b"a"), ("path", b"")]), &file("x", b"")]);
    assert_eq!(entry.path, &b"x"[..]);
    let entry = one(&[&pax(&[("path", b"a")]), &pax(&[("uid", b"7")]), &file("x", b"")]);
    assert_eq!((&entry.path[..], entry.uid), (&b"x"[..], 7));
}

#[test]
fn pax_times_are_read_to_the_nanosecond() {
    let time = |text: &[u8]| one(&[&pax(&[("mtime", text)]), &file("x", b"")]).mtime;
    for (text, secs, nanos) in [
        (&b"1350244992.023960108"[..], 1_350_244_992, 23_960_108),
        (b"1350244992.02396010899", 1_350_244_992, 23_960_108),
        (b"1350244992.3", 1_350_244_992, 300_000_000),
        (b"1350244992.", 1_350_244_992, 0),
        (b"+5", 5, 0),
        (b"-1.000000001", -2, 999_999_999),
        (b"-0.5", -1, 500_000_000),
        (b"-9223372036854775808.1", i64::MIN, 900_000_000),
    ] {
        assert_eq!(time(text), Time { secs, nanos }, "{}", text.escape_ascii());
    }
    for text in [&b".5"[..], b"1.-5", b"1.5x", b"x", b"9223372036854775808", b"1e3"] {
        for key in ["mtime", "atime", "ctime"] {
            let error = fails(&[&pax(&[(key, text)]), &file("x", b"")]);
            assert!(matches!(error, TarError::Pax { offset: 1024, fault: PaxFault::Value(_), .. }), "{error}");
        }
    }
}

#[test]
fn malformed_pax_headers_are_errors() {
    for flag in [b'x', b'g'] {
        let fault = |body: &[u8]| match fails(&[&Block::new("h", flag, body.len() as u64).with(body)]) {
            TarError::Pax { offset: 0, path, fault } if path == "h" => fault,
            other => panic!("{other}"),
        };
        for body in [
            "5 a=\n\n",
            "6 k=1",
            "7 k=1\n",
            "6k=1\n",
            "x k=1\n",
            "-6 k=1\n",
            "4 =\n",
            "6 =vv\n",
            "6 kvv\n",
            "99999999999999999999 k=1\n",
        ] {
            assert_eq!(fault(body.as_bytes()), PaxFault::Record, "{body}");
        }
        assert_eq!(fault(b"9 path=\0\n"), PaxFault::Nul);
        assert_eq!(fault(b"7 k\0=1\n"), PaxFault::Nul);
        assert_eq!(fault(&records(&[("GNU.sparse.numbytes", b"1")])), PaxFault::SparseOrder);
        assert_eq!(fault(&records(&[("GNU.sparse.offset", b"1,2")])), PaxFault::SparseOrder);
    }
    let error = fails(&[&pax(&[("uid", b"root")]), &file("x", b"")]);
    assert_eq!(error, TarError::Pax { offset: 1024, path: "x".into(), fault: PaxFault::Value("uid") });
}

#[test]
fn global_headers_are_read_and_not_applied() {
    let body = records(&[("path", b"global"), ("uid", b"7")]);
    let global = Block::new("pax_global_header", b'g', body.len() as u64).with(&body);
    let entry = one(&[&global, &file("x", b"")]);
    assert_eq!((&entry.path[..], entry.uid), (&b"x"[..], 1000));
    // It is a member of its own: a local header in front of it is spent on it.
    assert_eq!(one(&[&pax(&[("path", b"local")]), &global, &file("x", b"")]).path, &b"x"[..]);
}

/// A PAX sparse member: records, then a plain header with `body`.
fn sparse(records: Pairs<'_>, body: &[u8]) -> Vec<u8> {
    [pax(records), file("GNUSparseFile.0/f", body)].concat()
}

#[test]
fn pax_sparse_maps_of_every_version_say_the_same() {
    let versions: [(Pairs<'_>, &[u8], u64); 4] = [
        (
            &[
                ("GNU.sparse.size", b"1000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"10"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"500"),
                ("GNU.sparse.numbytes", b"3"),
                ("path", b"f"),
            ],
            b"abcde",
            1536,
        ),
        (
            &[
                ("GNU.sparse.size", b"1000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.map", b"10,2,500,3"),
                ("GNU.sparse.name", b"f"),
            ],
            b"abcde",
            1536,
        ),
        (
            &[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.realsize", b"1000"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.map", b"10,2,500,3,1000,0"),
                ("GNU.sparse.name", b"f"),
            ],
            b"abcde",
            1536,
        ),
        (
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"1000"),
                ("GNU.sparse.name", b"f"),
            ],
            &[&b"2\n10\n2\n500\n3\n"[..], &[0; 499], b"abcde"].concat(),
            2048,
        ),
    ];
    for (records, body, data) in versions {
        let entry = one(&[&sparse(records, body)]);
        assert_eq!(entry.path, &b"f"[..]);
        assert_eq!(extents(&entry), (1000, vec![(10, data, 2), (500, data + 2, 3)]));
    }
    // A version that Go does not know is a plain file.
    let entry = one(&[&sparse(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], b"abc")]);
    assert_eq!(extents(&entry), (3, vec![(0, 1536, 3)]));
    // Nothing but a hole; and regions that touch are one.
    let map = |map: &[u8], count: &[u8], body: &[u8]| {
        let records = [("GNU.sparse.size", &b"9"[..]), ("GNU.sparse.numblocks", count), ("GNU.sparse.map", map)];
        extents(&one(&[&sparse(&records, body)]))
    };
    assert_eq!(map(b"9,0", b"1", b""), (9, vec![]));
    assert_eq!(map(b"0,2,2,3,6,1", b"3", b"abcdef"), (9, vec![(0, 1536, 5), (6, 1541, 1)]));
}

#[test]
fn a_map_in_the_body_may_be_longer_than_a_block() {
    let count = 300;
    let mut map = format!("{count}\n");
    (0..count).for_each(|n| map.push_str(&format!("{}\n1\n", n * 1000)));
    map.push_str(&"\0".repeat(padding(map.len() as u64) as usize));
    let body = [map.as_bytes(), &vec![7; count]].concat();
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"300000")];
    let (size, found) = extents(&one(&[&sparse(&records, &body)]));
    let data = 1536 + map.len() as u64;
    assert_eq!((size, found.len(), found[299]), (300_000, 300, (299_000, data + 299, 1)));
}

fn old_gnu(size: u64, slots: &[(u64, u64)], more: bool) -> Block {
    let block = Block::new("f", b'S', size).gnu().set(483, b"00000001750\0").set(482, &[more.into()]);
    slots.iter().enumerate().fold(block, |block, (slot, pair)| block.set(386 + 24 * slot, &slot_of(*pair)))
}

fn slot_of((offset, len): (u64, u64)) -> Vec<u8> {
    format!("{offset:011o}\0{len:011o}\0").into_bytes()
}

#[test]
fn old_gnu_sparse_files_are_read_with_their_extension_blocks() {
    let entry = one(&[&old_gnu(5, &[(10, 2), (500, 3)], false).with(b"abcde")]);
    assert_eq!(extents(&entry), (1000, vec![(10, 512, 2), (500, 514, 3)]));
    let mut extension: Vec<u8> = (0..21).flat_map(|n| slot_of((600 + 2 * n, 1))).collect();
    extension.resize(512, 0);
    extension[504] = 1;
    let last = [slot_of((1000, 0)), vec![0; 488]].concat();
    let header = old_gnu(25, &[(0, 1), (2, 1), (4, 1), (6, 1)], true).with(b"");
    let entries = entries(&[&header, &extension, &last, &[1; 25], &[0; 487], &file("next", b""), &END]);
    let (size, found) = extents(&entries[0]);
    assert_eq!((size, found.len(), found[24]), (1000, 25, (640, 1536 + 24, 1)));
    assert_eq!(*entries[1].path, *b"next");
    // star uses the same flag with another layout.
    let error = fails(&[&Block::new("f", b'S', 0).with(b"")]);
    assert_eq!(error, TarError::Sparse { path: "f".into(), fault: SparseFault::Format });
    assert_eq!(fails(&[&header, &extension]), TarError::Truncated { path: "f".into(), missing: 25 + 512 });
}

#[test]
fn sparse_maps_that_lie_are_errors() {
    let fault = |parts: &[&[u8]]| match fails(parts) {
        TarError::Sparse { path, fault } if path == "f" => fault,
        other => panic!("{other}"),
    };
    let map = |size: &[u8], map: &[u8], count: &[u8]| {
        let records = [
            ("GNU.sparse.name", &b"f"[..]),
            ("GNU.sparse.size", size),
            ("GNU.sparse.numblocks", count),
            ("GNU.sparse.map", map),
        ];
        fault(&[&sparse(&records, b"abcde")])
    };
    assert_eq!(map(b"9", b"0,6", b"1"), SparseFault::MissingData);
    assert_eq!(map(b"9", b"0,4", b"1"), SparseFault::UnreferencedData);
    assert_eq!(map(b"9", b"0,3,2,2", b"2"), SparseFault::Regions);
    assert_eq!(map(b"9", b"5,2,0,3", b"2"), SparseFault::Regions);
    assert_eq!(map(b"4", b"0,5", b"1"), SparseFault::Regions);
    assert_eq!(map(b"9", b"-1,5", b"1"), SparseFault::Regions);
    assert_eq!(map(b"-9", b"0,5", b"1"), SparseFault::Regions);
    assert_eq!(map(b"9223372036854775807", b"9223372036854775807,5", b"1"), SparseFault::Regions);
    assert_eq!(map(b"9", b"0,5", b"2"), SparseFault::Count);
    assert_eq!(map(b"9", b"0", b"1"), SparseFault::Count);
    assert_eq!(map(b"9", b"0,x", b"1"), SparseFault::Number);
    assert_eq!(map(b"9", b"0,5", b"-1"), SparseFault::Number);
    assert_eq!(map(b"9", b"0,5", b""), SparseFault::Number);
    assert_eq!(map(b"9", b"0,5", b"9223372036854775807"), SparseFault::Count);
    assert_eq!(map(b"nine", b"0,5", b"1"), SparseFault::Number);
    let in_body = |body: &[u8]| {
        let records: [(&str, &[u8]); 3] =
            [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"f")];
        fault(&[&sparse(&records, body)])
    };
    assert_eq!(in_body(b"1\n0\n5\n"), SparseFault::MapTruncated);
    assert_eq!(in_body(&[b'1'; 1024]), SparseFault::MapTruncated);
    assert_eq!(in_body(&[b'\n'; 512]), SparseFault::Number);
    assert_eq!(in_body(&[&b"9223372036854775807\n"[..], &[b'0'; 493]].concat()), SparseFault::TooLong);
    assert_eq!(in_body(&vec![b'1'; 2 << 20]), SparseFault::TooLong);
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,0")];
    assert_eq!(fault(&[&pax(&records), &Block::new("f", b'5', 0).with(b"")]), SparseFault::NotAFile);
    assert_eq!(fault(&[&old_gnu(4, &[(0, 5)], false).with(b"abcd")]), SparseFault::MissingData);
}

#[test]
fn sizes_that_lie_are_errors_that_name_the_member() {
    let negative = Block::new("liar", b'0', 0).set(124, &[0xff; 12]);
    assert_eq!(fails(&[&negative.with(b"")]), TarError::NegativeSize { path: "liar".into(), size: -1 });
    let error = fails(&[&pax(&[("size", b"-5")]), &file("liar", b"")]);
    assert_eq!(error, TarError::NegativeSize { path: "liar".into(), size: -5 });
    let huge = Block::new("liar", b'0', 0).set(124, b"77777777777\0").with(b"");
    assert_eq!(fails(&[&huge]), TarError::Truncated { path: "liar".into(), missing: (8 << 30) - 1 });
    let beyond = pax(&[("size", i64::MAX.to_string().as_bytes())]);
    let error = fails(&[&beyond, &file("liar", b"")]);
    assert_eq!(error, TarError::Limit { path: "liar".into(), limit: 16 << 40, what: LimitKind::FileBytes });
    let overflow = pax(&[("size", b"9223372036854775808")]);
    assert!(matches!(fails(&[&overflow, &file("liar", b"")]), TarError::Pax { fault: PaxFault::Value("size"), .. }));
    let bad = Block::new("liar", b'0', 0).set(124, b"12345678901x");
    assert_eq!(fails(&[&bad.with(b"")]).to_string(), "the size of \"liar\" (header at byte 0) is no number");
    let error = fails(&[&Block::new("h", b'x', 2 << 20).with(b"")]);
    assert_eq!(error, TarError::Limit { path: "h".into(), limit: 1 << 20, what: LimitKind::SpecialBytes });
}

#[test]
fn every_limit_holds() {
    let kind = |limits: Limits, parts: &[&[u8]]| match scan_with(limits, parts) {
        Err(TarError::Limit { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let default = Limits::default();
    let (a, b) = (file("a", b"abc"), file("bcd", b"abc"));
    assert_eq!(kind(Limits { entries: 1, ..default }, &[&a, &b]), LimitKind::Entries);
    assert_eq!(kind(Limits { path_bytes: 2, ..default }, &[&b]), LimitKind::PathBytes);
    let link = Block::new("l", b'2', 0).set(157, b"abc").with(b"");
    assert_eq!(kind(Limits { path_bytes: 2, ..default }, &[&link]), LimitKind::LinkBytes);
    assert_eq!(kind(Limits { file_bytes: 2, ..default }, &[&a]), LimitKind::FileBytes);
    assert_eq!(kind(Limits { memory: 250, ..default }, &[&a, &b]), LimitKind::Memory);
    assert_eq!(kind(Limits { table: 30, ..default }, &[&a, &b]), LimitKind::Memory);
    let xattr = pax(&[("SCHILY.xattr.user.a", b"1")]);
    assert_eq!(kind(Limits { xattr_bytes: 6, ..default }, &[&xattr, &a]), LimitKind::XattrBytes);
    assert_eq!(kind(Limits { special_bytes: 20, ..default }, &[&xattr]), LimitKind::SpecialBytes);
    let long = scan_with(Limits { extents: 1, ..default }, &[&old_gnu(2, &[(0, 1), (2, 1)], false).with(b"ab")]);
    assert!(matches!(long, Err(TarError::Sparse { fault: SparseFault::TooLong, .. })));
    // The exact values are allowed.
    let exact = Limits { entries: 2, path_bytes: 3, file_bytes: 3, ..default };
    assert!(scan_with(exact, &[&a, &b]).is_ok());
}

/// As many files as a table may have, far into a large tar.
#[test]
fn the_largest_table_fits_and_little_more() {
    let extents = [Extent { logical: 0, offset: 1 << 34, len: 5000 }].into();
    let mtime = Time { secs: 1_700_000_000, nanos: 999_999_999 };
    let (path, kind) = (vec![b'p'; 60].into(), Kind::File { size: 5000, extents });
    let file = Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
    let (packed, list) = (Toc::new(1 << 35, [&file]).packed_len(), footprint(&file));
    let Limits { entries, table, memory, .. } = Limits::default();
    for (each, limit) in [(packed, table), (list, memory)] {
        assert!((limit * 4 / 5..=limit).contains(&(each * entries)), "{each}, {limit}");
    }
}

#[test]
fn errors_stick_and_names_in_them_are_short() {
    let mut scanner = Scanner::new(Limits::default());
    let error = scanner.push(&[1; 512]).unwrap_err();
    assert_eq!(scanner.push(&file("a", b"")), Err(error.clone()));
    assert_eq!(scanner.finish(), Err(error));
    let long = [&b"\xff"[..], &[b'n'; 2000]].concat();
    let error = fails(&[&pax(&[("path", &long)]), &Block::new("x", b'7', 0).with(b"")]);
    assert!(error.to_string().len() < 400, "{error}");
}

/// An archive with one of everything.
fn everything() -> Vec<u8> {
    let long = "n/".repeat(150);
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1000")];
    let mut extension: Vec<u8> = (0..3).flat_map(|n| slot_of((600 + 2 * n, 1))).collect();
    extension.resize(512, 0);
    let global = self::records(&[("comment", b"x")]);
    [
        Block::new("global", b'g', global.len() as u64).with(&global),
        Block::new("d", b'5', 0).with(b""),
        pax(&[("path", long.as_bytes()), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"1")]),
        file("x", &[7; 3000]),
        Block::new("L", b'L', 301).gnu().with(&[long.as_bytes(), b"\0"].concat()),
        Block::new("x", b'2', 0).gnu().set(157, b"target").with(b""),
        sparse(&records, &[&b"2\n10\n2\n500\n3\n"[..], &[0; 499], b"abcde"].concat()),
        old_gnu(3, &[], true).with(b""),
        extension,
        vec![1; 3],
        vec![0; 509],
        file("last", b"end"),
        END.to_vec(),
        vec![9; 700],
    ]
    .concat()
}

proptest! {
    #[test]
    fn any_cutting_into_chunks_gives_the_same_table(cuts in proptest::collection::vec(0_usize..14_000, 0..40)) {
        let archive = everything();
        let whole = scan(&[&archive]).unwrap();
        prop_assert_eq!(whole.count(), 6);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % archive.len()).collect();
        cuts.extend([0, archive.len()]);
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &archive[pair[0]..pair[1]]).collect();
        prop_assert_eq!(scan(&parts).unwrap(), whole);
    }

    #[test]
    fn damage_gives_the_same_answer_however_it_is_cut(
        at in 0_usize..14_000, value: u8, len in 0_usize..14_000, chunk in 1_usize..2000,
    ) {
        let mut archive = everything();
        archive.truncate(len);
        if let Some(byte) = archive.get_mut(at) {
            *byte = value;
        }
        let parts: Vec<&[u8]> = archive.chunks(chunk).collect();
        prop_assert_eq!(scan(&parts), scan(&[&archive]));
    }
}

#[test]
fn bytes_one_by_one_give_the_same_table() {
    let archive = everything();
    let parts: Vec<&[u8]> = archive.chunks(1).collect();
    assert_eq!(scan(&parts).unwrap(), scan(&[&archive]).unwrap());
}
