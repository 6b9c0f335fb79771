//! System calls that a script's bpftrace is refused: a classic BPF program for seccomp(2). Pure.
//!
//! It is a list of what is refused and not of what is allowed: what LLVM and libc call changes with each version of them.

use libc::{c_long, sock_filter};

/// `include/uapi/linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: u32 = 0;

/// Processes, other processes, signals.
const PROCESSES: &[c_long] = &[
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_setns,
    libc::SYS_unshare,
];

/// The machine and its file systems.
const MACHINE: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
];

/// Ways out, and around this filter.
const OUT: &[c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
];

/// Those that not all processors have.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] =
    &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_mknod, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_kexec_file_load];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE_OF_CALL: u32 = 4;
/// The low half of the first argument, on little-endian processors.
const FIRST_ARGUMENT: u32 = 16;

/// Numbers from here on are of the x32 ABI.
const X32: u32 = 0x4000_0000;

/// The filter; empty for processors that it does not know.
pub(super) fn program() -> Vec<sock_filter> {
    if ARCHITECTURE == 0 {
        return Vec::new();
    }
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let mut program =
        vec![load(ARCHITECTURE_OF_CALL), equal(ARCHITECTURE, 1, 0), give(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER)];
    program.extend([jump(libc::BPF_JGE, X32, 0, 1), give(refused)]);
    let all = [PROCESSES, MACHINE, OUT, OLD].concat();
    program.extend(all.iter().flat_map(|call| [equal(*call as u32, 0, 1), give(refused)]));
    // Its flags lie in memory, where a filter cannot look; libc then uses the old one.
    program.extend([equal(libc::SYS_clone3 as u32, 0, 1), give(unknown)]);
    // Threads are allowed, and children that stop their parent until they run a program: bpftrace 0.17 asks a shell for the folders of
    // a compiler, and crashes where it cannot.
    program.extend([equal(libc::SYS_clone as u32, 0, 3), load(FIRST_ARGUMENT)]);
    program.extend([
        jump(libc::BPF_JSET, (libc::CLONE_THREAD | libc::CLONE_VFORK) as u32, 1, 0),
        give(refused),
        give(libc::SECCOMP_RET_ALLOW),
    ]);
    program
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn give(value: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, value)
}

fn equal(value: u32, then: u8, otherwise: u8) -> sock_filter {
    jump(libc::BPF_JEQ, value, then, otherwise)
}

/// Instructions to skip in either case.
fn jump(test: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt: then, jf: otherwise, k: value }
}

fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}
