//! Zstandard (RFC 8878): frames one after another; skippable ones are skipped.

use std::io::{self, BufRead};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use super::{MAX_WINDOW_LOG, learn::Learner};

pub(super) struct Frames<R> {
    pub(super) input: R,
    pub(super) learner: Learner,
    decoder: Decoder<'static>,
    /// The input's next byte begins a frame, or it is the end.
    between: bool,
    /// Bytes read from the input.
    offset: u64,
    /// Bytes given out.
    at: u64,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(input: R, learner: Learner) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Self { input, learner, decoder, between: true, offset: 0, at: 0 })
    }

    /// As [`io::Read::read`], `buf` not being empty.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.input.fill_buf()?;
            let ended = input.is_empty();
            if self.between {
                if ended {
                    return Ok(0);
                }
                self.decoder.reinit()?;
                self.learner.start(self.offset);
                self.between = false;
            }
            let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(&mut *buf));
            // Zero means that the frame is over and all of it is out.
            self.between = self.decoder.run(&mut from, &mut to)? == 0;
            let (consumed, produced) = (from.pos(), to.pos());
            self.input.consume(consumed);
            self.learner.decoded(self.at, &[], produced);
            self.offset += consumed as u64;
            self.at += produced as u64;
            if produced > 0 {
                return Ok(produced);
            }
            if ended && !self.between {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
