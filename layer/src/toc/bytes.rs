//! Byte strings for serde as byte strings: a sequence of `u8` is taken number by number. In postcard both look the same.

use std::{borrow::Cow, fmt};

use serde::{Deserializer, Serializer, de};

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

pub(crate) fn deserialize<'de, D, B>(deserializer: D) -> Result<B, D::Error>
where
    D: Deserializer<'de>,
    B: From<Cow<'de, [u8]>>,
{
    deserializer.deserialize_bytes(Visitor).map(B::from)
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Cow<'de, [u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Cow<'de, [u8]>, E> {
        Ok(Cow::Borrowed(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Cow<'de, [u8]>, E> {
        Ok(Cow::Owned(bytes.to_vec()))
    }
}
