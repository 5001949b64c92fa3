//! Numbers that stand for names of layers towards the kernel: given out once, kept over restarts, never given to another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::StoreError;

/// Name to number; the empty name has the next one.
const SLOTS: TableDefinition<'_, &str, u32> = TableDefinition::new("slots");

/// All numbers that were given out.
#[derive(Debug)]
pub struct Slots {
    db: Arc<Database>,
    known: Mutex<Known>,
    /// Held while a number is given out. The database may take seconds for it on a busy disk, and every read of a served file
    /// looks at what is known.
    giving: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    by_name: HashMap<String, u32>,
    by_slot: HashMap<u32, String>,
    next: u32,
}

impl Slots {
    /// Reads those of earlier processes.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open(db: Arc<Database>) -> Result<Self, StoreError> {
        let write = db.begin_write().map_err(StoreError::db)?;
        write.open_table(SLOTS).map_err(StoreError::db)?;
        write.commit().map_err(StoreError::db)?;
        let mut known = Known { next: 1, ..Known::default() };
        let read = db.begin_read().map_err(StoreError::db)?;
        for row in read.open_table(SLOTS).map_err(StoreError::db)?.iter().map_err(StoreError::db)? {
            let (name, slot) = row.map_err(StoreError::db)?;
            match name.value() {
                "" => known.next = slot.value(),
                name => known.insert(name, slot.value()),
            }
        }
        drop(read);
        Ok(Self { db, known: Mutex::new(known), giving: Mutex::default() })
    }

    /// The number of a name; gives one out if it has none, which blocks for the disk.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn of(&self, name: &str) -> Result<u32, StoreError> {
        Ok(self.of_all(&[name])?[0])
    }

    /// As [`Slots::of`] for several names, in their order, with one commit.
    ///
    /// # Errors
    /// When the database cannot be written: none has got a number.
    pub fn of_all(&self, names: &[impl AsRef<str>]) -> Result<Vec<u32>, StoreError> {
        if let Some(slots) = names.iter().map(|name| self.find(name.as_ref())).collect() {
            return Ok(slots);
        }
        let _giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.known().next;
        let mut new: HashMap<&str, u32> = HashMap::new();
        let mut slots = Vec::with_capacity(names.len());
        for name in names.iter().map(AsRef::as_ref) {
            let slot = self.find(name).or_else(|| new.get(name).copied()).unwrap_or(next);
            if slot == next {
                new.insert(name, slot);
                next += 1;
            }
            slots.push(slot);
        }
        let write = self.db.begin_write().map_err(StoreError::db)?;
        {
            let mut table = write.open_table(SLOTS).map_err(StoreError::db)?;
            for (name, slot) in &new {
                table.insert(*name, slot).map_err(StoreError::db)?;
            }
            table.insert("", next).map_err(StoreError::db)?;
        }
        write.commit().map_err(StoreError::db)?;
        let mut known = self.known();
        known.next = next;
        new.into_iter().for_each(|(name, slot)| known.insert(name, slot));
        Ok(slots)
    }

    /// What had this name is gone, and what gets it next is something else: a number of its own is given to that.
    ///
    /// # Errors
    /// When the database cannot be written: a later process may find the old number again.
    pub fn retire(&self, name: &str) -> Result<(), StoreError> {
        let _giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known();
        let Some(slot) = known.by_name.remove(name) else { return Ok(()) };
        known.by_slot.remove(&slot);
        drop(known);
        let write = self.db.begin_write().map_err(StoreError::db)?;
        write.open_table(SLOTS).map_err(StoreError::db)?.remove(name).map_err(StoreError::db)?;
        write.commit().map_err(StoreError::db)
    }

    /// How many names have numbers.
    pub fn count(&self) -> usize {
        self.known().by_name.len()
    }

    /// Forgets the names that are not to be kept: should one come again, it gets a number of its own.
    ///
    /// # Errors
    /// When the database cannot be written: all are as before.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let _giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = self.known().by_name.keys().filter(|name| !keep(name)).cloned().collect();
        let write = self.db.begin_write().map_err(StoreError::db)?;
        {
            let mut table = write.open_table(SLOTS).map_err(StoreError::db)?;
            for name in &gone {
                table.remove(name.as_str()).map_err(StoreError::db)?;
            }
        }
        write.commit().map_err(StoreError::db)?;
        let mut known = self.known();
        for name in gone {
            if let Some(slot) = known.by_name.remove(&name) {
                known.by_slot.remove(&slot);
            }
        }
        Ok(())
    }

    /// The number of a name that has one.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.known().by_name.get(name).copied()
    }

    /// The name of a number.
    pub fn name(&self, slot: u32) -> Option<String> {
        self.known().by_slot.get(&slot).cloned()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, name: &str, slot: u32) {
        self.by_name.insert(name.to_owned(), slot);
        self.by_slot.insert(slot, name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn names_get_their_numbers_together_and_keep_them() {
        let dir = tempfile::tempdir().unwrap();
        let db = Arc::new(Database::create(dir.path().join("db")).unwrap());
        let slots = Slots::open(Arc::clone(&db)).unwrap();
        assert_eq!(slots.of("b").unwrap(), 1);
        let given = slots.of_all(&["a", "b", "c", "a"]).unwrap();
        assert_eq!(given, [2, 1, 3, 2]);
        assert!(slots.of_all(&[] as &[&str]).unwrap().is_empty());
        let again = Slots::open(db).unwrap();
        assert_eq!(again.of_all(&["c", "d", "a"]).unwrap(), [3, 4, 2]);
        assert_eq!(again.name(3).as_deref(), Some("c"));
    }

    #[test]
    fn names_that_are_forgotten_leave_their_numbers_unused() {
        let dir = tempfile::tempdir().unwrap();
        let db = Arc::new(Database::create(dir.path().join("db")).unwrap());
        let slots = Slots::open(Arc::clone(&db)).unwrap();
        slots.of_all(&["a", "b", "c"]).unwrap();
        slots.retain(|name| name == "b").unwrap();
        for slots in [slots, Slots::open(db).unwrap()] {
            assert_eq!((slots.count(), slots.find("a"), slots.find("b"), slots.name(3)), (1, None, Some(2), None));
            slots.of("a").unwrap();
            assert!(slots.find("a").unwrap() > 3);
            slots.retain(|name| name == "b").unwrap();
        }
    }

    #[test]
    fn numbers_are_found_while_another_is_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let db = Arc::new(Database::create(dir.path().join("db")).unwrap());
        let slots = Arc::new(Slots::open(Arc::clone(&db)).unwrap());
        let a = slots.of("a").unwrap();
        // Somebody writes the database, as slowly as the disk.
        let other = db.begin_write().unwrap();
        let giving = thread::spawn({
            let slots = Arc::clone(&slots);
            move || slots.of("b").unwrap()
        });
        let (to, answers) = mpsc::channel();
        let asking = thread::spawn({
            let slots = Arc::clone(&slots);
            // Until the other thread waits for the database.
            move || {
                for _ in 0..20 {
                    thread::sleep(Duration::from_millis(5));
                    to.send((slots.find("a"), slots.name(a), slots.find("b"))).unwrap();
                }
            }
        });
        for _ in 0..20 {
            let answer = answers.recv_timeout(Duration::from_secs(30)).expect("who asks waits for who gives");
            assert_eq!(answer, (Some(a), Some("a".to_owned()), None));
        }
        other.abort().unwrap();
        let b = giving.join().unwrap();
        asking.join().unwrap();
        assert_eq!(slots.find("b"), Some(b));
    }

    #[test]
    fn numbers_are_kept_and_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let slots = Slots::open(Arc::new(Database::create(&path).unwrap())).unwrap();
        let (a, b) = (slots.of("a").unwrap(), slots.of("b").unwrap());
        assert_ne!(a, b);
        assert_eq!(slots.of("a").unwrap(), a);
        drop(slots);
        let slots = Slots::open(Arc::new(Database::create(&path).unwrap())).unwrap();
        assert_eq!((slots.find("a"), slots.find("b"), slots.find("c")), (Some(a), Some(b), None));
        let c = slots.of("c").unwrap();
        assert!(c != a && c != b);
        assert_eq!(slots.name(c).as_deref(), Some("c"));
        slots.retire("c").unwrap();
        assert_eq!((slots.find("c"), slots.name(c)), (None, None));
        drop(slots);
        let slots = Slots::open(Arc::new(Database::create(&path).unwrap())).unwrap();
        assert_eq!(slots.find("c"), None);
        let again = slots.of("c").unwrap();
        assert!(![a, b, c].contains(&again));
    }
}
