//! What the C library's allocator keeps of freed memory.

#![allow(unsafe_code)]

/// Processors to a heap, where two heaps are the fewest. Each keeps what is free in it; by default there are eight heaps for every
/// processor. With one, some 10 MiB less were in use than with two at the peak of a node with two processors, but threads wait for
/// each other in one: chosen, not measured on larger nodes.
#[cfg(target_env = "gnu")]
const SHARED_BY: usize = 4;

/// Bytes from which memory is mapped alone and given back when it is freed. By default the C library raises this, up to 32 MiB, to
/// the largest memory that was ever freed. Above what a read of a socket gives (680 KiB): with 256 KiB, 500 MB that do not compress
/// took 1.02 to 1.17 s instead of 0.81 to 0.86 over loopback.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 768 << 10;

/// Free bytes at a heap's end that are kept between two trims.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 8 << 20;

/// Lets the allocator keep little. To be called before there are other threads.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let heaps = libc::c_int::try_from(processors / SHARED_BY).unwrap_or(libc::c_int::MAX).max(2);
        for (what, value) in
            [(libc::M_ARENA_MAX, heaps), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, KEPT)]
        {
            // SAFETY: no memory is passed, and nobody allocates meanwhile. What is refused stays as it was.
            unsafe { libc::mallopt(what, value) };
        }
    }
}

/// Gives back what is free within heaps.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no memory is passed.
    unsafe {
        libc::malloc_trim(0);
    }
}
