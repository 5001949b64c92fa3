//! Sharing through a real redis-server, through a registry of the testkit's, and through a real one. No test is decided by the clock: where a deadline is what is tested, the other side
//! is stopped.

#[cfg(test)]
mod hub;
#[cfg(test)]
mod redis;
#[cfg(test)]
mod referrers;
#[cfg(test)]
mod server;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod world;
