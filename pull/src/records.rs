//! Images that were claimed, kept across restarts (docs/formats/images.md): what a pull needs to start again without
//! containerd asking.

use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use silk_model::Digest;
use silk_store::StoreError;

use crate::ImageSpec;

/// `<manifest digest> <reference>` to an [`ImageSpec`].
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");

/// First byte of every record; one of another version is ignored: containerd asks again.
const VERSION: u8 = 1;

#[derive(Debug)]
pub(crate) struct Records(Arc<Database>);

pub(crate) fn key(manifest: &Digest, reference: &str) -> String {
    format!("{manifest} {reference}")
}

impl Records {
    pub(crate) fn open(db: Arc<Database>) -> Result<(Self, Vec<ImageSpec>), StoreError> {
        let write = db.begin_write().map_err(db_error)?;
        write.open_table(IMAGES).map_err(db_error)?;
        write.commit().map_err(db_error)?;
        let read = db.begin_read().map_err(db_error)?;
        let table = read.open_table(IMAGES).map_err(db_error)?;
        let mut specs = Vec::new();
        for row in table.iter().map_err(db_error)? {
            let (_, value) = row.map_err(db_error)?;
            if let Some((&VERSION, rest)) = value.value().split_first() {
                specs.extend(postcard::from_bytes::<ImageSpec>(rest).ok());
            }
        }
        drop((table, read));
        Ok((Self(db), specs))
    }

    pub(crate) fn put(&self, spec: &ImageSpec) -> Result<(), StoreError> {
        let bytes = postcard::to_extend(spec, vec![VERSION]).expect("a Vec takes any number of bytes");
        self.change(|table| table.insert(key(&spec.manifest, &spec.reference).as_str(), bytes.as_slice()).map(drop))
    }

    pub(crate) fn remove(&self, keys: &[String]) -> Result<(), StoreError> {
        self.change(|table| keys.iter().try_for_each(|key| table.remove(key.as_str()).map(drop)))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut redb::Table<'_, &'static str, &'static [u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<(), StoreError> {
        let write = self.0.begin_write().map_err(db_error)?;
        change(&mut write.open_table(IMAGES).map_err(db_error)?).map_err(db_error)?;
        write.commit().map_err(db_error)
    }
}

fn db_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Db(Box::new(error.into()))
}
