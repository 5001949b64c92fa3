//! The names of silk's keys, and the scripts that Redis runs in one piece, so that the bound holds whoever writes at the
//! same time.
//!
//! `silk:1:uses` is a sorted set of the values by the time of their last use (Redis's own clock, so that the nodes' need not
//! agree), `silk:1:sizes` a hash of their sizes with the sum under `total`.

use redis::{Cmd, Script, ScriptInvocation};

use crate::{Key, envelope::VERSION};

/// What a value costs Redis besides its bytes: its entries in keyspace, expiry table, sorted set and hash, each with the key's 80
/// bytes, rounded up. Without it a million small profiles would count as nothing.
pub(super) const COST: u64 = 512;

/// The scripts, with their hashes.
#[derive(Debug)]
pub(super) struct Scripts {
    renew: Script,
    put: Script,
    remove: Script,
    uses: String,
    sizes: String,
}

impl Default for Scripts {
    fn default() -> Self {
        let with_drop = |script| Script::new(&format!("{}{script}", include_str!("drop.lua")));
        Self {
            renew: Script::new(include_str!("renew.lua")),
            put: with_drop(include_str!("put.lua")),
            remove: with_drop(include_str!("remove.lua")),
            uses: format!("silk:{VERSION}:uses"),
            sizes: format!("silk:{VERSION}:sizes"),
        }
    }
}

impl Scripts {
    /// All of them, to be loaded at each connection: a Redis that was restarted has forgotten them.
    pub(super) fn all(&self) -> [&Script; 3] {
        [&self.renew, &self.put, &self.remove]
    }

    /// Renews those of `keys` that are there. Its failure is nobody's: on a full or read-only Redis, values can be read all
    /// the same.
    pub(super) fn renew(&self, keys: &[Key], expiry: u64) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.renew.get_hash()).arg(keys.len() + 2).arg(&self.uses).arg(&self.sizes);
        for key in keys {
            call.arg(name(*key));
        }
        call.arg(expiry);
        call
    }

    /// Stores `value`, dropping others so that all of silk's have at most `most` bytes.
    pub(super) fn put(&self, key: Key, value: &[u8], expiry: u64, most: u64) -> ScriptInvocation<'_> {
        let mut call = self.put.prepare_invoke();
        call.key(&self.uses).key(&self.sizes).key(name(key));
        call.arg(value).arg(expiry).arg(most).arg(COST);
        call
    }

    /// Removes the value that ends with `seal`.
    pub(super) fn remove(&self, key: Key, seal: &[u8]) -> ScriptInvocation<'_> {
        let mut call = self.remove.prepare_invoke();
        call.key(&self.uses).key(&self.sizes).key(name(key)).arg(seal);
        call
    }
}

/// `silk:1:layer:<hex>`.
pub(super) fn name(key: Key) -> String {
    match key {
        Key::Layer(blob) => format!("silk:{VERSION}:layer:{}", blob.hex()),
        Key::Profile(manifest) => format!("silk:{VERSION}:profile:{}", manifest.hex()),
    }
}
