//! Which tree of a layer a mount shows, and the mount's name.

use std::{fmt, path::Path};

use silk_model::Digest;

/// Letters of a view's name in its mount point: 50 bits. A hundred mount points, with `/var/lib/silk/mnt/` before the name, `/t` and a colon
/// behind it, take 3,100 bytes of the 4,096 that mount(2) passes on as options. So few can be met on purpose: see [`ViewName`].
const LETTERS: usize = 10;

/// One way to show a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    /// The layer.
    pub diff_id: Digest,
    /// On top of what.
    pub variant: Variant,
}

/// What a layer's tree depends on, besides the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Nothing: the same tree on any layers.
    Shared,
    /// It asks for what is below it, and nothing is.
    Base,
    /// The layers below it, by their chain ID.
    Chain(Digest),
}

/// Where a view's data files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ground {
    /// On disk, all of them whole.
    Disk,
    /// Some are served by silkd, because bytes are missing.
    Served,
}

impl View {
    /// Its name: the same in every process, so that an overlay's options are too. Of the diff ID and of the name of the metadata
    /// image's file: 64 bits of the parent's chain ID tell chains apart well enough, as they come from the images of one node, and they can be read back
    /// from the file's name.
    pub fn name(&self) -> ViewName {
        ViewName(Digest::of(format!("silk view 1 {} {}", self.diff_id, self.file_name()).as_bytes()))
    }

    /// The file system's UUID: overlayfs tells lower layers apart by it.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.name().0.as_bytes()[16..]);
        uuid
    }

    /// The metadata image's name in the layer's directory.
    pub(crate) fn file_name(&self) -> String {
        match self.variant {
            Variant::Shared => "erofs".into(),
            Variant::Base => "erofs-base".into(),
            Variant::Chain(parent) => format!("erofs-{}", ChainName::of(&parent).0),
        }
    }

    /// The mount's name for a metadata image in a layer's directory; `None` for another file. So whoever removes a
    /// layer needs to know nothing but its directory.
    pub(crate) fn name_of_file(diff_id: &Digest, file_name: &str) -> Option<ViewName> {
        let variant = match file_name.strip_prefix("erofs")? {
            "" => Variant::Shared,
            "-base" => Variant::Base,
            chain => {
                let hex = chain.strip_prefix('-').filter(|hex| hex.len() == 16)?;
                Variant::Chain(format!("sha256:{hex}{}", "0".repeat(48)).parse().ok()?)
            }
        };
        Some(Self { diff_id: *diff_id, variant }.name())
    }
}

/// A view's name. Its mount point has only the first letters of it, which somebody who makes layers for that can have in common with another's:
/// whoever finds something mounted there asks whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewName(Digest);

impl ViewName {
    /// Of what [`ViewName::bytes`] has said.
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(Digest::new(bytes))
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// The mount point's name below `<root>/mnt`.
impl fmt::Display for ViewName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let hash = self.0.as_bytes();
        let letters = (0..LETTERS).map(|nr| {
            let bit = nr * 5;
            let pair = u16::from_be_bytes([hash[bit / 8], hash[bit / 8 + 1]]);
            char::from(ALPHABET[usize::from(pair >> (11 - bit % 8) & 31)])
        });
        f.write_str(&letters.collect::<String>())
    }
}

/// What names a parent chain in the file of a metadata image: the first 64 bits of its chain ID, see [`View::name`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChainName(String);

impl ChainName {
    /// That of a chain ID.
    pub fn of(chain_id: &Digest) -> Self {
        Self(chain_id.hex()[..16].to_owned())
    }

    /// That in the path of a metadata image, with the layer that it is of; `None` if it has none.
    pub(crate) fn of_file(meta: &Path) -> Option<(Digest, Self)> {
        let chain = meta.file_name()?.to_str()?.strip_prefix("erofs-").filter(|chain| chain.len() == 16)?;
        let layer = meta.parent()?.file_name()?.to_str()?;
        Some((format!("sha256:{layer}").parse().ok()?, Self(chain.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_short_and_the_same_for_ever() {
        let diff_id = Digest::of(b"layer");
        let views = [Variant::Shared, Variant::Base, Variant::Chain(Digest::of(b"chain"))]
            .map(|variant| View { diff_id, variant });
        assert_eq!(views.map(|v| v.name().to_string()), ["rdeofuhgkk", "hd7bxcr7zi", "3elgft2tmm"]);
        for view in views {
            assert_eq!(View::name_of_file(&diff_id, &view.file_name()), Some(view.name()));
            let meta = Path::new("/layers").join(diff_id.hex()).join(view.file_name());
            let chain =
                matches!(view.variant, Variant::Chain(_)).then(|| (diff_id, ChainName::of(&Digest::of(b"chain"))));
            assert_eq!(ChainName::of_file(&meta), chain);
        }
        assert_eq!(views.iter().map(View::uuid).collect::<HashSet<_>>().len(), 3);
    }

    #[test]
    fn other_files_are_no_views() {
        for name in ["data", "toc", "erofs.tmp", "erofs-", "erofs-xyz", "erofs-0123456789abcdeg", "depends"] {
            assert_eq!(View::name_of_file(&Digest::of(b""), name), None, "{name}");
        }
    }
}
