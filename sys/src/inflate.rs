//! Inflate that can stop at the borders of deflate blocks, and begin there again: zlib-rs through its C interface,
//! because the safe one (`zlib_rs::Inflate`, and flate2 above it) tells neither the bit at which it stopped nor its
//! window. Called by `layer` for every gzip layer; pure computing.

#![allow(unsafe_code)]

use std::{ffi::CStr, fmt, mem};

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd,
    inflateGetDictionary, inflateInit2_, inflatePrime, inflateReset2, inflateSetDictionary, z_stream, zlibVersion,
};

/// How far back deflate reaches: what must be known of the output before a block in order to begin at it.
pub const WINDOW: usize = 32 << 10;

/// What is around the deflate blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapper {
    /// A gzip member: its header is read, its sum and length are checked.
    Gzip,
    /// Nothing.
    Raw,
}

impl Wrapper {
    /// zlib's code for it, with the largest window.
    fn window_bits(self) -> i32 {
        match self {
            Self::Gzip => 16 + 15,
            Self::Raw => -15,
        }
    }
}

/// Where a [`Inflate::run`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It wants more input, or more room.
    Hungry,
    /// Between two blocks, or between the header and the first block; never behind the last.
    Block {
        /// How many of the high bits of the last byte of input belong to the next block: 0 to 7.
        bits: u8,
    },
    /// Behind the end: behind the gzip member's trailer, or the last block.
    End,
}

/// What one [`Inflate::run`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes of input that were used.
    pub consumed: usize,
    /// Bytes of output that were written.
    pub produced: usize,
    /// Why it stopped.
    pub stop: Stop,
}

/// The input is no such stream: what zlib says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InflateError(pub &'static str);

/// A stream that is being inflated.
pub struct Inflate {
    stream: z_stream,
}

// SAFETY: the stream owns what `state` points to (allocated by `inflateInit2_` with the global allocator, freed by
// `inflateEnd`), nothing else has it; `next_in` and `next_out` are null between calls; `msg` points to static text.
unsafe impl Send for Inflate {}

impl fmt::Debug for Inflate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflate").field("total_out", &self.stream.total_out).finish_non_exhaustive()
    }
}

impl Inflate {
    /// Before the first byte of a stream.
    pub fn new(wrapper: Wrapper) -> Self {
        let mut stream = z_stream::default();
        let size = i32::try_from(mem::size_of::<z_stream>()).expect("a structure of a hundred bytes");
        // SAFETY: the stream is a default one, so its allocator is set; the version is a static C string.
        let code = unsafe { inflateInit2_(&mut stream, wrapper.window_bits(), zlibVersion(), size) };
        assert_eq!(code, Z_OK, "zlib gets its memory, and takes a window size that it documents");
        Self { stream }
    }

    /// As [`Self::new`], with the memory that is there.
    pub fn reset(&mut self, wrapper: Wrapper) {
        // SAFETY: `new` initialized the stream.
        let code = unsafe { inflateReset2(&mut self.stream, wrapper.window_bits()) };
        assert_eq!(code, Z_OK, "zlib takes a window size that it documents");
    }

    /// Goes to the border of a raw stream's block: `window` is the output before it (the last [`WINDOW`] bytes count),
    /// `bits` (0 to 7) the number of high bits of `byte`, the input before it, that belong to the block.
    ///
    /// # Panics
    /// If `bits` is more than 7.
    pub fn enter(&mut self, window: &[u8], bits: u8, byte: u8) {
        assert!(bits < 8, "a byte has no more bits to give");
        self.reset(Wrapper::Raw);
        let window = &window[window.len().saturating_sub(WINDOW)..];
        let value = i32::from(byte) >> (8 - bits);
        // SAFETY: `new` initialized the stream; the window is a slice of at most 32 KiB, which zlib copies.
        let codes = unsafe {
            [
                inflatePrime(&mut self.stream, i32::from(bits), value),
                inflateSetDictionary(&mut self.stream, window.as_ptr(), window.len() as u32),
            ]
        };
        assert_eq!(codes, [Z_OK; 2], "a raw stream takes bits and a window before its first block");
    }

    /// Inflates until the input is used up or the output is full; if asked to, no further than the next border of blocks.
    ///
    /// # Errors
    /// When the input is damaged. Every later call is an error too.
    pub fn run(&mut self, input: &[u8], output: &mut [u8], to_border: bool) -> Result<Step, InflateError> {
        let (given, room) = (clamp(input.len()), clamp(output.len()));
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = given;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room;
        // SAFETY: `new` initialized the stream; `next_in` and `next_out` point to at least `avail_in` readable and
        // `avail_out` writable bytes that live over the call and do not overlap.
        let code = unsafe { inflate(&mut self.stream, if to_border { Z_BLOCK } else { Z_NO_FLUSH }) };
        let step = |stop| Step {
            consumed: (given - self.stream.avail_in) as usize,
            produced: (room - self.stream.avail_out) as usize,
            stop,
        };
        let result = match code {
            Z_STREAM_END => Ok(step(Stop::End)),
            Z_OK | Z_BUF_ERROR if to_border && self.stream.data_type & (BORDER | LAST) == BORDER => {
                Ok(step(Stop::Block { bits: (self.stream.data_type & UNUSED_BITS) as u8 }))
            }
            Z_OK | Z_BUF_ERROR => Ok(step(Stop::Hungry)),
            Z_DATA_ERROR => Err(InflateError(self.message())),
            Z_NEED_DICT => Err(InflateError("needs a dictionary")),
            // Z_MEM_ERROR and Z_STREAM_ERROR: nothing that a valid stream and valid buffers lead to.
            other => panic!("zlib answers {other}"),
        };
        self.stream.next_in = std::ptr::null();
        self.stream.avail_in = 0;
        self.stream.next_out = std::ptr::null_mut();
        self.stream.avail_out = 0;
        result
    }

    /// The last output, up to [`WINDOW`] bytes of it (and of what was entered with): what begins at a border needs.
    pub fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW];
        let mut len = 0;
        // SAFETY: `new` initialized the stream; 32 KiB are what zlib may write at most.
        let code = unsafe { inflateGetDictionary(&self.stream, window.as_mut_ptr(), &mut len) };
        assert_eq!(code, Z_OK, "every initialized stream has a window");
        window.truncate(len as usize);
        window
    }

    fn message(&self) -> &'static str {
        if self.stream.msg.is_null() {
            return "invalid data";
        }
        // SAFETY: zlib sets `msg` to null or to one of its static texts.
        unsafe { CStr::from_ptr(self.stream.msg) }.to_str().unwrap_or("invalid data")
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: `new` initialized the stream, and this is its last use.
        unsafe { inflateEnd(&mut self.stream) };
    }
}

/// zlib's `data_type` after `inflate`: set at the border of a block.
const BORDER: i32 = 128;
/// zlib's `data_type` after `inflate`: set in and behind the last block.
const LAST: i32 = 64;
/// zlib's `data_type` after `inflate`: the number of bits of the last byte that are not used yet.
const UNUSED_BITS: i32 = 7;

fn clamp(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two stored blocks of raw deflate, "ab" and "cd", and an empty fixed one between them: 10 bits.
    const RAW: [u8; 15] = [0, 2, 0, 0xfd, 0xff, b'a', b'b', 0x02, 0x04, 2, 0, 0xfd, 0xff, b'c', b'd'];

    #[test]
    fn borders_are_told_with_their_bits_and_can_be_entered() {
        let mut inflate = Inflate::new(Wrapper::Raw);
        let mut out = [0; 10];
        let mut borders = Vec::new();
        let (mut from, mut to) = (0, 0);
        loop {
            let step = inflate.run(&RAW[from..], &mut out[to..], true).unwrap();
            (from, to) = (from + step.consumed, to + step.produced);
            match step.stop {
                Stop::Block { bits } => borders.push((from, to, bits)),
                Stop::End => break,
                Stop::Hungry => {}
            }
        }
        assert_eq!(&out[..to], b"abcd");
        assert_eq!(borders, [(7, 2, 0), (9, 2, 6)]);
        for (from, to, bits) in borders {
            let mut inflate = Inflate::new(Wrapper::Gzip);
            inflate.enter(b"ab", bits, RAW[from - 1]);
            let step = inflate.run(&RAW[from..], &mut out, false).unwrap();
            assert_eq!((step.produced, step.stop), (4 - to, Stop::End));
            assert_eq!(&out[..2], b"cd");
            assert_eq!(inflate.window(), b"abcd");
        }
    }

    #[test]
    fn damage_is_told_and_stays() {
        let mut inflate = Inflate::new(Wrapper::Gzip);
        let mut run = || inflate.run(b"no gzip at all", &mut [0; 10], false).unwrap_err();
        assert_eq!(run(), InflateError("incorrect header check"));
        run();
        inflate.reset(Wrapper::Raw);
        assert!(inflate.run(&[7], &mut [0; 10], false).is_err());
        inflate.reset(Wrapper::Raw);
        assert_eq!(inflate.run(&[], &mut [], true).unwrap(), Step { consumed: 0, produced: 0, stop: Stop::Hungry });
    }
}
