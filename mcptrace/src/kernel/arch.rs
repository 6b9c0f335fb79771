//! What differs between architectures: registers, system call numbers and their names. The kernel side has none of it.

use mcptrace_wire::{NATIVE_SYSCALLS, UNKNOWN_SYSCALL};

/// The system calls of the 32-bit programs that it can run.
#[cfg(target_arch = "x86_64")]
use syscalls::x86::Sysno as Compat;
/// The native system calls of this architecture.
#[cfg(target_arch = "x86_64")]
use syscalls::x86_64::Sysno as Native;

#[cfg(target_arch = "aarch64")]
use syscalls::aarch64::Sysno as Native;
#[cfg(target_arch = "aarch64")]
use syscalls::arm::Sysno as Compat;

/// How this architecture keeps system calls.
#[derive(Debug)]
pub struct Arch {
    /// Offset of the call's number in `struct pt_regs`.
    pub regs_syscall: u32,
    /// Offsets of the first three arguments, as they still are when the call returns.
    pub regs_arguments: [u32; 3],
    /// The same for a 32-bit call.
    pub regs_compat_arguments: [u32; 3],
    /// Offset of the fourth argument, of a native and of a 32-bit call.
    pub regs_fourth: [u32; 2],
    /// Offsets of the first three arguments of a function and of what it returns.
    pub regs_function: [u32; 4],
    /// Offset of the stack pointer.
    pub regs_stack: u32,
    /// What a return takes off the stack, in bytes.
    pub return_pops: u32,
    /// Offsets of two registers that are equal in a native call and hardly ever in another; equal offsets where there are none.
    pub regs_native_mark: [u32; 2],
    /// The member of `struct task_struct` that tells 32-bit calls apart.
    pub compat_word: &'static str,
    /// The bit in it.
    pub compat_mask: u32,
    /// What stands before the name of a 32-bit call.
    pub compat_prefix: &'static str,
}

/// x86: arch/x86/include/asm/ptrace.h; `TS_COMPAT` of arch/x86/include/asm/thread_info.h.
#[cfg(target_arch = "x86_64")]
pub const ARCH: Arch = Arch {
    regs_syscall: 120,
    regs_arguments: [112, 104, 96],
    regs_compat_arguments: [40, 88, 96],
    // r10 and si.
    regs_fourth: [56, 104],
    regs_function: [112, 104, 96, 80],
    regs_stack: 152,
    return_pops: 8,
    regs_native_mark: [88, 128],
    compat_word: "thread_info.status",
    compat_mask: 2,
    compat_prefix: "i386:",
};

/// aarch64: arch/arm64/include/asm/ptrace.h, where the first register holds the result at return and `orig_x0` the argument;
/// `TIF_32BIT` of arch/arm64/include/asm/thread_info.h.
#[cfg(target_arch = "aarch64")]
pub const ARCH: Arch = Arch {
    regs_syscall: 280,
    regs_arguments: [272, 8, 16],
    regs_compat_arguments: [272, 8, 16],
    regs_fourth: [24, 24],
    regs_function: [0, 8, 16, 0],
    regs_stack: 248,
    return_pops: 0,
    regs_native_mark: [0, 0],
    compat_word: "thread_info.flags",
    compat_mask: 1 << 22,
    compat_prefix: "arm:",
};

/// Registers by their names in assembly, with their offsets in `struct pt_regs`.
#[cfg(target_arch = "x86_64")]
const REGISTERS: &[(&[&str], u16)] = &[
    (&["r15", "r15d", "r15w", "r15b"], 0),
    (&["r14", "r14d", "r14w", "r14b"], 8),
    (&["r13", "r13d", "r13w", "r13b"], 16),
    (&["r12", "r12d", "r12w", "r12b"], 24),
    (&["rbp", "ebp", "bp", "bpl"], 32),
    (&["rbx", "ebx", "bx", "bl"], 40),
    (&["r11", "r11d", "r11w", "r11b"], 48),
    (&["r10", "r10d", "r10w", "r10b"], 56),
    (&["r9", "r9d", "r9w", "r9b"], 64),
    (&["r8", "r8d", "r8w", "r8b"], 72),
    (&["rax", "eax", "ax", "al"], 80),
    (&["rcx", "ecx", "cx", "cl"], 88),
    (&["rdx", "edx", "dx", "dl"], 96),
    (&["rsi", "esi", "si", "sil"], 104),
    (&["rdi", "edi", "di", "dil"], 112),
    (&["rsp", "esp", "sp", "spl"], 152),
];

/// The offset in `struct pt_regs` of a register, by its name in assembly.
#[cfg(target_arch = "x86_64")]
pub fn register(name: &str) -> Option<u16> {
    let name = name.strip_prefix('%')?;
    REGISTERS.iter().find(|(names, _)| names.contains(&name)).map(|(_, offset)| *offset)
}

/// The same: `x0` to `x30`, their lower halves `w0` to `w30`, and `sp`.
#[cfg(target_arch = "aarch64")]
pub fn register(name: &str) -> Option<u16> {
    if name == "sp" {
        return Some(ARCH.regs_stack as u16);
    }
    let number: u16 = name.strip_prefix(['x', 'w'])?.parse().ok()?;
    (number <= 30).then_some(number * 8)
}

/// The name of the call with an index (see [`mcptrace_wire::syscall_index`]); its number where the tables do not have it.
pub fn syscall_name(index: u32) -> String {
    if index == UNKNOWN_SYSCALL {
        return "unknown".to_owned();
    }
    if index < NATIVE_SYSCALLS {
        return Native::new(index as usize).map_or_else(|| format!("syscall_{index}"), |call| call.name().to_owned());
    }
    let number = index - NATIVE_SYSCALLS;
    let name = Compat::new(number as usize).map_or_else(|| format!("syscall_{number}"), |call| call.name().to_owned());
    format!("{}{name}", ARCH.compat_prefix)
}

/// The index of a call by its name, with the architecture's prefix for a 32-bit one.
pub fn syscall_by_name(name: &str) -> Option<u32> {
    if let Some(name) = name.strip_prefix(ARCH.compat_prefix) {
        return name.parse::<Compat>().ok().map(|call| NATIVE_SYSCALLS + call.id() as u32);
    }
    name.parse::<Native>().ok().map(|call| call.id() as u32)
}

/// Native and 32-bit index of a call; `u32::MAX` where a table does not have it.
pub fn syscall_pair(name: &str) -> [u32; 2] {
    let compat = format!("{}{name}", ARCH.compat_prefix);
    [name, compat.as_str()].map(|name| syscall_by_name(name).unwrap_or(u32::MAX))
}

/// The names of all native calls.
pub fn syscall_names() -> impl Iterator<Item = &'static str> {
    Native::iter().map(|call| call.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indexes_go_both_ways() {
        for name in syscall_names() {
            assert_eq!(syscall_name(syscall_by_name(name).unwrap()), name);
        }
        assert_eq!(syscall_by_name("no_such_call"), None);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_32_bit_call_has_its_own_table() {
        // arch/x86/entry/syscalls/syscall_32.tbl: 5 is open; syscall_64.tbl: 5 is fstat, 2 is open.
        assert_eq!(syscall_name(NATIVE_SYSCALLS + 5), "i386:open");
        assert_eq!(syscall_name(5), "fstat");
        assert_eq!(syscall_pair("open"), [2, NATIVE_SYSCALLS + 5]);
        assert_eq!(syscall_name(UNKNOWN_SYSCALL), "unknown");
    }
}
