//! Archives made by GNU tar and by Python's `tarfile`, read by the scanner and by Python's reader: both must find the
//! same members at the same places, and our extents must hold the files' bytes. Needs `tar` and `python3`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
};

use silk_layer::{
    tar::{Limits, Scanner},
    toc::{Entry, Kind, Toc, decode, encode},
};
use tempfile::TempDir;

/// Prints what Python finds: a line a member.
const LIST: &str = r#"
import sys, tarfile
for m in tarfile.open(sys.argv[1], "r:", errors="surrogateescape"):
    kind = {b"0": "file", b"\0": "file", b"1": "hard", b"2": "sym", b"5": "dir", b"6": "fifo", b"S": "file"}[m.type]
    name = m.name.encode("utf-8", "surrogateescape").hex()
    link = m.linkname.encode("utf-8", "surrogateescape").hex() if kind in ("hard", "sym") else ""
    data = -1
    if kind == "file":
        parts = m.sparse if m.sparse is not None else [(0, m.size)]
        at, data = m.offset_data, []
        for offset, length in parts:
            if length:
                data.append(f"{offset}+{length}@{at}")
                at += length
        data = f"{m.size}:" + ",".join(data)
    print(name, kind, oct(m.mode & 0o7777), m.uid, m.gid, int(m.mtime // 1), data, "/" + link)
"#;

fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C.UTF-8").output().expect("the tool is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn scan(tar: &[u8]) -> Toc {
    let mut scanner = Scanner::new(Limits::default());
    for chunk in tar.chunks(60_001) {
        scanner.push(chunk).unwrap();
    }
    let toc = scanner.finish().unwrap();
    assert_eq!(decode(&encode(&toc)).unwrap(), toc);
    toc
}

/// A member in the form of [`LIST`].
fn line(entry: &Entry<'_>) -> String {
    let (kind, data, link) = match &entry.kind {
        Kind::File { size, extents } => {
            let parts: Vec<String> =
                extents.iter().map(|extent| format!("{}+{}@{}", extent.logical, extent.len, extent.offset)).collect();
            ("file", format!("{size}:{}", parts.join(",")), String::new())
        }
        Kind::Dir => ("dir", "-1".into(), String::new()),
        Kind::Symlink(target) => ("sym", "-1".into(), hex(target)),
        Kind::Hardlink(target) => ("hard", "-1".into(), hex(target)),
        Kind::Fifo => ("fifo", "-1".into(), String::new()),
        other => panic!("{other:?}"),
    };
    // Python takes trailing slashes off.
    let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
    let (mode, uid, gid, secs) = (entry.mode, entry.uid, entry.gid, entry.mtime.secs);
    format!("{} {kind} 0o{mode:o} {uid} {gid} {secs} {data} /{link}", hex(path))
}

fn assert_read_alike(tar: &Path) -> Toc {
    let toc = scan(&fs::read(tar).unwrap());
    let ours: Vec<String> = toc.entries().map(|entry| line(&entry)).collect();
    let theirs = run(Command::new("python3").arg("-c").arg(LIST).arg(tar));
    assert_eq!(ours, theirs.lines().collect::<Vec<_>>(), "{}", tar.display());
    toc
}

/// Directories, files of many sizes, names and links long and strange, a hard link, a sparse file.
fn make_tree(root: &Path, long: bool) {
    let dir = root.join("dir");
    fs::create_dir_all(&dir).unwrap();
    for size in [0_usize, 1, 511, 512, 513, 70_000] {
        let content: Vec<u8> = (0..size).map(|n| (n * 7 + size) as u8).collect();
        fs::write(dir.join(format!("file-{size}")), content).unwrap();
    }
    fs::hard_link(dir.join("file-513"), root.join("hard")).unwrap();
    symlink("dir/file-1", root.join("link")).unwrap();
    if long {
        let deep = root.join("a long component of a path/".repeat(12));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("\u{fc}ml\u{e4}ut"), b"deep").unwrap();
        symlink("x/".repeat(200), deep.join("far")).unwrap();
        fs::write(root.join("n".repeat(200)), b"long").unwrap();
        fs::write(root.join("y".repeat(100)), b"exactly").unwrap();
    }
}

fn make_sparse(path: &Path, regions: u64) {
    let mut file = fs::File::create(path).unwrap();
    for region in 0..regions {
        file.seek(SeekFrom::Start(region * 300_000 + 65_536)).unwrap();
        file.write_all(format!("region {region}").as_bytes()).unwrap();
    }
    file.set_len(regions * 300_000 + 12_345).unwrap();
}

/// The bytes that our extents say a file has.
fn content(tar: &[u8], entry: &Entry<'_>) -> Option<Vec<u8>> {
    let Kind::File { size, extents } = &entry.kind else { return None };
    let mut content = vec![0; *size as usize];
    for extent in extents {
        let from = &tar[extent.offset as usize..][..extent.len as usize];
        content[extent.logical as usize..][..from.len()].copy_from_slice(from);
    }
    Some(content)
}

#[test]
fn archives_of_gnu_tar_are_read_as_python_reads_them() {
    let scratch = TempDir::new().unwrap();
    for (format, long) in [("v7", false), ("oldgnu", true), ("gnu", true), ("ustar", false), ("posix", true)] {
        let root = scratch.path().join(format);
        make_tree(&root, long);
        let tar = scratch.path().join(format!("{format}.tar"));
        run(Command::new("tar")
            .args(["--format", format, "--sort=name", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(&root)
            .arg("."));
        let toc = assert_read_alike(&tar);
        let bytes = fs::read(&tar).unwrap();
        let mut files = 0;
        for entry in toc.entries() {
            if let Some(content) = content(&bytes, &entry) {
                let path = root.join(std::str::from_utf8(&entry.path).unwrap());
                assert!(content == fs::read(&path).unwrap(), "{}", path.display());
                files += 1;
            }
        }
        assert_eq!(files, if long { 9 } else { 6 }, "{format}");
    }
}

#[test]
fn sparse_files_of_gnu_tar_are_read_in_every_version() {
    let scratch = TempDir::new().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    for (name, regions) in [("none", 0), ("one", 1), ("four", 4), ("many", 90)] {
        make_sparse(&root.join(name), regions);
    }
    fs::write(root.join("z-plain"), b"plain").unwrap();
    for (format, version) in [("gnu", "1.0"), ("oldgnu", "1.0"), ("posix", "0.0"), ("posix", "0.1"), ("posix", "1.0")] {
        let tar = scratch.path().join(format!("{format}-{version}.tar"));
        let mut command = Command::new("tar");
        command.args(["--format", format, "--sparse", "--sparse-version", version, "--sort=name", "-cf"]);
        run(command.arg(&tar).arg("-C").arg(&root).arg("."));
        let toc = assert_read_alike(&tar);
        let bytes = fs::read(&tar).unwrap();
        assert!(bytes.len() < 2 << 20, "the archive is sparse");
        for entry in toc.entries() {
            if let Some(content) = content(&bytes, &entry) {
                let path = root.join(std::str::from_utf8(&entry.path).unwrap());
                assert!(content == fs::read(&path).unwrap(), "{format} {version} {}", path.display());
            }
        }
        assert_eq!(toc.count(), 6);
    }
}

#[test]
fn archives_of_python_are_read_as_python_reads_them() {
    /// Members that a file system does not have: huge numbers, times before 1970, names that are no UTF-8.
    const MAKE: &str = r#"
import io, sys, tarfile
formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
form = sys.argv[2]
with tarfile.open(sys.argv[1], "w", format=formats[form], errors="surrogateescape") as t:
    def add(name, kind=tarfile.REGTYPE, body=b"", **fields):
        m = tarfile.TarInfo(name)
        m.type, m.size = kind, len(body)
        for key, value in fields.items():
            setattr(m, key, value)
        t.addfile(m, io.BytesIO(body))
    add("plain", body=b"x" * 1000, mode=0o4755, mtime=1234567890)
    add("dir/", tarfile.DIRTYPE, mode=0o1777)
    add("dir/link", tarfile.SYMTYPE, linkname="../plain")
    add("dir/hard", tarfile.LNKTYPE, linkname="plain")
    add("pipe", tarfile.FIFOTYPE)
    add("latin-\udce9", body=b"y")
    if form != "ustar":
        add("owner", uid=3000000000, gid=2100000000, body=b"z" * 512)
        add("early", mtime=-5)
        add("n/" * 300 + "deep", body=b"deep")
        add("far", tarfile.SYMTYPE, linkname="t/" * 300)
    if form == "pax":
        m = {"mtime": "-1.25", "SCHILY.xattr.user.mime": "text/plain", "comment": "\u00e9"}
        add("exact", body=b"e", pax_headers=m)
"#;
    let scratch = TempDir::new().unwrap();
    for format in ["ustar", "gnu", "pax"] {
        let tar = scratch.path().join(format!("{format}.tar"));
        run(Command::new("python3").arg("-c").arg(MAKE).arg(&tar).arg(format));
        let toc = assert_read_alike(&tar);
        if format == "pax" {
            let exact = toc.entries().last().unwrap();
            assert_eq!((exact.mtime.secs, exact.mtime.nanos), (-2, 750_000_000));
            assert_eq!(exact.xattrs, [(b"user.mime".to_vec(), b"text/plain".to_vec())]);
        }
    }
}
