//! Layers as a store has them, and tars to make them of.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use silk_layer::{
    tar::{Limits, Scanner},
    toc::Toc,
};
use silk_model::{Class, Digest};
use silk_mount::{LayerError, LayerFiles, Mounts, RungChoice, Views};

/// What happens once, just after somebody has read a layer's table of contents.
type AfterToc = (Digest, Box<dyn FnOnce(&Layers) + Send>);

/// Layers in a directory, as a store has them.
pub(crate) struct Layers {
    pub(crate) root: PathBuf,
    _dir: Option<tempfile::TempDir>,
    pub(crate) known: Mutex<HashMap<Digest, (Toc, u64)>>,
    pub(crate) decoded: Mutex<Vec<Digest>>,
    /// Threads that decode, and the most that did at once.
    pub(crate) decoding: [AtomicU32; 2],
    /// What each layer is said to have.
    pub(crate) entries: u64,
    /// Whoever decodes waits until so many did at once, or gives up.
    pub(crate) together: u32,
    pub(crate) after_toc: Mutex<Option<AfterToc>>,
    /// Whether bytes of the layers are missing, and nothing serves them.
    pub(crate) holes: bool,
    /// Whether the files that would serve them cannot be named.
    pub(crate) nameless: bool,
}

impl LayerFiles for Layers {
    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn toc(&self, diff_id: &Digest) -> Result<Toc, LayerError> {
        self.decoded.lock().unwrap().push(*diff_id);
        let [now, most] = &self.decoding;
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // Whoever may decode beside this one has the time to.
        std::thread::sleep(Duration::from_millis(2));
        let deadline = Instant::now() + Duration::from_secs(10);
        while most.load(Ordering::SeqCst) < self.together && Instant::now() < deadline {
            std::thread::yield_now();
        }
        now.fetch_sub(1, Ordering::SeqCst);
        let known = self.known.lock().unwrap().get(diff_id).cloned();
        let (toc, _) = known.ok_or_else(|| LayerError::new(Class::NotFound, io::Error::other("no such layer")))?;
        let after = self.after_toc.lock().unwrap().take_if(|(layer, _)| layer == diff_id);
        if let Some((_, then)) = after {
            then(self);
        }
        Ok(toc)
    }

    fn entries(&self, _: &Digest) -> u64 {
        self.entries
    }

    fn size(&self, diff_id: &Digest) -> Option<u64> {
        self.known.lock().unwrap().get(diff_id).map(|(_, size)| *size)
    }

    fn served(&self, _: &Digest) -> Result<Option<PathBuf>, LayerError> {
        match self.nameless {
            false => Ok(None),
            true => Err(LayerError::new(Class::NoSpace, io::Error::other("no room for a name"))),
        }
    }

    /// Of a layer with holes, the names are here and the end is not.
    fn has(&self, _: &Digest, bytes: &Range<u64>) -> bool {
        !self.holes || bytes.end < u64::MAX
    }

    fn let_go(&self, _: &Digest) {}
}

impl Layers {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut layers = Self::at(dir.path());
        layers._dir = Some(dir);
        layers
    }

    pub(crate) fn at(root: &Path) -> Self {
        let (known, decoded, decoding, after_toc) = Default::default();
        let root = root.to_owned();
        Self {
            root,
            _dir: None,
            known,
            decoded,
            decoding,
            entries: 10,
            together: 0,
            after_toc,
            holes: false,
            nameless: false,
        }
    }

    pub(crate) fn add(&self, tar: &Tar) -> Digest {
        let mut bytes = tar.0.borrow().clone();
        bytes.resize(bytes.len() + 1024, 0);
        let diff_id = Digest::of(&bytes);
        let mut scanner = Scanner::new(Limits::default());
        scanner.push(&bytes).unwrap();
        let toc = scanner.finish().unwrap();
        self.known.lock().unwrap().insert(diff_id, (toc, bytes.len() as u64));
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        fs::create_dir_all(self.layer_path(&diff_id)).unwrap();
        let data = self.layer_path(&diff_id).join("data");
        if !data.exists() {
            fs::write(data.with_extension("new"), bytes).unwrap();
            fs::rename(data.with_extension("new"), data).unwrap();
        }
        diff_id
    }

    pub(crate) fn views(&self, rung: RungChoice) -> Views {
        Views::new(Mounts::open(&self.root, rung, None).unwrap())
    }

    /// An overlay of the chain, shown at a directory of that name.
    pub(crate) fn overlay(&self, views: &Views, chain: &[Digest], name: &str) -> PathBuf {
        let lowers = views.lowers(self, chain).unwrap();
        let [upper, work, merged] = ["upper", "work", "merged"].map(|part| self.root.join(format!("{name}-{part}")));
        for dir in [&upper, &work, &merged] {
            fs::create_dir(dir).unwrap();
        }
        let lowers: Vec<_> = lowers.iter().map(|l| l.to_str().unwrap()).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
        let options = std::ffi::CString::new(options).unwrap();
        mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        merged
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points: Vec<_> = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
        for point in points.iter().rev().filter(|point| point.starts_with(&self.root)) {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

/// A tar in the making: ustar headers, just enough for these tests.
#[derive(Default)]
pub(crate) struct Tar(RefCell<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn member(self, kind: u8, path: &str, (mode, owner): (u32, u32), (link, content): (&str, &str)) -> Self {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, &format!("{owner:07o}"));
        put(116, &format!("{owner:07o}"));
        put(124, &format!("{:011o}", content.len()));
        put(136, &format!("{:011o}", 1_600_000_000));
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut tar = self.0.borrow_mut();
        tar.extend(header);
        tar.extend(content.as_bytes());
        let padded = tar.len().next_multiple_of(512);
        tar.resize(padded, 0);
        drop(tar);
        self
    }

    pub(crate) fn dir(self, path: &str, mode: u32, owner: u32) -> Self {
        self.member(b'5', path, (mode, owner), ("", ""))
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.member(b'0', path, (0o644, 7), ("", content))
    }

    pub(crate) fn hard_link(self, path: &str, to: &str) -> Self {
        self.member(b'1', path, (0o644, 7), (to, ""))
    }
}

pub(crate) const RUNGS: [RungChoice; 2] = [RungChoice::File, RungChoice::Loop];

pub(crate) fn base() -> Tar {
    Tar::new()
        .dir("etc/", 0o750, 42)
        .file("etc/passwd", "root")
        .file("etc/gone", "gone")
        .dir("opt/", 0o755, 0)
        .file("opt/old", "old")
        .file("bin", "busybox")
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
