//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)), as far as it tells what is mounted below a directory.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// Of which type.
    pub fs_type: Vec<u8>,
    /// From what, as it stands there.
    source: Vec<u8>,
}

impl Mounted {
    /// Is it mounted from a loop device, and not from a file?
    pub(crate) fn is_from_loop(&self) -> bool {
        self.source.starts_with(b"/dev/loop")
    }
}

/// What is mounted below `dir`, which must be free of symbolic links; innermost last.
pub(crate) fn below(dir: &Path) -> io::Result<Vec<Mounted>> {
    let mut mounts = parse(&fs::read("/proc/self/mountinfo")?);
    mounts.retain(|m| m.point.starts_with(dir) && m.point != dir);
    Ok(mounts)
}

/// Lines that do not have the form are left out.
fn parse(text: &[u8]) -> Vec<Mounted> {
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`: the fifth field, and the first two behind the dash.
fn line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|b| *b == b' ');
    let point = fields.nth(4)?;
    let mut behind = fields.skip_while(|f| *f != b"-").skip(1);
    let (fs_type, source) = (behind.next()?.to_vec(), behind.next().unwrap_or_default().to_vec());
    Some(Mounted { point: OsString::from_vec(unescape(point)).into(), fs_type, source })
}

/// Space, tab, newline and backslash stand as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|code| *first == b'\\' && code.iter().all(|c| (b'0'..=b'7').contains(c)));
        match code {
            Some(code) => {
                out.push(code.iter().fold(0u8, |n, c| n << 3 | (c - b'0')));
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let text = b"36 35 98:0 / / rw - ext4 /dev/root rw\n\
            40 36 0:33 / /a\\040b\\134c\\011\\012/mnt/x ro,relatime shared:1 master:2 - erofs /img ro,user_xattr\n\
            41 36 0:34 / /odd\\9 rw - tmpfs - rw\nnonsense\n";
        let point = |path: &str| PathBuf::from(path);
        let mounts = parse(text);
        assert_eq!(
            mounts.iter().map(|m| m.point.clone()).collect::<Vec<_>>(),
            [point("/"), point("/a b\\c\t\n/mnt/x"), point("/odd\\9"),]
        );
        assert_eq!(mounts[1].fs_type, b"erofs");
    }

    #[test]
    fn the_table_of_this_process_can_be_read() {
        assert!(below(Path::new("/")).unwrap().iter().any(|m| m.point == Path::new("/proc")));
    }
}
