//! System calls as the tracepoints `sys_enter` and `sys_exit` show them.
//!
//! Nothing here is specific to an architecture: the offsets of registers and the numbers of calls are globals that user space
//! sets, so that one object serves all.

use core::ptr;

use aya_ebpf::{Global, programs::BtfTracePointContext};

use crate::{
    SYSCALLS,
    kernel::{forgotten, in_compat_syscall, load},
    syscall_index,
};

/// Offset in `struct pt_regs` of the number of the call: `orig_ax` on x86, `syscallno` on aarch64.
#[unsafe(no_mangle)]
static REGS_SYSCALL: Global<u32> = Global::new(0);
/// Offsets in `struct pt_regs` of the first three arguments of a call, as they still are at return.
#[unsafe(no_mangle)]
static REGS_ARGUMENTS: Global<[u32; 3]> = Global::new([0; 3]);
/// The same for a 32-bit call.
#[unsafe(no_mangle)]
static REGS_COMPAT_ARGUMENTS: Global<[u32; 3]> = Global::new([0; 3]);
/// Offset in `struct pt_regs` of the fourth argument, of a native and of a 32-bit call.
#[unsafe(no_mangle)]
static REGS_FOURTH: Global<[u32; 2]> = Global::new([0; 2]);
/// Offsets in `struct pt_regs` of two registers that are equal in a native call: the SYSCALL instruction of x86-64 leaves the return
/// address in rcx (Intel SDM volume 2, SYSCALL), so `cx` equals `ip`. Looking costs two loads, asking the thread a helper call. Where they
/// differ (an `int 0x80`, a processor with FRED) the thread is asked. A program that makes them equal for its own 32-bit call has it
/// counted as the native one of that number: it fools only itself.
#[unsafe(no_mangle)]
static REGS_NATIVE_MARK: Global<[u32; 2]> = Global::new([0; 2]);
/// The number that the registers hold when `rt_sigreturn` has replaced them. A program that calls number -1 itself cannot be told
/// apart when it returns: its ENOSYS is not counted as an error.
const REPLACED: u32 = u32::MAX;
/// Native number of `rt_sigreturn`.
#[unsafe(no_mangle)]
static RT_SIGRETURN: Global<u32> = Global::new(15);

/// How a call returned.
#[derive(Clone, Copy)]
pub enum Return {
    /// No error.
    Success,
    /// With an errno.
    Error,
    /// A signal came: `ERESTARTSYS` and its kin (include/linux/errno.h), which user space sees as `EINTR` or not at all.
    Interrupted,
}

/// The index of the call that a thread enters.
#[inline(always)]
pub fn entered(ctx: &BtfTracePointContext) -> u32 {
    // Prototype: struct pt_regs *regs, long id (include/trace/events/syscalls.h).
    syscall_index(ctx.arg::<u32>(1), !surely_native(ctx) && in_compat_syscall())
}

/// Whether the registers alone show that the call is a native one. False says nothing.
#[inline(always)]
pub fn surely_native(ctx: &BtfTracePointContext) -> bool {
    let [one, other] = REGS_NATIVE_MARK.load();
    if one == other {
        return false;
    }
    let regs: *const u8 = ctx.arg(0);
    // SAFETY: the first argument of sys_enter and sys_exit is a BTF pointer to struct pt_regs.
    unsafe { load::<u64>(regs, one) == load::<u64>(regs, other) }
}

/// The index of the call that a thread returns from.
#[inline(always)]
pub fn returning(ctx: &BtfTracePointContext) -> u32 {
    // SAFETY: the first argument of sys_exit is a BTF pointer to struct pt_regs.
    let number: u32 = unsafe { load(ctx.arg::<*const u8>(0), REGS_SYSCALL.load()) };
    if number == REPLACED {
        return RT_SIGRETURN.load();
    }
    syscall_index(number, !surely_native(ctx) && in_compat_syscall())
}

/// Whether the value returned is that of an error: -4095 to -1 (MAX_ERRNO, include/linux/err.h).
#[inline(always)]
pub fn has_error(ctx: &BtfTracePointContext) -> bool {
    (ctx.arg::<i64>(1) as u64).wrapping_neg().wrapping_sub(1) < 4095
}

/// How the call returned. After `rt_sigreturn` the value is that of the interrupted code, not a result.
#[inline(always)]
pub fn returned(ctx: &BtfTracePointContext) -> Return {
    if !has_error(ctx) {
        return Return::Success;
    }
    let error = ctx.arg::<i64>(1).wrapping_neg();
    // SAFETY: as in `returning`.
    let number: u32 = unsafe { load(ctx.arg::<*const u8>(0), REGS_SYSCALL.load()) };
    match error {
        _ if number == REPLACED => Return::Success,
        // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK.
        512 | 513 | 514 | 516 => Return::Interrupted,
        _ => Return::Error,
    }
}

/// Whether this is the return of a new process or thread from the call that its parent made: a call that it never entered.
///
/// Fork returns twice; the child comes out of `ret_from_fork` with 0 and the parent's number.
#[inline(always)]
pub fn is_childs_return(ctx: &BtfTracePointContext, index: u32) -> bool {
    ctx.arg::<i64>(1) == 0 && FORKS.load().contains(&index)
}

/// Indexes of clone, clone3, fork, vfork and their 32-bit namesakes.
#[unsafe(no_mangle)]
static FORKS: Global<[u32; 8]> = Global::new([u32::MAX; 8]);

/// Indexes of the four calls that open files: native, then 32-bit. `u32::MAX` where an architecture lacks one.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct OpenSyscalls {
    /// `open(path, flags, mode)`.
    pub open: [u32; 2],
    /// `creat(path, mode)`.
    pub creat: [u32; 2],
    /// `openat(dirfd, path, flags, mode)`.
    pub openat: [u32; 2],
    /// `openat2(dirfd, path, how, size)`.
    pub openat2: [u32; 2],
}

impl OpenSyscalls {
    /// None of them.
    pub const NONE: Self =
        Self { open: [u32::MAX; 2], creat: [u32::MAX; 2], openat: [u32::MAX; 2], openat2: [u32::MAX; 2] };

    /// Whether an index is one of them.
    #[inline(always)]
    pub fn contains(&self, index: u32) -> bool {
        let Self { open, creat, openat, openat2 } = *self;
        is(openat, index) || is(open, index) || is(openat2, index) || is(creat, index)
    }
}

/// The arguments of a call that opens a file.
#[derive(Clone, Copy)]
pub struct OpenCall {
    /// Address of the path.
    pub path: u64,
    /// The directory it is relative to.
    pub dirfd: i32,
    /// Flags, or the address of `struct open_how`.
    pub flags: u64,
    /// Whether `flags` is an address.
    pub flags_in_memory: bool,
}

/// The first argument of the call that a thread returns from.
#[inline(always)]
pub fn first_argument(ctx: &BtfTracePointContext, index: u32) -> u64 {
    // SAFETY: the first argument of sys_exit is a BTF pointer to struct pt_regs.
    let [first, ..] = unsafe { arguments(ctx.arg(0), index >= crate::NATIVE_SYSCALLS) };
    first
}

/// A class for each system call, by its index; 0 for those that a probe does not look at.
pub type Classes = Global<[u8; SYSCALLS as usize]>;

/// The class of a system call. Not `Classes::load`, which would copy the table.
#[inline(always)]
pub fn class(classes: &'static Classes, index: u32) -> u8 {
    // The compiler knows the bound and would leave the mask out; the verifier does not.
    let index = forgotten(index as usize) & (SYSCALLS as usize - 1);
    // SAFETY: a `Global` is its value (repr(transparent)), and the index is within it.
    unsafe { ptr::read_volatile(ptr::from_ref(classes).cast::<u8>().add(index)) }
}

/// `AT_FDCWD` (include/uapi/linux/fcntl.h).
const AT_FDCWD: i32 = -100;
/// `O_CREAT | O_WRONLY | O_TRUNC` as creat(2) means them (include/uapi/asm-generic/fcntl.h).
const CREAT_FLAGS: u64 = 0o1101;

/// The arguments of a call that opens a file, from the registers that `sys_exit` still shows.
#[inline(always)]
pub fn open_call(ctx: &BtfTracePointContext, opens: &OpenSyscalls, index: u32) -> OpenCall {
    let regs: *const u8 = ctx.arg(0);
    let compat = index >= crate::NATIVE_SYSCALLS;
    // SAFETY: the first argument of sys_exit is a BTF pointer to struct pt_regs.
    let [first, second, third] = unsafe { arguments(regs, compat) };
    if is(opens.open, index) {
        OpenCall { path: first, dirfd: AT_FDCWD, flags: second, flags_in_memory: false }
    } else if is(opens.creat, index) {
        OpenCall { path: first, dirfd: AT_FDCWD, flags: CREAT_FLAGS, flags_in_memory: false }
    } else {
        let flags_in_memory = is(opens.openat2, index);
        OpenCall { path: second, dirfd: first as i32, flags: third, flags_in_memory }
    }
}

/// The first three arguments of a call that returns.
#[inline(always)]
pub fn call_arguments(ctx: &BtfTracePointContext, index: u32) -> [u64; 3] {
    // SAFETY: the first argument of sys_exit is a BTF pointer to struct pt_regs.
    unsafe { arguments(ctx.arg(0), index >= crate::NATIVE_SYSCALLS) }
}

/// The fourth argument of a call that returns.
#[inline(always)]
pub fn fourth_argument(ctx: &BtfTracePointContext, index: u32) -> u64 {
    let regs: *const u8 = ctx.arg(0);
    let [native, compat] = REGS_FOURTH.load();
    // SAFETY: as above.
    unsafe { if index >= crate::NATIVE_SYSCALLS { low(load(regs, compat)) } else { load(regs, native) } }
}

/// The first three arguments of a system call.
#[inline(always)]
unsafe fn arguments(regs: *const u8, compat: bool) -> [u64; 3] {
    // Two sets of loads, each at offsets that the verifier knows: it refuses a computed one.
    // SAFETY: the caller passes registers.
    unsafe {
        if compat {
            let [first, second, third] = REGS_COMPAT_ARGUMENTS.load();
            [low(load(regs, first)), low(load(regs, second)), low(load(regs, third))]
        } else {
            let [first, second, third] = REGS_ARGUMENTS.load();
            [load(regs, first), load(regs, second), load(regs, third)]
        }
    }
}

#[inline(always)]
fn low(register: u64) -> u64 {
    register & 0xffff_ffff
}

#[inline(always)]
fn is(pair: [u32; 2], index: u32) -> bool {
    index == pair[0] || index == pair[1]
}
