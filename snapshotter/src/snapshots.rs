//! The snapshots of a root: kept in memory, written through to the database, one transaction a change.
//!
//! Reading never touches a disk. Changes block for the database's sync (milliseconds) and, in [`Snapshots::commit`], for
//! a look at every file of the upper directory: call them from threads that may block.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use redb::Database;
use silk_model::Digest;

use crate::{
    Kind, Remote, RemoteChain, Snapshot, SnapshotError, Time, Usage,
    dirs::Dirs,
    filter::Filters,
    idmap, labels,
    records::{Change, Records},
    state::{Stack, Table},
    usage,
};

/// The snapshots of a root.
#[derive(Debug)]
pub struct Snapshots {
    pub(crate) dirs: Dirs,
    records: Records,
    /// The next ID. Whoever changes anything holds it from the first look to the end of the transaction.
    next_id: Mutex<u64>,
    table: RwLock<Table>,
    /// IDs of those that were last mounted on something that this process serves; some may be gone.
    served: Mutex<HashSet<u64>>,
}

/// A new active snapshot or view.
#[derive(Debug, Clone)]
pub(crate) struct New {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) parent: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// What an active snapshot becomes.
#[derive(Debug, Clone)]
pub(crate) struct Final {
    pub(crate) name: String,
    pub(crate) key: String,
    /// Set when the snapshot gets a parent only now (containerd 2.2, "rebase"); empty otherwise.
    pub(crate) parent: String,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Snapshots {
    /// Reads the snapshots of `root` from `db`; directories that belonged to others are deleted.
    ///
    /// # Errors
    /// When the database or the directory cannot be used, or were written by a newer silkd.
    pub fn open(db: Arc<Database>, root: &Path) -> Result<Arc<Self>, SnapshotError> {
        let records = Records::open(db)?;
        let loaded = records.load()?;
        let dirs = Dirs::open(root)?;
        let next_id = loaded.snapshots.iter().map(|s| s.id + 1).max().unwrap_or(1).max(loaded.next_id);
        if loaded.damaged.is_empty() {
            dirs.discard_unknown(&loaded.snapshots.iter().map(|s| s.id).collect(), next_id)?;
        } else {
            // Their IDs are unknown, so no directory is known to be nobody's.
            tracing::error!(snapshots = ?loaded.damaged, "records are damaged: these snapshots are lost, their files are kept");
        }
        let mut table = Table::default();
        loaded.snapshots.into_iter().for_each(|snapshot| table.insert(snapshot));
        Ok(Arc::new(Self {
            dirs,
            records,
            next_id: Mutex::new(next_id),
            table: RwLock::new(table),
            served: Mutex::default(),
        }))
    }

    /// The chains of remote layers that must be mountable, each with the image it was claimed for.
    pub fn remote_chains(&self) -> Vec<RemoteChain> {
        self.table().remote_chains()
    }

    /// The layers that containers stand on, and what else has a snapshot that is not committed, base first.
    pub fn stood_on(&self) -> Vec<Vec<Digest>> {
        let table = self.table();
        let standing = table.all().filter(|s| s.kind != Kind::Committed);
        let stacks = standing.filter_map(|s| table.stack(&s.parent).ok()?.remote);
        stacks.map(|(_, chain)| chain.diff_ids).collect()
    }

    /// What a snapshot is mounted on from now on: something that this process serves, or not.
    pub(crate) fn stands(&self, id: u64, on_served: bool) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if on_served {
            served.insert(id);
        } else {
            served.remove(&id);
        }
    }

    /// How many containers, and what else has a snapshot that is not committed, stand on something that this process serves. Of those that
    /// were mounted before its start nothing is known: what served them has ended.
    pub fn on_served(&self) -> u64 {
        let standing: HashSet<_> = self.table().all().filter(|s| s.kind != Kind::Committed).map(|s| s.id).collect();
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.retain(|id| standing.contains(id));
        served.len() as u64
    }

    /// How many snapshots stand for each layer; layers that none stands for are not in it.
    pub fn in_use(&self) -> HashMap<Digest, u32> {
        self.table().layers().clone()
    }

    /// Does any snapshot stand for the layer?
    pub fn uses(&self, diff_id: &Digest) -> bool {
        self.table().layers().contains_key(diff_id)
    }

    /// Those that are shown with the owners of a user namespace.
    pub fn mapped(&self) -> HashSet<u64> {
        let mapped = |s: &&Arc<Snapshot>| s.kind != Kind::Committed && idmap::is_mapped(&s.labels);
        self.table().all().filter(mapped).map(|s| s.id).collect()
    }

    pub(crate) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, u64> {
        self.next_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Snapshot>, SnapshotError> {
        self.table().get(name).cloned()
    }

    pub(crate) fn list(&self, filters: &Filters) -> Vec<Arc<Snapshot>> {
        self.table().all().filter(|s| filters.matches(s)).cloned().collect()
    }

    /// What lies below a child of `parent`; an error if one of them is missing.
    pub(crate) fn stack(&self, parent: &str) -> Result<Stack, SnapshotError> {
        self.table().stack(parent)
    }

    /// The chain of a remote snapshot.
    pub(crate) fn chain(&self, snapshot: &Snapshot) -> Option<RemoteChain> {
        self.table().chain(snapshot)
    }

    /// The chain ID that a snapshot was made for, if it is an image's layer.
    pub(crate) fn chain_id(&self, name: &str) -> Option<Digest> {
        self.table().get(name).ok()?.labels.get(labels::REF)?.parse().ok()
    }

    /// The remote snapshot of a chain ID on a parent.
    pub(crate) fn remote(&self, chain_id: &Digest, parent: &str) -> Option<Arc<Snapshot>> {
        self.table().remote(chain_id, parent).cloned()
    }

    /// May a snapshot `key` be made on `parent`?
    pub(crate) fn check_new(&self, key: &str, parent: &str) -> Result<(), SnapshotError> {
        if key.is_empty() {
            return Err(SnapshotError::Nameless);
        }
        let table = self.table();
        table.parent(parent)?;
        if table.contains(key) { Err(SnapshotError::Exists(key.to_owned())) } else { Ok(()) }
    }

    /// Makes an active snapshot or a view. `lowers` are the mount points and directories below it, top first.
    pub(crate) fn create(&self, new: New, lowers: &[PathBuf]) -> Result<Snapshot, SnapshotError> {
        let owner = match idmap::maps(&new.labels)? {
            Some(maps) => Some(idmap::root(&maps)),
            None => lowers.first().map(|path| owner(path)).transpose()?,
        };
        let mut next_id = self.change();
        self.check_new(&new.key, &new.parent)?;
        // What could not be taken away, or is not ours, keeps its name.
        while self.dirs.is_taken(*next_id) {
            *next_id += 1;
        }
        let now = Time::now();
        let snapshot = Snapshot {
            name: new.key,
            id: *next_id,
            parent: new.parent,
            kind: new.kind,
            created: now,
            updated: now,
            labels: new.labels,
            usage: Usage::default(),
            remote: None,
        };
        self.dirs.make(snapshot.id, owner, new.kind == Kind::Active)?;
        let change = Change { put: Some(snapshot.clone()), next_id: Some(*next_id + 1), remove: None };
        self.records.write(&change).inspect_err(|_| self.dirs.discard_or_warn(snapshot.id))?;
        *next_id += 1;
        self.table_mut().insert(snapshot.clone());
        Ok(snapshot)
    }

    /// Commits a snapshot for a remote layer under a name of silk's own, or takes the one that is there: there is one for
    /// each chain ID and parent. One that is there belongs to the latest image that claimed it.
    pub(crate) fn commit_remote(
        &self,
        parent: &str,
        labels: BTreeMap<String, String>,
        remote: Remote,
    ) -> Result<Arc<Snapshot>, SnapshotError> {
        let mut next_id = self.change();
        self.table().parent(parent)?;
        let known = self.remote(&remote.chain_id, parent);
        let snapshot = match known {
            Some(known) if known.remote.as_ref() == Some(&remote) => return Ok(known),
            Some(known) => Snapshot { remote: Some(remote), ..Snapshot::clone(&known) },
            None => {
                let (id, now) = (*next_id, Time::now());
                let (name, parent) = (format!("silk/{id}"), parent.to_owned());
                let (kind, usage, remote) = (Kind::Committed, Usage::default(), Some(remote));
                Snapshot { name, id, parent, kind, created: now, updated: now, labels, usage, remote }
            }
        };
        let after = (*next_id).max(snapshot.id + 1);
        self.records.write(&Change { put: Some(snapshot.clone()), next_id: Some(after), remove: None })?;
        *next_id = after;
        self.replace(&snapshot.name.clone(), snapshot)
    }

    /// Makes an active snapshot final. Its labels are those given, not those it had. Returns its ID.
    pub(crate) fn commit(&self, last: Final) -> Result<u64, SnapshotError> {
        if last.name.is_empty() {
            return Err(SnapshotError::Nameless);
        }
        let active = self.committable(&last)?;
        // Before the lock: it takes as long as there are files.
        let usage = usage::of(&self.dirs.fs(active.id))?;
        let _changing = self.change();
        let active = self.committable(&last)?;
        let now = Time::now();
        let parent = if active.parent.is_empty() { last.parent } else { active.parent.clone() };
        let mut labels = last.labels;
        if labels::is_copy(&last.key) {
            labels.insert(labels::COPIED.to_owned(), "true".to_owned());
        }
        let committed = Snapshot {
            name: last.name,
            parent,
            kind: Kind::Committed,
            created: now,
            updated: now,
            labels,
            usage,
            ..Snapshot::clone(&active)
        };
        let change = Change { put: Some(committed.clone()), remove: Some(last.key), next_id: None };
        self.records.write(&change)?;
        self.replace(&active.name, committed).map(|snapshot| snapshot.id)
    }

    fn committable(&self, last: &Final) -> Result<Arc<Snapshot>, SnapshotError> {
        let table = self.table();
        let active = table.get(&last.key)?;
        if active.kind != Kind::Active {
            return Err(SnapshotError::NotActive { name: last.key.clone(), kind: active.kind });
        }
        if table.contains(&last.name) {
            return Err(SnapshotError::Exists(last.name.clone()));
        }
        if !last.parent.is_empty() && !active.parent.is_empty() && last.parent != active.parent {
            let (key, has, wanted) = (last.key.clone(), active.parent.clone(), last.parent.clone());
            return Err(SnapshotError::OtherParent { key, has, wanted });
        }
        table.parent(&last.parent)?;
        Ok(Arc::clone(active))
    }

    /// Forgets a snapshot; its files are deleted later. Returns what it was.
    pub(crate) fn remove(&self, name: &str) -> Result<Arc<Snapshot>, SnapshotError> {
        let _changing = self.change();
        let snapshot = self.get(name)?;
        if self.table().has_children(name) {
            return Err(SnapshotError::HasChildren(name.to_owned()));
        }
        self.records.write(&Change { remove: Some(name.to_owned()), ..Change::default() })?;
        self.table_mut().remove(name);
        if snapshot.remote.is_none() {
            self.dirs.discard_or_warn(snapshot.id);
        }
        Ok(snapshot)
    }

    /// Changes labels: all of them when `fields` is empty.
    pub(crate) fn update(
        &self,
        name: &str,
        given: &HashMap<String, String>,
        fields: &[String],
    ) -> Result<Arc<Snapshot>, SnapshotError> {
        let _changing = self.change();
        let mut snapshot = Snapshot::clone(&*self.get(name)?);
        let copied = snapshot.labels.contains_key(labels::COPIED);
        let all = "labels".to_owned();
        for field in if fields.is_empty() { std::slice::from_ref(&all) } else { fields } {
            if *field == all {
                snapshot.labels = labels::kept(given.clone());
            } else if let Some(label) = field.strip_prefix("labels.") {
                match given.get(label).filter(|value| !value.is_empty()) {
                    Some(value) => snapshot.labels.insert(label.to_owned(), value.clone()),
                    None => snapshot.labels.remove(label),
                };
            } else {
                return Err(SnapshotError::Field { name: name.to_owned(), field: field.clone() });
            }
        }
        if let Some(remote) = &snapshot.remote {
            // Whoever looks for a layer finds it by this label: nobody may give it another one's.
            snapshot.labels.insert(labels::REF.to_owned(), remote.chain_id.to_string());
        }
        if copied {
            snapshot.labels.insert(labels::COPIED.to_owned(), "true".to_owned());
        }
        snapshot.updated = Time::now();
        self.records.write(&Change { put: Some(snapshot.clone()), ..Change::default() })?;
        self.replace(name, snapshot)
    }

    /// In one step for readers.
    fn replace(&self, old: &str, new: Snapshot) -> Result<Arc<Snapshot>, SnapshotError> {
        let mut table = self.table_mut();
        table.remove(old);
        let name = new.name.clone();
        table.insert(new);
        table.get(&name).cloned()
    }

    /// Waits until the files of removed snapshots are deleted, for at most `limit`.
    pub(crate) fn clean_up(&self, limit: Duration) -> bool {
        self.dirs.drain(limit)
    }
}

/// Whom a new upper directory belongs to: the owner of the directory that it hides.
pub(crate) fn owner(lower: &Path) -> Result<(u32, u32), SnapshotError> {
    let meta = lower.symlink_metadata().map_err(|e| SnapshotError::io("read", lower, e))?;
    Ok((meta.uid(), meta.gid()))
}

#[cfg(test)]
mod tests;
