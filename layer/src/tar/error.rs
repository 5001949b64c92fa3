//! What can be wrong with an archive. Every message names the member or the place.

use silk_model::Class;

/// An archive that containerd would refuse too, or one beyond the [`super::Limits`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// No header where one must be.
    #[error(
        "the block at byte {offset} is no tar header, its checksum does not match: the layer is damaged or not a tar"
    )]
    NotAHeader {
        /// Where the block starts.
        offset: u64,
    },
    /// One block of zeros with something else behind it.
    #[error("a block of zeros at byte {offset} is followed by data: the layer is damaged or not a tar")]
    StrayZeros {
        /// Where the zeros start.
        offset: u64,
    },
    /// A field of a header is not a number, or one too large.
    #[error("the {field} of {path:?} (header at byte {offset}) is no number")]
    Number {
        /// Where the header starts.
        offset: u64,
        /// The member.
        path: String,
        /// The field's name.
        field: &'static str,
    },
    /// A body of less than nothing.
    #[error("{path:?} claims a size of {size} bytes")]
    NegativeSize {
        /// The member.
        path: String,
        /// What it claims.
        size: i64,
    },
    /// A PAX extended header that cannot be read.
    #[error("the extended header of {path:?} (header at byte {offset}) is malformed: {fault}")]
    Pax {
        /// Where the header starts.
        offset: u64,
        /// The name of the extended header, or of the member it describes.
        path: String,
        /// What is wrong.
        fault: PaxFault,
    },
    /// A sparse file whose map cannot be right.
    #[error("the sparse file {path:?} is malformed: {fault}")]
    Sparse {
        /// The member.
        path: String,
        /// What is wrong.
        fault: SparseFault,
    },
    /// The archive ends inside a member.
    #[error("the archive ends {missing} bytes before the end of {path:?}")]
    Truncated {
        /// The member.
        path: String,
        /// How many bytes of it are missing.
        missing: u64,
    },
    /// The archive ends inside a header.
    #[error("the archive ends inside the header at byte {offset}")]
    TruncatedHeader {
        /// Where the header starts.
        offset: u64,
    },
    /// A kind of member that containerd does not unpack.
    #[error("{path:?} is a member of the unknown type {:?}", char::from(*.flag))]
    UnknownType {
        /// The member.
        path: String,
        /// Its type flag.
        flag: u8,
    },
    /// Larger than silk is willing to handle.
    #[error("{path:?}: more than {limit} {what}, which is the limit")]
    Limit {
        /// The member at which the limit was passed.
        path: String,
        /// The limit.
        limit: u64,
        /// Of what.
        what: LimitKind,
    },
}

impl TarError {
    /// What kind of trouble this is.
    pub fn class(&self) -> Class {
        match self {
            Self::UnknownType { .. } | Self::Limit { .. } => Class::Unsupported,
            _ => Class::Corrupt,
        }
    }
}

/// What is wrong with a PAX extended header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PaxFault {
    /// The length, the `=` or the newline of a record is missing or wrong.
    #[error("a record is not of the form \"length key=value\"")]
    Record,
    /// A NUL in a key, or in a value that is a name.
    #[error("a record holds a NUL")]
    Nul,
    /// A number or time that is none.
    #[error("the value of {0} is no number")]
    Value(&'static str),
    /// The records of a sparse map (version 0.0) are not pairs of offset and length.
    #[error("the records of the sparse map are out of order")]
    SparseOrder,
}

/// What is wrong with a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SparseFault {
    /// A number of the map, or the file's size, is none.
    #[error("its map or its size holds something that is no number")]
    Number,
    /// The map has another length than it says.
    #[error("its map has another number of regions than it says")]
    Count,
    /// The member's body ends inside the map.
    #[error("its data ends inside the map")]
    MapTruncated,
    /// Longer than Go's reader takes.
    #[error("its map is too long")]
    TooLong,
    /// Regions overlap, are out of order, negative or outside of the file.
    #[error("its regions overlap, are out of order or lie outside of the file")]
    Regions,
    /// Regions add up to more bytes than there are.
    #[error("its map refers to data that is not there")]
    MissingData,
    /// Regions add up to fewer bytes than there are.
    #[error("it holds data that its map does not refer to")]
    UnreferencedData,
    /// A map on something that has no data.
    #[error("it has a sparse map but is no regular file")]
    NotAFile,
    /// Type `S` in an archive that is not GNU's.
    #[error("its header is not in the GNU format")]
    Format,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitKind {
    /// [`super::Limits::entries`].
    #[error("members in the layer")]
    Entries,
    /// [`super::Limits::special_bytes`].
    #[error("bytes in an extended header or long name")]
    SpecialBytes,
    /// [`super::Limits::path_bytes`].
    #[error("bytes in a path")]
    PathBytes,
    /// [`super::Limits::path_bytes`].
    #[error("bytes in a link's target")]
    LinkBytes,
    /// [`super::Limits::xattr_bytes`].
    #[error("bytes of extended attributes")]
    XattrBytes,
    /// [`super::Limits::file_bytes`].
    #[error("bytes in a file")]
    FileBytes,
    /// [`super::Limits::table`] or [`super::Limits::memory`].
    #[error("bytes in the table of contents")]
    Memory,
}

/// A path for a message: UTF-8 at any price, and short.
pub(crate) fn shown(path: &[u8]) -> String {
    /// Enough to find any real file; a hostile name shall not fill the log.
    const MAX: usize = 256;
    if path.len() <= MAX {
        return String::from_utf8_lossy(path).into_owned();
    }
    format!("{}...", String::from_utf8_lossy(&path[..MAX]))
}
