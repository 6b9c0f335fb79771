//! Whole arrays in few system calls.
//!
//! Reading an array of a thousand values one at a time takes as many system calls, which a probe that counts them would show.

use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use aya::Pod;
use libbpf_rs::libbpf_sys;

/// What one call reads at most, in bytes.
const MOST_BYTES: usize = 1 << 20;

/// All values of an array of so many entries; for each entry so many values, of which each begins at a multiple of eight bytes (that is how
/// the kernel hands out those of per-CPU arrays) unless there is but one. `None` where the kernel has no such call: before 5.6, for per-CPU
/// arrays before 5.13.
pub(super) fn values<V: Pod>(map: BorrowedFd<'_>, entries: u32, each: usize) -> Option<Vec<V>> {
    let stride = if each == 1 { size_of::<V>() } else { size_of::<V>().next_multiple_of(8) };
    let entry_bytes = stride * each;
    let bytes = bytes(map, entries as usize, entry_bytes).ok()?;
    // SAFETY: there are as many bytes at each place as a value has, and a `Pod` may have any.
    let value = |place: &[u8]| unsafe { ptr::read_unaligned(place.as_ptr().cast::<V>()) };
    let whole = bytes.len() == entries as usize * entry_bytes;
    whole.then(|| bytes.chunks_exact(stride).map(value).collect())
}

fn bytes(map: BorrowedFd<'_>, entries: usize, entry_bytes: usize) -> io::Result<Vec<u8>> {
    let at_once = (MOST_BYTES / entry_bytes).clamp(1, entries.max(1));
    let (mut keys, mut read) = (vec![0_u32; at_once], Vec::with_capacity(entries * entry_bytes));
    let mut values = vec![0_u8; at_once * entry_bytes];
    let mut next = None;
    loop {
        let mut count = at_once as u32;
        let mut after = 0_u32;
        let from = next.as_mut().map_or(ptr::null_mut(), ptr::from_mut::<u32>).cast::<c_void>();
        // SAFETY: there is room for `count` keys and values, and for the place after them; the descriptor is open.
        let outcome = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_raw_fd(),
                from,
                (&raw mut after).cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &raw mut count,
                ptr::null(),
            )
        };
        // The end is an error, with what was read before it.
        let ended = outcome == -libc::ENOENT;
        if outcome < 0 && !ended {
            return Err(io::Error::from_raw_os_error(-outcome));
        }
        read.extend_from_slice(&values[..count as usize * entry_bytes]);
        if ended || read.len() >= entries * entry_bytes {
            return Ok(read);
        }
        next = Some(after);
    }
}
