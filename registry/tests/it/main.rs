//! The whole conversation against a faulty registry on loopback. No test is decided by the clock: where a timeout is
//! what is tested, the other side never answers.

mod access;
mod blobs;
mod hosts;
mod manifests;
mod mirrors;
#[cfg(test)]
mod pushes;
mod redirects;
#[cfg(test)]
mod world;
