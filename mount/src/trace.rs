//! What the kernel reads of EROFS mounts, in order, as its own trace events tell (`erofs_readahead` and `erofs_read_folio`).
//!
//! A trace is a buffer of ours in the kernel (an *instance* in tracefs) that takes these events of all EROFS mounts of the
//! machine while it lives. An event is some fifty bytes for up to 128 KiB that are read; who reads does not wait for it.
//! Kernels tell of mounts from files (6.12) only: EROFS over loop devices reads by other ways that have no events.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    ops::Range,
};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, unlinkat},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// What is traced.
const EVENTS: [&str; 2] = ["erofs_readahead", "erofs_read_folio"];

/// KiB of the kernel's buffer on each processor, and on all. By arithmetic, one of 1 MiB takes some 20,000 events; the start of
/// a JVM made 3,200. What is lost is told.
const BUFFER: u64 = 1024;
const BUFFERS: u64 = 8192;

/// Bytes that are taken out at once.
const CHUNK: usize = 64 << 10;

const PAGE: u64 = 4096;

/// The device number of a file system, as [`rustix::fs::major`] and [`rustix::fs::minor`] give it.
pub type Device = (u32, u32);

/// A read that the kernel made of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// The mount.
    pub device: Device,
    /// The file's number in the metadata image.
    pub nid: u64,
    /// Bytes of the file, in whole pages: they may go beyond its end.
    pub bytes: Range<u64>,
}

/// A trace that goes on until this is dropped.
#[derive(Debug)]
pub struct Trace {
    instances: OwnedFd,
    name: String,
    pipe: File,
    /// The beginning of a line.
    rest: Vec<u8>,
}

/// Reads that are taken at once. A start has some thousands (a Python service 3,000); a program that reads a huge file at random has more than
/// can be taken out while it goes on, and the end would never come.
const MOST: usize = 1 << 16;

impl Trace {
    /// Begins to trace. `name` is this trace's alone on the machine: what an earlier process left under it goes. Takes some
    /// milliseconds.
    ///
    /// # Errors
    /// When the kernel has no such events, or lets nobody see them (`lockdown`).
    pub fn start(name: &str) -> io::Result<Self> {
        let instances = instances()?;
        remove(&instances, name)?;
        mkdirat(&instances, name, Mode::RWXU)?;
        let begun = begin(&instances, name);
        match begun {
            Ok(pipe) => Ok(Self { instances, name: name.to_owned(), pipe, rest: Vec::new() }),
            Err(error) => {
                let _ = remove(&instances, name);
                Err(error)
            }
        }
    }

    /// Ends what processes that are gone left under names with this beginning. The kernel keeps an instance that nobody has
    /// open until somebody removes it, and fills it: 248 of them, left by silkds that were stopped or killed, took a quarter of a second
    /// of the start of a Python service with 3,000 reads.
    ///
    /// # Errors
    /// When the kernel has no traces, or lets nobody see them.
    pub fn sweep(prefix: &str) -> io::Result<()> {
        let instances = instances()?;
        for entry in Dir::read_from(&instances)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if !name.starts_with(prefix) {
                continue;
            }
            match remove(&instances, name) {
                Ok(()) => tracing::debug!(name, "a trace that nobody reads was ended"),
                // A living trace has its pipe open.
                Err(error) => tracing::debug!(name, %error, "a trace of the kernel stays"),
            }
        }
        Ok(())
    }

    /// Takes out what was read since the last call, `MOST` and a few more at once, and says whether that is all there was.
    ///
    /// # Errors
    /// What reading says.
    pub fn take(&mut self) -> io::Result<(Vec<Traced>, bool)> {
        let (mut reads, mut all) = (Vec::new(), true);
        let mut chunk = vec![0; CHUNK];
        loop {
            if reads.len() >= MOST {
                return Ok((reads, false));
            }
            match self.pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => self.rest.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            for line in self.rest.drain(..=end).collect::<Vec<_>>().split(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(line);
                all &= !line.contains(" EVENTS]");
                reads.extend(traced(&line));
            }
        }
        Ok((reads, all))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // An instance whose files are open cannot go.
        if let Ok(null) = File::open("/dev/null") {
            self.pipe = null;
        }
        if let Err(error) = remove(&self.instances, &self.name) {
            tracing::warn!(name = self.name, %error, "a trace of the kernel cannot be ended");
        }
    }
}

/// The directory of instances, in a mount of our own: nobody may have mounted one.
fn instances() -> io::Result<OwnedFd> {
    let fs = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    let root = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(openat(&root, "instances", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn remove(instances: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(instances, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn begin(instances: &OwnedFd, name: &str) -> io::Result<File> {
    let open = |file: &str, flags: OFlags| {
        let path = format!("{name}/{file}");
        openat(instances, path, flags | OFlags::CLOEXEC, Mode::empty()).map(File::from)
    };
    // First: what nobody has open is swept.
    let pipe = open("trace_pipe", OFlags::RDONLY | OFlags::NONBLOCK)?;
    // Of the machine: this process may have to do with fewer.
    let processors = Dir::new(open("per_cpu", OFlags::RDONLY | OFlags::DIRECTORY)?)?
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_bytes().starts_with(b"cpu")))
        .count();
    let buffer = BUFFER.min(BUFFERS / processors.max(1) as u64).max(16);
    open("buffer_size_kb", OFlags::WRONLY)?.write_all(buffer.to_string().as_bytes())?;
    for event in EVENTS {
        open(&format!("events/erofs/{event}/enable"), OFlags::WRONLY)?.write_all(b"1")?;
    }
    Ok(pipe)
}

/// What a line tells: `erofs_readahead: dev = (0,46), nid = 173, start = 0 nrpage = 1 raw = 1`, or
/// `erofs_read_folio: dev = (0,47), nid = 50, FILE, index = 0, uptodate = 0 raw = 1` (include/trace/events/erofs.h).
fn traced(line: &str) -> Option<Traced> {
    let (start, pages) = if line.contains(" erofs_readahead: ") {
        (number(line, "start = ")?, number(line, "nrpage = ")?)
    } else if line.contains(" erofs_read_folio: ") && line.contains(" FILE,") {
        (number(line, "index = ")?, 1)
    } else {
        return None;
    };
    let (_, device) = line.split_once("dev = (")?;
    let (major, minor) = device.split_once(')')?.0.split_once(',')?;
    let bytes = start.checked_mul(PAGE)?..start.checked_add(pages)?.checked_mul(PAGE)?;
    Some(Traced { device: (major.parse().ok()?, minor.parse().ok()?), nid: number(line, "nid = ")?, bytes })
}

fn number(line: &str, key: &str) -> Option<u64> {
    let (_, behind) = line.split_once(key)?;
    let end = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
    behind[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_of_reads() {
        let readahead = "   ctr-17069   [001] ..... 31097.901047: erofs_readahead: dev = (0,46), nid = 173, start = 2 nrpage = 32 raw = 1";
        let folio = "  java-17103   [000] ..... 31097.946236: erofs_read_folio: dev = (7,1), nid = 56, FILE, index = 3, uptodate = 0 raw = 1";
        let of = |device, nid, bytes| Some(Traced { device, nid, bytes });
        assert_eq!(traced(readahead), of((0, 46), 173, 2 * PAGE..34 * PAGE));
        assert_eq!(traced(folio), of((7, 1), 56, 3 * PAGE..4 * PAGE));
        for other in
            [&folio.replace("FILE", "DIR"), "CPU:1 [LOST 37 EVENTS]", "", "erofs_readahead: dev = (0", &readahead[..95]]
        {
            assert_eq!(traced(other), None, "{other}");
        }
    }
}
