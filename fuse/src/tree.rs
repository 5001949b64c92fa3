//! A layer's tree, answered from its metadata image.

use std::{fs::File, io};

use crate::Slot;

/// A metadata image that is open for reading, and the data files that it points into.
#[derive(Debug)]
pub struct TreeFiles {
    _image: File,
    _devices: Vec<Slot>,
}

impl TreeFiles {
    /// `devices` are the slots of the image's data files, in the order of its device table.
    ///
    /// # Errors
    /// When it is no metadata image, or one of other data files.
    pub fn open(image: File, devices: Vec<Slot>) -> io::Result<Self> {
        Ok(Self { _image: image, _devices: devices })
    }
}
