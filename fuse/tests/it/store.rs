//! Objects in memory, whose reads answer as a test wants.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use rustix::io::Errno;
use silk_fuse::{Config, Object, Reply, Session, Slot, Source, TreeFiles};

use crate::make::{Image, Make};

/// What becomes of reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Answer,
    Keep,
    Fail(Errno),
    Short,
    Drop,
    Panic,
    Block,
}

/// A read that waits.
#[derive(Debug)]
pub struct Kept {
    pub slot: Slot,
    pub offset: u64,
    pub len: u32,
    pub reply: Reply,
}

#[derive(Debug, Default)]
struct State {
    names: HashMap<String, Slot>,
    data: HashMap<Slot, Arc<Vec<u8>>>,
    trees: HashMap<Slot, Arc<TreeFiles>>,
    modes: HashMap<Slot, Mode>,
    kept: Vec<Kept>,
    reads: Vec<(Slot, u64, u32)>,
    blocked: usize,
}

#[derive(Debug, Default)]
pub struct Store {
    state: Mutex<State>,
    changed: Condvar,
}

impl Store {
    pub fn add(&self, name: &str, slot: u32, data: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        state.names.insert(name.to_owned(), Slot(slot));
        state.data.insert(Slot(slot), Arc::new(data));
    }

    pub fn add_tree(&self, name: &str, slot: u32, tree: TreeFiles) {
        let mut state = self.state.lock().unwrap();
        state.names.insert(name.to_owned(), Slot(slot));
        state.trees.insert(Slot(slot), Arc::new(tree));
    }

    pub fn remove(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        let slot = state.names.remove(name).unwrap();
        state.data.remove(&slot);
        state.trees.remove(&slot);
    }

    pub fn set(&self, slot: u32, mode: Mode) {
        self.state.lock().unwrap().modes.insert(Slot(slot), mode);
        self.changed.notify_all();
    }

    /// The reads that wait, once there are so many.
    pub fn kept(&self, count: usize) -> Vec<Kept> {
        std::mem::take(&mut self.until(|s| s.kept.len() >= count).kept)
    }

    /// Waits until so many workers are blocked.
    pub fn blocked(&self, count: usize) {
        drop(self.until(|s| s.blocked >= count));
    }

    /// Long enough for any machine; a test that waits in vain fails.
    fn until(&self, holds: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let patience = Duration::from_secs(60);
        let state = self.state.lock().unwrap();
        let (state, late) = self.changed.wait_timeout_while(state, patience, |s| !holds(s)).unwrap();
        assert!(
            !late.timed_out(),
            "it did not come: {} reads wait, {} workers are blocked",
            state.kept.len(),
            state.blocked
        );
        state
    }

    pub fn reads(&self) -> Vec<(Slot, u64, u32)> {
        self.state.lock().unwrap().reads.clone()
    }

    pub fn answer(&self, kept: Kept) {
        let data = self.state.lock().unwrap().data[&kept.slot].clone();
        kept.reply.data(&data[kept.offset as usize..][..kept.len as usize]);
    }
}

impl Source for Store {
    fn find(&self, name: &str) -> Option<Slot> {
        assert_ne!(name, "panic");
        self.state.lock().unwrap().names.get(name).copied()
    }

    fn object(&self, slot: Slot) -> Option<Object> {
        let state = self.state.lock().unwrap();
        let tree = state.trees.get(&slot).map(|tree| Object::Tree(tree.clone()));
        tree.or_else(|| state.data.get(&slot).map(|data| Object::Data { size: data.len() as u64 }))
    }

    fn read(&self, slot: Slot, offset: u64, len: u32, reply: Reply) {
        let mut state = self.state.lock().unwrap();
        state.reads.push((slot, offset, len));
        let mode = state.modes.get(&slot).copied().unwrap_or(Mode::Answer);
        let kept = Kept { slot, offset, len, reply };
        match mode {
            Mode::Answer => {
                drop(state);
                self.answer(kept);
            }
            Mode::Keep => {
                state.kept.push(kept);
                self.changed.notify_all();
            }
            Mode::Block => {
                state.blocked += 1;
                self.changed.notify_all();
                let blocked = |s: &mut State| s.modes[&kept.slot] == Mode::Block;
                let limit = Duration::from_secs(60);
                let (state, waited) = self.changed.wait_timeout_while(state, limit, blocked).unwrap();
                assert!(!waited.timed_out(), "nobody else served");
                drop(state);
                self.answer(kept);
            }
            Mode::Fail(error) => kept.reply.error(error),
            Mode::Short => kept.reply.data(&vec![1; len as usize - 1]),
            Mode::Drop => {}
            Mode::Panic => {
                drop(state);
                panic!("a source that panics");
            }
        }
    }
}

/// A mounted store in a directory of its own.
pub struct Served {
    pub store: Arc<Store>,
    pub session: Option<Session>,
    pub at: PathBuf,
    pub dir: tempfile::TempDir,
}

impl Served {
    pub fn new() -> Self {
        Self::with(Config { workers: 2, ..Config::default() })
    }

    pub fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::default());
        let at = dir.path().join("fuse");
        let session = Session::mount(&at, store.clone(), config).unwrap();
        Self { store, session: Some(session), at, dir }
    }

    /// Adds the data files of an image as `data-<slot>`, slots from `first` on. Returns where they are.
    pub fn serve(&self, image: &Image, make: &Make, first: u32) -> Vec<PathBuf> {
        let add = |(slot, source): (u32, &silk_layer::tree::Source)| {
            let mut data = make.data(*source);
            data.resize(data.len().next_multiple_of(4096), 0);
            self.store.add(&format!("data-{slot}"), slot, data);
            self.at.join(format!("data-{slot}"))
        };
        (first..).zip(&image.sources).map(add).collect()
    }

    /// Adds the tree of an image as `tree-<slot>`, and its data files in the slots behind. Returns where it is.
    pub fn serve_tree(&self, image: &Image, make: &Make, slot: u32) -> PathBuf {
        self.serve(image, make, slot + 1);
        let devices = (0..image.sources.len() as u32).map(|nr| Slot(slot + 1 + nr)).collect();
        let tree = TreeFiles::open(File::open(&image.path).unwrap(), devices).unwrap();
        self.store.add_tree(&format!("tree-{slot}"), slot, tree);
        self.at.join(format!("tree-{slot}"))
    }

    pub fn session(&self) -> &Session {
        self.session.as_ref().unwrap()
    }
}
