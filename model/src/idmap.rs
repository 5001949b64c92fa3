//! Which users and groups of a host those of a container are.

/// A range of IDs that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// The first ID as the container, and its image, have it.
    pub container: u32,
    /// The first ID as the host has it.
    pub host: u32,
    /// How many; more than 0.
    pub length: u32,
}

/// The IDs of a user namespace. What no range has is nobody's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}
