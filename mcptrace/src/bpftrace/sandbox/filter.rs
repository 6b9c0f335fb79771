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

/// Processes, other processes, signals, and what decides when they run.
const PROCESSES: &[c_long] = &[
    libc::SYS_execveat,
    libc::SYS_kcmp,
    libc::SYS_get_robust_list,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setaffinity,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_personality,
    libc::SYS_setrlimit,
    PROCESS_MRELEASE,
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
    OPEN_TREE_ATTR,
    STATMOUNT,
    LISTMOUNT,
    LISTNS,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    QUOTACTL_FD,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
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
    libc::SYS_fanotify_mark,
    LSM_SET_SELF_ATTR,
    FILE_SETATTR,
];

// What is newer than the table of libc: `include/uapi/asm-generic/unistd.h` up to Linux 7.1, the same numbers on all processors. What came
// after 424 and stands in no list here is about the caller's own memory, files that it may open, and its own Landlock rules.
const QUOTACTL_FD: c_long = 443;
const MEMFD_SECRET: c_long = 447;
const PROCESS_MRELEASE: c_long = 448;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const LSM_SET_SELF_ATTR: c_long = 460;
const OPEN_TREE_ATTR: c_long = 467;
const FILE_SETATTR: c_long = 469;
const LISTNS: c_long = 470;

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
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    // Memory that the kernel, and whoever looks into the box, cannot read.
    MEMFD_SECRET,
];

/// Those that not all processors have.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE_OF_CALL: u32 = 4;
/// The low half of the first argument, on little-endian processors.
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = FIRST_ARGUMENT + 8;
const THIRD_ARGUMENT: u32 = SECOND_ARGUMENT + 8;
/// Settings of a process that bpftrace has no business with: a death signal that would be called off, a tracer that would be let in, and the
/// borders of its memory.
const SETTINGS: &[libc::c_int] = &[libc::PR_SET_PDEATHSIG, libc::PR_SET_PTRACER, libc::PR_SET_MM, libc::PR_SCHED_CORE];
/// Limits that bpftrace raises for itself.
const LIMITS: &[libc::__rlimit_resource_t] = &[libc::RLIMIT_MEMLOCK, libc::RLIMIT_NOFILE];

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
    program.extend(unless_own_limits(refused));
    program.extend(without_settings(refused));
    // Its flags lie in memory, where a filter cannot look; libc then uses the old one. Without the other bpftrace looks at /proc.
    let missing = [libc::SYS_clone3, libc::SYS_pidfd_open];
    program.extend(missing.iter().flat_map(|call| [equal(*call as u32, 0, 1), give(unknown)]));
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

/// Limits of other processes are neither set nor read; its own are read, which libc does, and those set that bpftrace raises.
fn unless_own_limits(refused: u32) -> Vec<sock_filter> {
    let limits = LIMITS.len() as u8;
    let mut program = vec![
        equal(libc::SYS_prlimit64 as u32, 0, limits + 9),
        load(FIRST_ARGUMENT),
        equal(0, 0, limits + 5),
        // Without new limits, a pointer of which both halves are 0, they are read.
        load(THIRD_ARGUMENT),
        equal(0, 0, 2),
        load(THIRD_ARGUMENT + 4),
        equal(0, limits + 2, 0),
        load(SECOND_ARGUMENT),
    ];
    program.extend(LIMITS.iter().enumerate().map(|(at, limit)| equal(*limit, limits - at as u8, 0)));
    program.extend([give(refused), give(libc::SECCOMP_RET_ALLOW)]);
    program
}

/// Settings of prctl(2) that are refused.
fn without_settings(refused: u32) -> Vec<sock_filter> {
    let settings = SETTINGS.len() as u8;
    let mut program = vec![equal(libc::SYS_prctl as u32, 0, settings + 3), load(FIRST_ARGUMENT)];
    program.extend(SETTINGS.iter().enumerate().map(|(at, setting)| equal(*setting as u32, settings - at as u8, 0)));
    program.extend([give(libc::SECCOMP_RET_ALLOW), give(refused)]);
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

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
    const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    /// What the kernel would do with a call: runs the filter over its `struct seccomp_data`.
    fn judge(call: c_long, arguments: [u64; 3]) -> u32 {
        let mut data = vec![0_u8; 16];
        data[..4].copy_from_slice(&(call as u32).to_le_bytes());
        data[4..8].copy_from_slice(&ARCHITECTURE.to_le_bytes());
        data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let program = program();
        let (mut at, mut value) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let code = u32::from(code);
            at += 1;
            match code & 7 {
                libc::BPF_LD => value = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
                libc::BPF_RET => return k,
                _ => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JEQ => value == k,
                        libc::BPF_JGE => value >= k,
                        _ => value & k != 0,
                    };
                    at += usize::from(if holds { jt } else { jf });
                }
            }
        }
    }

    #[test]
    fn calls_are_refused_that_reach_beyond_the_process() {
        if ARCHITECTURE == 0 {
            return;
        }
        for call in [PROCESSES, MACHINE, OUT, OLD].concat() {
            assert_eq!(judge(call, [0; 3]), REFUSED, "{call}");
        }
        for call in [libc::SYS_clone3, libc::SYS_pidfd_open] {
            assert_eq!(judge(call, [0; 3]), UNKNOWN, "{call}");
        }
        for call in
            [libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_mmap, libc::SYS_execve, libc::SYS_name_to_handle_at]
        {
            assert_eq!(judge(call, [0; 3]), ALLOWED, "{call}");
        }
        assert_eq!(judge(i64::from(X32) + 1, [0; 3]), REFUSED);
        assert_eq!(judge(libc::SYS_clone, [libc::CLONE_THREAD as u64, 0, 0]), ALLOWED);
        assert_eq!(judge(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]), REFUSED);
    }

    #[test]
    fn limits_are_read_and_two_of_its_own_set() {
        let limit =
            |process: u64, resource: u32, new: u64| judge(libc::SYS_prlimit64, [process, u64::from(resource), new]);
        for resource in [libc::RLIMIT_MEMLOCK, libc::RLIMIT_NOFILE] {
            assert_eq!(limit(0, resource, 0x7fff_0000_1000), ALLOWED);
        }
        for new in [0x1000, 1 << 32] {
            assert_eq!(limit(0, libc::RLIMIT_FSIZE, new), REFUSED, "{new:x}");
        }
        assert_eq!(limit(0, libc::RLIMIT_STACK, 0), ALLOWED, "libc asks");
        for process in [1, u64::from(u32::MAX)] {
            assert_eq!(limit(process, libc::RLIMIT_MEMLOCK, 0), REFUSED);
            assert_eq!(limit(process, libc::RLIMIT_MEMLOCK, 1), REFUSED);
        }
    }

    #[test]
    fn its_death_signal_is_not_called_off() {
        for setting in SETTINGS {
            assert_eq!(judge(libc::SYS_prctl, [*setting as u64, 0, 0]), REFUSED, "{setting}");
        }
        for setting in [libc::PR_SET_NAME, libc::PR_GET_PDEATHSIG, libc::PR_CAPBSET_READ] {
            assert_eq!(judge(libc::SYS_prctl, [setting as u64, 0, 0]), ALLOWED, "{setting}");
        }
    }
}
