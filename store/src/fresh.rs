//! Tables of contents that were just decoded: a pull checks them, and a moment later makes trees of them.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use silk_layer::toc::Toc;
use silk_model::Digest;

/// Bytes of memory that they may take together: 200,000 files at the 82 bytes that those of a Node service take each, twice as many as it has. They
/// stay until they are asked for, or others take their room.
const ROOM: u64 = 16 << 20;

/// Tables by the digest of what their files say, oldest first. Whoever finds the same in a file need not decode it again.
#[derive(Debug, Default)]
pub(crate) struct Fresh(Mutex<VecDeque<(Digest, Toc)>>);

impl Fresh {
    /// Keeps a table for whoever asks first.
    pub(crate) fn keep(&self, payload: Digest, toc: Toc) {
        if toc.packed_len() > ROOM {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(of, _)| *of != payload);
        kept.push_back((payload, toc));
        while kept.iter().map(|(_, toc)| toc.packed_len()).sum::<u64>() > ROOM {
            kept.pop_front();
        }
    }

    /// The table, which is not kept any more.
    pub(crate) fn take(&self, payload: &Digest) -> Option<Toc> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(of, _)| of == payload)?;
        kept.remove(at).map(|(_, toc)| toc)
    }
}

#[cfg(test)]
mod tests {
    use silk_layer::toc::{Entry, Kind, Time};

    use super::*;

    /// The table of one file, whose name has so many bytes.
    fn toc(name: u64) -> Toc {
        let path = vec![b'n'; name as usize];
        let kind = Kind::File { size: 0, extents: Default::default() };
        let entry =
            Entry { path: path.into(), kind, mode: 0o644, uid: 0, gid: 0, mtime: Time::default(), xattrs: vec![] };
        Toc::new(512, &[entry])
    }

    #[test]
    fn each_is_given_once_and_the_oldest_make_room() {
        let fresh = Fresh::default();
        let ids: Vec<_> = (0..4).map(|nr| Digest::new([nr; 32])).collect();
        fresh.keep(ids[0], toc(10));
        fresh.keep(ids[1], toc(ROOM / 2));
        assert_eq!(fresh.take(&ids[0]), Some(toc(10)));
        assert_eq!(fresh.take(&ids[0]), None);
        fresh.keep(ids[2], toc(ROOM / 2));
        assert_eq!(fresh.take(&ids[1]), None);
        fresh.keep(ids[3], toc(ROOM));
        assert_eq!(fresh.take(&ids[3]), None);
        assert_eq!(fresh.take(&ids[2]), Some(toc(ROOM / 2)));
    }
}
