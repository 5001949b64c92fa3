//! Formats of image layers: bytes in, structures out, no I/O.
//!
//! A blob is decompressed ([`decode`]), its tar is read as it streams by ([`tar`]) into a table of contents ([`toc`]);
//! from that follows the tree that containerd would unpack ([`tree`]), which becomes a file system image ([`erofs`]). On the
//! way it is learned where decoding can begin and what the bytes are ([`index`]), so that next time any part can be had alone.
//! What a container touches when it starts is a [`profile`].

#![forbid(unsafe_code)]

pub mod decode;
pub mod erofs;
pub mod index;
pub mod media;
pub mod profile;
pub mod tar;
pub mod toc;
pub mod tree;
