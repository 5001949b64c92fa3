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
        Ok(Self { db, known: Mutex::new(known) })
    }

    /// The number of a name; gives one out if it has none.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn of(&self, name: &str) -> Result<u32, StoreError> {
        let mut known = self.known();
        if let Some(slot) = known.by_name.get(name) {
            return Ok(*slot);
        }
        let slot = known.next;
        let write = self.db.begin_write().map_err(StoreError::db)?;
        {
            let mut table = write.open_table(SLOTS).map_err(StoreError::db)?;
            table.insert(name, slot).map_err(StoreError::db)?;
            table.insert("", slot + 1).map_err(StoreError::db)?;
        }
        write.commit().map_err(StoreError::db)?;
        known.next = slot + 1;
        known.insert(name, slot);
        Ok(slot)
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
    use super::*;

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
    }
}
