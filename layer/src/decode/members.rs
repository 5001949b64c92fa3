//! gzip (RFC 1952): members one after another, from the first or from a block in one. zlib checks headers, sums and
//! lengths; of a member that was entered in its middle the sum cannot be checked, and is passed over. Padding and garbage behind
//! the last one are passed over too, as by gzip, pigz and igzip: containerd unpacks with one of the latter where it finds it, and
//! refuses such blobs where it does not.

use std::io::{self, BufRead};

use silk_sys::inflate::{Inflate, Stop, Wrapper};

use super::learn::Learner;

/// The first byte of a member. What else follows one is no part of the stream.
const MAGIC: u8 = 0x1f;

/// Bytes of a member's trailer: sum and length.
const TRAILER: usize = 8;

pub(super) struct Members<R> {
    pub(super) input: R,
    pub(super) learner: Learner,
    inflate: Inflate,
    place: Place,
    /// Bytes read from the input.
    offset: u64,
    /// Bytes given out.
    at: u64,
    /// The last byte that was read.
    before: u8,
}

/// What the input's next byte belongs to.
enum Place {
    /// A member's header, or it is the end.
    Between,
    /// A member that was read from its start.
    Member,
    /// A block that will be entered: its output so far, and the high bits of the next byte that are its own.
    Entrance(Vec<u8>, u8),
    /// A member that was entered.
    Entered,
    /// The trailer of a member that was entered: so many bytes.
    Trailer(usize),
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(input: R, learner: Learner) -> Self {
        Self::at(input, learner, Place::Between)
    }

    pub(super) fn enter(input: R, window: &[u8], bits: u8) -> Self {
        Self::at(input, Learner::new(None), Place::Entrance(window.to_vec(), bits))
    }

    fn at(input: R, learner: Learner, place: Place) -> Self {
        Self { input, learner, inflate: Inflate::new(Wrapper::Gzip), place, offset: 0, at: 0, before: 0 }
    }

    /// As [`io::Read::read`], `buf` not being empty.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.input.fill_buf()?;
            let ended = input.is_empty();
            match &self.place {
                Place::Between if ended => return Ok(0),
                Place::Between if self.offset > 0 && input[0] != MAGIC => return Ok(0),
                Place::Between => {
                    self.inflate.reset(Wrapper::Gzip);
                    self.learner.start(self.offset);
                    self.place = Place::Member;
                }
                Place::Member | Place::Entered => {
                    let n = self.inflate(buf)?;
                    if n > 0 {
                        return Ok(n);
                    }
                    if ended && !matches!(self.place, Place::Between | Place::Trailer(_)) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Place::Entrance(..) | Place::Trailer(_) if ended => return Err(io::ErrorKind::UnexpectedEof.into()),
                Place::Entrance(window, bits) => {
                    let first = input[0];
                    self.inflate.enter(window, *bits, first);
                    let used = usize::from(*bits > 0);
                    self.place = Place::Entered;
                    self.consume(used, first);
                }
                Place::Trailer(0) => self.place = Place::Between,
                Place::Trailer(left) => {
                    let n = input.len().min(*left);
                    self.place = Place::Trailer(left - n);
                    self.consume(n, 0);
                }
            }
        }
    }

    fn consume(&mut self, n: usize, last: u8) {
        self.input.consume(n);
        self.offset += n as u64;
        self.before = last;
    }

    /// One step in a member.
    fn inflate(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let stride = self.learner.stride(self.at, self.offset);
        let room = buf.len().min(stride.output);
        let input = self.input.fill_buf()?;
        let input = &input[..input.len().min(stride.input)];
        let step = self.inflate.run(input, &mut buf[..room], stride.to_border).map_err(io::Error::other)?;
        let consumed = &input[..step.consumed];
        self.learner.decoded(self.at, consumed, step.produced);
        let last = *consumed.last().unwrap_or(&self.before);
        self.consume(step.consumed, last);
        self.at += step.produced as u64;
        match step.stop {
            Stop::Hungry => {}
            Stop::Block { bits } => {
                self.learner.border(self.at, self.offset, (self.before, bits), || self.inflate.window());
            }
            Stop::End => {
                self.learner.end();
                self.place = match self.place {
                    Place::Entered => Place::Trailer(TRAILER),
                    _ => Place::Between,
                };
            }
        }
        Ok(step.produced)
    }
}
