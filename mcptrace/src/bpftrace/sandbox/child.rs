//! What the child does between fork and exec: system calls and nothing else, since another thread may have held any lock.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
};

use super::Cgroup;

/// What bpftrace needs of root's rights: `CAP_DAC_READ_SEARCH`, `CAP_IPC_LOCK` (perf buffers), `CAP_SYS_PTRACE` (symbols of processes),
/// `CAP_SYSLOG` (addresses of kernel symbols), `CAP_PERFMON`, `CAP_BPF`.
const KEPT: &[u32] = &[2, 14, 19, 34, 38, 39];
/// `CAP_SYS_ADMIN`, in whose place Linux 5.8 put the last two.
const SYS_ADMIN: u32 = 21;

/// Data of bpftrace where no control group bounds it, in bytes.
const DATA: u64 = 1 << 30;
/// Open files: one or two for each probe.
const FILES: u64 = 4096;

/// A step of building the folders that the child sees.
#[derive(Debug)]
pub(super) enum Place {
    Folder(CString),
    File(CString),
    Link { to: CString, at: CString },
    Bind { from: CString, to: CString },
}

/// What the child will see.
#[derive(Debug)]
pub(super) struct View {
    /// A folder on which the new root is put together.
    pub(super) base: CString,
    pub(super) places: Vec<Place>,
}

/// All that the child does to itself.
#[derive(Debug)]
pub(crate) struct Steps {
    /// `cgroup.procs` of each hierarchy.
    pub(super) cgroups: Vec<OwnedFd>,
    pub(super) view: Option<View>,
    pub(super) network: bool,
    pub(super) capabilities: bool,
    /// Whether the launcher is another user: bpftrace before 0.25 runs as root only.
    pub(super) become_root: bool,
    pub(super) landlock: Option<OwnedFd>,
    pub(super) filter: Vec<libc::sock_filter>,
}

impl Steps {
    pub(super) fn joining(mut self, cgroup: Option<&Cgroup>) -> io::Result<Self> {
        self.cgroups = cgroup.map_or_else(|| Ok(Vec::new()), Cgroup::entries)?;
        Ok(self)
    }

    /// Enters the box, all but its [`Self::seal`]. An error means that the program must not be run.
    pub(crate) fn enter(&self) -> io::Result<()> {
        bound();
        self.cgroups.iter().try_for_each(join)?;
        if self.network {
            // SAFETY: no memory is involved.
            checked(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) })?;
        }
        self.view.as_ref().map_or(Ok(()), View::enter)?;
        if self.capabilities {
            drop_capabilities()?;
        }
        // SAFETY: no memory is involved.
        checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        if self.become_root {
            become_root()?;
        }
        self.landlock.as_ref().map_or(Ok(()), restrict)?;
        forget_files();
        Ok(())
    }

    /// Gives up the system calls that the box refuses: last, since its death signal can be set no more.
    pub(crate) fn seal(&self) -> io::Result<()> {
        if self.filter.is_empty() { Ok(()) } else { install(&self.filter) }
    }
}

/// Limits that hold whatever the machine gives. Each is a further fence: one that cannot be set does not stop the start.
fn bound() {
    let set = |resource, current: u64, most: u64| {
        let limit = libc::rlimit { rlim_cur: current, rlim_max: most };
        // SAFETY: the limit outlives the call.
        unsafe { libc::setrlimit(resource, &raw const limit) }
    };
    set(libc::RLIMIT_FSIZE, 0, 0);
    set(libc::RLIMIT_DATA, DATA, DATA);
    set(libc::RLIMIT_NOFILE, FILES, FILES);
    set(libc::RLIMIT_MSGQUEUE, 0, 0);
    // Maps are counted here before Linux 5.11, and bpftrace will not have the right to raise it.
    set(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
}

fn join(procs: &OwnedFd) -> io::Result<()> {
    // SAFETY: the byte outlives the call.
    let written = unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) };
    if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl View {
    fn enter(&self) -> io::Result<()> {
        // SAFETY: no memory is involved.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // Nothing that is mounted from here on may show outside.
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
        mount(Some(c"tmpfs"), &self.base, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)?;
        // SAFETY: the path is a C string.
        checked(unsafe { libc::chdir(self.base.as_ptr()) })?;
        self.places.iter().try_for_each(Place::make)?;
        // SAFETY: the paths are C strings.
        checked(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) } as i32)?;
        // SAFETY: the path is a C string.
        checked(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
        // SAFETY: the path is a C string.
        checked(unsafe { libc::chdir(c"/".as_ptr()) })?;
        read_only()
    }
}

impl Place {
    fn make(&self) -> io::Result<()> {
        match self {
            // SAFETY: the path is a C string.
            Self::Folder(at) => checked(unsafe { libc::mkdir(at.as_ptr(), 0o755) }),
            // SAFETY: the path is a C string.
            Self::File(at) => checked(unsafe { libc::mknod(at.as_ptr(), libc::S_IFREG | 0o644, 0) }),
            // SAFETY: the paths are C strings.
            Self::Link { to, at } => checked(unsafe { libc::symlink(to.as_ptr(), at.as_ptr()) }),
            Self::Bind { from, to } => mount(Some(from), to, None, libc::MS_BIND | libc::MS_REC),
        }
    }
}

fn mount(from: Option<&CStr>, to: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the paths are C strings or nothing.
    checked(unsafe { libc::mount(pointer(from), to.as_ptr(), pointer(kind), flags, ptr::null()) })
}

/// Everything that is mounted becomes read-only: at once since Linux 5.12, before that the root alone.
fn read_only() -> io::Result<()> {
    /// `struct mount_attr` of `include/uapi/linux/mount.h`.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const RDONLY_NOSUID: u64 = 1 | 2;
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let attributes = Attributes { set: RDONLY_NOSUID, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path and the attributes outlive the call, and their size is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            AT_RECURSIVE,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if done == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSYS) => old_read_only(),
        error => Err(error),
    }
}

fn old_read_only() -> io::Result<()> {
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    [c"/", c"/usr", c"/proc", c"/sys"].into_iter().try_for_each(|place| mount(None, place, None, flags))
}

/// Takes away for good what bpftrace does not need. That root gets all back at exec does not hold for what is out of the bounding set.
fn drop_capabilities() -> io::Result<()> {
    const SYS_ADMIN_IS_NEEDED_BELOW: u32 = 39;
    // SAFETY: no memory is involved.
    let known = |capability: u32| unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } >= 0;
    let old = !known(SYS_ADMIN_IS_NEEDED_BELOW);
    for capability in (0..64).take_while(|capability| known(*capability)) {
        if KEPT.contains(&capability) || (old && capability == SYS_ADMIN) {
            continue;
        }
        // SAFETY: no memory is involved.
        checked(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
    }
    Ok(())
}

/// What root gets at exec is bounded by what it had before, since no privileges may be gained any more.
fn become_root() -> io::Result<()> {
    // SAFETY: the calls take numbers; a list of no groups is not looked at.
    unsafe {
        checked(libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) as i32)?;
        checked(libc::syscall(libc::SYS_setresgid, 0, 0, 0) as i32)?;
        checked(libc::syscall(libc::SYS_setresuid, 0, 0, 0) as i32)
    }
}

fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } as i32)
}

/// All files are closed at exec but the standard ones; Rust opens them so, this is for what others left (Linux 5.11).
fn forget_files() {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no memory is involved, and nothing is closed before exec.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, CLOSE_RANGE_CLOEXEC) };
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, and the kernel only reads it.
    checked(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) })
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
