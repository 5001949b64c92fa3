//! What the kernel says of this process.

use std::{fs, sync::LazyLock, time::SystemTime};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

/// When this process began to look, which is when it was started.
static STARTED: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// What a process uses. What the kernel does not tell is 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Bytes of memory that are resident.
    pub resident_bytes: u64,
    /// Its threads.
    pub threads: u64,
    /// Descriptors that are open, and how many may be.
    pub descriptors: silk_model::Use,
    /// Processor time of all its threads.
    pub cpu_seconds: f64,
    /// When it was started, in seconds since 1970.
    pub started: u64,
}

impl Process {
    /// To be called first when the process starts.
    pub fn now() -> Self {
        let started = STARTED.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let status = status();
        let field = |name| field(&status, name);
        // One of them is the list's own.
        let open = fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1));
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            resident_bytes: field("VmRSS:").unwrap_or(0) << 10,
            threads: field("Threads:").unwrap_or(0),
            descriptors: silk_model::Use {
                limit: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
                in_use: open as u64,
            },
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            started,
        }
    }
}

/// Bytes of memory of its own that are resident: no file's.
pub fn memory() -> u64 {
    field(&status(), "RssAnon:").unwrap_or(0) << 10
}

fn status() -> String {
    fs::read_to_string("/proc/self/status").unwrap_or_default()
}

/// proc_pid_status(5): "VmRSS:      1234 kB".
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Takes all the descriptors that this process may have: shells give programs 1024 to begin with, for the sake of select(2), and
/// `mount.open_files` alone are as many.
pub fn take_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // A limit that stays is told by the first call that meets it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_descriptors_are_taken() {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(512), ..limit }).unwrap();
        take_descriptors();
        assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
    }

    #[test]
    fn it_sees_what_it_uses() {
        let before = Process::now();
        let more: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        let after = Process::now();
        assert!(before.threads > 0 && before.resident_bytes > 1 << 20, "{before:?}");
        // Other tests run beside this one.
        assert!(after.descriptors.in_use >= more.len() as u64, "{after:?}");
        assert!(after.descriptors.limit > after.descriptors.in_use, "{after:?}");
        assert!(after.cpu_seconds >= before.cpu_seconds && after.started == before.started);
    }
}
