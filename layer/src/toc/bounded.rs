//! Lists of which somebody else says how long they are. An element may take ten times its encoded bytes in memory, or none of those: what
//! is read stops at the most that an honest table has.

use std::{fmt, marker::PhantomData};

use serde::{Deserialize, Deserializer, de};

/// Extended attributes of one entry. A scanner takes a header of 1 MiB, and a record of one has 17 bytes at least.
pub(crate) const MAX_XATTRS: usize = 1 << 16;

/// Pieces of one sparse file: the scanner's limit.
pub(crate) const MAX_EXTENTS: usize = 1 << 20;

pub(crate) fn xattrs<'de, D: Deserializer<'de>, L: List<'de>>(deserializer: D) -> Result<L, D::Error> {
    deserializer.deserialize_seq(Visitor::<L, MAX_XATTRS>(PhantomData))
}

pub(crate) fn extents<'de, D: Deserializer<'de>, L: List<'de>>(deserializer: D) -> Result<L, D::Error> {
    deserializer.deserialize_seq(Visitor::<L, MAX_EXTENTS>(PhantomData))
}

/// A list that is put together element by element.
pub(crate) trait List<'de>: Default + Extend<Self::Element> + IntoIterator<Item = Self::Element> {
    type Element: Deserialize<'de>;
}

impl<'de, L> List<'de> for L
where
    L: Default + IntoIterator + Extend<<L as IntoIterator>::Item>,
    L::Item: Deserialize<'de>,
{
    type Element = L::Item;
}

struct Visitor<L, const MOST: usize>(PhantomData<L>);

impl<'de, L: List<'de>, const MOST: usize> de::Visitor<'de> for Visitor<L, MOST> {
    type Value = L;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MOST} elements")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut elements: A) -> Result<L, A::Error> {
        let (mut list, mut count) = (L::default(), 0);
        while let Some(element) = elements.next_element()? {
            count += 1;
            if count > MOST {
                return Err(de::Error::invalid_length(count, &self));
            }
            list.extend([element]);
        }
        Ok(list)
    }
}
