//! The memory of a process.

use aya_ebpf::Global;

use crate::kernel::{load, read_kernel};

/// Where the first of the four counts of pages of a `struct mm_struct` is, and how far apart they are.
#[unsafe(no_mangle)]
static MM_RSS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MM_RSS_STRIDE: Global<u32> = Global::new(0);

/// Pages of files, anonymous memory, swap and shared memory (the order of `MM_*`, include/linux/mm_types_task.h); zeros without memory.
///
/// # Safety
///
/// `mm` points to a `struct mm_struct`, or nowhere.
#[inline(always)]
pub unsafe fn pages(mm: *const u8) -> [u64; 4] {
    let (first, stride) = (MM_RSS.load() as usize, MM_RSS_STRIDE.load() as usize);
    // SAFETY: the helper checks addresses.
    unsafe {
        [
            read_kernel(mm.wrapping_add(first)),
            read_kernel(mm.wrapping_add(first + stride)),
            read_kernel(mm.wrapping_add(first + 2 * stride)),
            read_kernel(mm.wrapping_add(first + 3 * stride)),
        ]
    }
}

/// Resident pages by plain loads, on kernels that have [`current_task`](crate::kernel::current_task).
///
/// # Safety
///
/// `mm` is a BTF pointer to a `struct mm_struct` as the verifier knows them, and not null.
#[inline(always)]
pub unsafe fn resident_of_trusted(mm: *const u8) -> u64 {
    let (first, stride) = (MM_RSS.load(), MM_RSS_STRIDE.load());
    // SAFETY: the caller's promise.
    unsafe { resident([load(mm, first), load(mm, first + stride), 0, load(mm, first + 3 * stride)]) }
}

/// All that is in memory. The sum of a counter may be below zero for a moment.
#[inline(always)]
pub fn resident([file, anonymous, _, shared]: [u64; 4]) -> u64 {
    file.wrapping_add(anonymous).wrapping_add(shared)
}
