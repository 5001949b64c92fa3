//! Gives memory that was freed back to the kernel while layers arrive.
//!
//! Names, tables and buffers of layers come and go by the hundred megabytes when many images arrive at once, and the C library
//! keeps what is freed between what is not. (Nine real images of 2.5 GB at once over loopback, 2 cores, peak resident memory:
//! 263 to 313 MiB as it was, 193 with [`silk_sys::memory::keep_little`] alone, and with that 180, 158 and 123 to 155 when
//! trimming every 1000, 250 and 100 ms. None of them was slower.)

use std::time::Duration;

use silk_model::metrics::{METRICS, Way};

use crate::process;

/// Between two trims. See above.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of memory of its own below which nothing is given back while bytes come: what is trimmed is cleared by the kernel when it is used
/// again. Chosen, not measured, so that one image stays below it (a lazy ML image takes 65 MiB with its files' pages) and many do not: nine at
/// once still peak at 140 MiB.
const ROOM: u64 = 64 << 20;

/// Trims after the last bytes came: mounts are made then, and what was read ahead is dropped.
const AFTERWARDS: u32 = 20;

/// Runs until the daemon stops.
pub async fn run() {
    let written = || METRICS.written.of(Way::Cache).get() + METRICS.written.of(Way::Past).get();
    let (mut before, mut left) = (written(), 0);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = written();
        let coming = std::mem::replace(&mut before, now) != now;
        if coming {
            left = AFTERWARDS;
        }
        if left > 0 && !(coming && process::memory() < ROOM) {
            left -= 1;
            // Blocks for a millisecond or a few.
            let _ = tokio::task::spawn_blocking(silk_sys::memory::trim).await;
        }
    }
}
