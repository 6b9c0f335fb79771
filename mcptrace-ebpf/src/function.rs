//! What a program at a function of user space shows: arguments, result, stack pointer.
//!
//! Such programs may run one in the midst of another on a CPU: they count with [`crate::kernel::count_shared`] and have no per-CPU scratch
//! space.

use aya_ebpf::{EbpfContext, Global};

use crate::kernel::read_kernel;

/// Offsets in `struct pt_regs` of the first three arguments of a function, and of what it returns.
#[unsafe(no_mangle)]
static REGS_FUNCTION: Global<[u32; 4]> = Global::new([0; 4]);
/// Offset in `struct pt_regs` of the stack pointer.
#[unsafe(no_mangle)]
static REGS_STACK: Global<u32> = Global::new(0);
/// What a return takes off the stack: the return address, on some architectures.
#[unsafe(no_mangle)]
static RETURN_POPS: Global<u32> = Global::new(0);

/// One of the first three arguments, at entry.
#[inline(always)]
pub fn argument<C: EbpfContext>(ctx: &C, index: usize) -> u64 {
    register(ctx, REGS_FUNCTION.load()[index])
}

/// What the function returns, at return.
#[inline(always)]
pub fn result<C: EbpfContext>(ctx: &C) -> u64 {
    register(ctx, REGS_FUNCTION.load()[3])
}

/// The stack pointer at entry.
#[inline(always)]
pub fn stack_at_entry<C: EbpfContext>(ctx: &C) -> u64 {
    register(ctx, REGS_STACK.load())
}

/// The stack pointer that the call had at its entry, at return.
#[inline(always)]
pub fn stack_of_return<C: EbpfContext>(ctx: &C) -> u64 {
    stack_at_entry(ctx).wrapping_sub(u64::from(RETURN_POPS.load()))
}

/// A register by its offset in `struct pt_regs`. By the helper, because the verifier wants constant offsets into the context.
#[inline(always)]
pub fn register<C: EbpfContext>(ctx: &C, offset: u32) -> u64 {
    // SAFETY: the context is the thread's registers.
    unsafe { read_kernel(ctx.as_ptr().cast::<u8>().wrapping_add(offset as usize)) }
}
