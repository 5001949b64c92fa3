//! The directories of ordinary snapshots: `<root>/snapshots/<id>/{fs,work}`, made at once and deleted later.
//!
//! What is removed is renamed to `gone-<id>` and deleted by one thread, which looks for such names whenever it is woken:
//! nothing is queued and nothing is lost in a crash.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::SnapshotError;

const GONE: &str = "gone-";
/// What has files of a snapshot that the database never heard of: nothing here touches it again.
const LOST: &str = "lost-";

/// The directories of one root.
#[derive(Debug)]
pub(crate) struct Dirs {
    base: PathBuf,
    turns: Arc<Turns>,
}

/// Rounds of the deleting thread.
#[derive(Debug, Default)]
struct Turns {
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    wanted: u64,
    done: u64,
    stop: bool,
}

impl Dirs {
    /// Makes `<root>/snapshots` and starts the deleting thread.
    pub(crate) fn open(root: &Path) -> Result<Self, SnapshotError> {
        let base = root.join("snapshots");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&base);
        made.map_err(|e| SnapshotError::io("create", &base, e))?;
        let turns = Arc::new(Turns::default());
        let (path, theirs) = (base.clone(), Arc::clone(&turns));
        let spawned = thread::Builder::new().name("silk-remove".into()).spawn(move || delete_in_turns(&path, &theirs));
        spawned.map_err(|e| SnapshotError::io("start the deleting thread for", &base, e))?;
        Ok(Self { base, turns })
    }

    /// Where a snapshot keeps its files.
    pub(crate) fn fs(&self, id: u64) -> PathBuf {
        self.base.join(id.to_string()).join("fs")
    }

    /// Where overlayfs works.
    pub(crate) fn work(&self, id: u64) -> PathBuf {
        self.base.join(id.to_string()).join("work")
    }

    /// Is there a directory of this ID?
    pub(crate) fn is_taken(&self, id: u64) -> bool {
        self.base.join(id.to_string()).symlink_metadata().is_ok()
    }

    /// Makes the directories of a snapshot, where nothing is: what is there is not ours to delete.
    pub(crate) fn make(&self, id: u64, owner: Option<(u32, u32)>, work: bool) -> Result<(), SnapshotError> {
        let dir = self.base.join(id.to_string());
        fs::create_dir(&dir).map_err(|e| SnapshotError::io("create", &dir, e))?;
        let fill = || {
            create(&dir, 0o700)?;
            create(&self.fs(id), 0o755)?;
            if let Some((uid, gid)) = owner {
                let path = self.fs(id);
                lchown(&path, Some(uid), Some(gid)).map_err(|e| SnapshotError::io("change the owner of", &path, e))?;
            }
            if work { create(&self.work(id), 0o711) } else { Ok(()) }
        };
        fill().inspect_err(|_| self.discard_or_warn(id))
    }

    /// Takes a snapshot's directory away at once; its files are deleted later. One that is not there is no error.
    pub(crate) fn discard(&self, id: u64) -> Result<(), SnapshotError> {
        self.bury(&id.to_string())?;
        self.wake();
        Ok(())
    }

    /// As [`Dirs::discard`], where nobody is left to be told.
    pub(crate) fn discard_or_warn(&self, id: u64) {
        if let Err(error) = self.discard(id) {
            tracing::warn!(%error, "a removed snapshot's files stay until silkd starts again");
        }
    }

    /// Buries every directory whose ID `known` does not have. But if no snapshot can have had it, `next_id` being the first such, and it has files, the
    /// database is not the one that it was made with: then it is set aside.
    pub(crate) fn discard_unknown(&self, known: &HashSet<u64>, next_id: u64) -> Result<(), SnapshotError> {
        for name in names(&self.base)? {
            let Some(id) = name.parse::<u64>().ok().filter(|id| !known.contains(id)) else { continue };
            // What a crash left has none.
            if id >= next_id && fs::read_dir(self.fs(id)).is_ok_and(|mut files| files.next().is_some()) {
                let kept = self.rename(&name, LOST)?;
                tracing::error!(
                    path = %self.base.join(kept.unwrap_or(name)).display(),
                    "a snapshot's files are kept that silk.redb does not know: was the database lost, or an older one put back? They can be deleted if nobody misses them"
                );
            } else {
                self.bury(&name)?;
            }
        }
        self.wake();
        Ok(())
    }

    fn bury(&self, name: &str) -> Result<(), SnapshotError> {
        self.rename(name, GONE).map(drop)
    }

    /// Says what it is called now; `None` if it is not there.
    fn rename(&self, name: &str, what: &str) -> Result<Option<String>, SnapshotError> {
        let from = self.base.join(name);
        // The name is taken when an earlier directory of this ID is still being deleted.
        for n in 0..100 {
            let to = format!("{what}{name}-{n}");
            match fs::rename(&from, self.base.join(&to)) {
                Ok(()) => return Ok(Some(to)),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
                Err(e) => return Err(SnapshotError::io("rename", &from, e)),
            }
        }
        Err(SnapshotError::io("rename", &from, ErrorKind::AlreadyExists.into()))
    }

    fn wake(&self) -> u64 {
        let mut count = self.turns.lock();
        count.wanted += 1;
        self.turns.changed.notify_all();
        count.wanted
    }

    /// Waits until what is gone now is deleted, or until `limit` is over; says which. Blocks.
    pub(crate) fn drain(&self, limit: Duration) -> bool {
        let turn = self.wake();
        let count = self.turns.lock();
        let waited = self.turns.changed.wait_timeout_while(count, limit, |c| c.done < turn && !c.stop);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Dirs {
    fn drop(&mut self) {
        self.turns.lock().stop = true;
        self.turns.changed.notify_all();
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn that is not done yet; [`None`] to stop.
    fn next(&self) -> Option<u64> {
        let idle = |c: &mut Count| c.done == c.wanted && !c.stop;
        let count = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        (!count.stop).then_some(count.wanted)
    }
}

fn delete_in_turns(base: &Path, turns: &Turns) {
    let mut removal = Removal { base, next: 0 };
    while let Some(turn) = turns.next() {
        match names(base) {
            Ok(names) => names.iter().filter(|name| name.starts_with(GONE)).for_each(|name| removal.delete(name)),
            Err(error) => tracing::warn!(%error, "removed snapshots' files stay for now"),
        }
        turns.lock().done = turn;
        turns.changed.notify_all();
    }
}

/// Deletes trees without going down into them: containers make them deeper than a stack, a path or the limit of descriptors. A
/// directory in another is renamed to the top first, so that each is emptied and removed there.
struct Removal<'a> {
    base: &'a Path,
    /// Number of the next such directory.
    next: u64,
}

impl Removal<'_> {
    fn delete(&mut self, name: &str) {
        let mut todo = Vec::new();
        self.delete_one(&self.base.join(name), &mut todo);
        while let Some(number) = todo.pop() {
            self.delete_one(&self.risen(number), &mut todo);
        }
    }

    fn risen(&self, number: u64) -> PathBuf {
        self.base.join(format!("{GONE}in-{number}"))
    }

    fn delete_one(&mut self, path: &Path, todo: &mut Vec<u64>) {
        let deleted = path.symlink_metadata().and_then(|meta| match meta.is_dir() {
            true => self.empty(path, todo).and_then(|()| fs::remove_dir(path)),
            // Somebody exchanged it for a link before it was here: where that leads is not ours.
            false => fs::remove_file(path),
        });
        // An empty one that an earlier process left made way for another.
        if let Err(error) = deleted.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
            tracing::warn!(path = %path.display(), %error, "a removed snapshot's files stay until the next removal");
        }
    }

    fn empty(&mut self, dir: &Path, todo: &mut Vec<u64>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                todo.push(self.raise(&entry.path())?);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn raise(&mut self, dir: &Path) -> io::Result<u64> {
        loop {
            let number = self.next;
            self.next += 1;
            match fs::rename(dir, self.risen(number)) {
                Ok(()) => return Ok(number),
                // An earlier process left it.
                Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Makes a directory, or takes the one that is there, with exactly this mode whatever the umask is.
fn create(path: &Path, mode: u32) -> Result<(), SnapshotError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(SnapshotError::io("create", path, e)),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| SnapshotError::io("change the mode of", path, e))
}

fn names(base: &Path) -> Result<Vec<String>, SnapshotError> {
    let list = || fs::read_dir(base)?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>();
    let names = list().map_err(|e| SnapshotError::io("list", base, e))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// More directories than a thread's stack has room for, or a process has descriptors.
    const DEPTH: usize = 25_000;
    /// Longer than any deletion of these tests.
    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_directory_has_its_modes_and_owner() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::open(root.path()).unwrap();
        let me = root.path().metadata().unwrap();
        dirs.make(1, Some((me.uid(), me.gid())), true).unwrap();
        dirs.make(2, None, false).unwrap();
        let mode = |path: PathBuf| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(dirs.fs(1)), 0o755);
        assert_eq!(mode(dirs.work(1)), 0o711);
        assert_eq!(mode(root.path().join("snapshots/1")), 0o700);
        assert!(!dirs.work(2).exists());
    }

    #[test]
    fn what_is_deeper_than_there_are_descriptors_is_deleted() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::open(root.path()).unwrap();
        dirs.make(1, None, true).unwrap();
        // A container makes this from the other end: `mkdir d; cd d`, again and again.
        let [tree, outer] = ["tree", "outer"].map(|name| root.path().join(name));
        fs::create_dir(&tree).unwrap();
        for _ in 0..DEPTH {
            fs::create_dir(&outer).unwrap();
            fs::rename(&tree, outer.join("d")).unwrap();
            fs::rename(&outer, &tree).unwrap();
        }
        fs::rename(&tree, dirs.fs(1).join("tree")).unwrap();
        dirs.discard(1).unwrap();
        assert!(dirs.drain(LIMIT));
        assert_eq!(names(&root.path().join("snapshots")).unwrap(), [] as [String; 0]);
    }

    #[test]
    fn what_is_gone_is_deleted_and_what_is_in_the_way_is_left() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::open(root.path()).unwrap();
        dirs.make(1, None, true).unwrap();
        fs::write(dirs.fs(1).join("old"), "x").unwrap();
        assert!(dirs.is_taken(1) && dirs.make(1, None, true).is_err());
        assert!(!dirs.is_taken(2));
        assert!(dirs.fs(1).join("old").exists());
        // The database that knew these is lost: one had files.
        dirs.make(7, None, true).unwrap();
        dirs.make(8, None, true).unwrap();
        fs::write(dirs.fs(7).join("precious"), "x").unwrap();
        dirs.make(2, None, true).unwrap();
        fs::create_dir(root.path().join("snapshots/not-ours")).unwrap();
        let kept = root.path().join("kept");
        fs::create_dir_all(kept.join("dir")).unwrap();
        std::os::unix::fs::symlink(&kept, dirs.fs(2).join("link")).unwrap();
        // What an earlier process had begun to delete: made while nothing is deleted, since names of this kind are in use then.
        assert!(dirs.drain(LIMIT));
        fs::create_dir_all(root.path().join("snapshots/gone-in-0/dir/dir")).unwrap();
        dirs.discard_unknown(&HashSet::from([1]), 7).unwrap();
        assert!(dirs.drain(LIMIT));
        let mut left = names(&root.path().join("snapshots")).unwrap();
        left.sort();
        assert_eq!(left, ["1", "lost-7-0", "not-ours"]);
        assert!(kept.join("dir").exists(), "no link is followed");
        dirs.discard(7).unwrap();
    }
}
