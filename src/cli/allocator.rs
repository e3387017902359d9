//! The C library's allocator, asked to give large buffers back at once. The only unsafe code.
//!
//! By itself it raises the size from which a buffer is a mapping of its own to that of the largest
//! one that was ever freed, and keeps what lies below. With frames of some MiB going from thread to
//! thread, each with an arena of its own, that holds about 50 MiB that nobody uses.

/// From this size on a buffer is a mapping of its own, in bytes: less than a piece or a frame.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 1 << 20;

/// To be called before anything is allocated that matters. Other C libraries need no asking.
#[allow(unsafe_code)]
pub fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two integers by value, no pointers; glibc locks its arenas while it sets the
    // parameter. Refused, it returns 0, and all goes on with more memory.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}
