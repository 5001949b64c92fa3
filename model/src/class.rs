//! What kind of trouble an error is, so that edges and retries decide by type and never by text.

/// Every error type of silk answers `class()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The thing asked for does not exist.
    NotFound,
    /// We are not let in: wrong or missing credentials.
    Denied,
    /// May succeed when tried again: a network fault, a server's 429 or 5xx.
    Transient,
    /// Bytes are not what their digest or format says.
    Corrupt,
    /// No space or quota left.
    NoSpace,
    /// A format, algorithm or kernel that silk cannot handle.
    Unsupported,
    /// The caller asked for something that makes no sense.
    Invalid,
    /// The state does not allow the request (a snapshot has children, an active one was expected, ...).
    Precondition,
    /// The name is taken.
    Exists,
    /// The operating system refused, or silk is wrong.
    Internal,
}
