//! Sharing through a real redis-server. No test is decided by the clock: where a deadline is what is tested, the other side
//! is stopped.

#[cfg(test)]
mod redis;
#[cfg(test)]
mod server;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod world;
