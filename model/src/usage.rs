//! How much of a budget is taken.

/// How much of a budget is taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    /// The most that may be.
    pub limit: u64,
    /// What is.
    pub in_use: u64,
}

impl Use {
    /// Of places, of which so many are free.
    pub fn of_places(limit: usize, free: usize) -> Self {
        Self { limit: limit as u64, in_use: limit.saturating_sub(free) as u64 }
    }
}
