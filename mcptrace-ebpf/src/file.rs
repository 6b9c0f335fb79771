//! Open files of the current thread: which file a descriptor is, and its path by a bounded walk up the dentries.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel_str},
};

use crate::{
    FileId, WALK_BYTES, WALK_COMPLETE, WALK_DELETED, WALK_DETACHED, WALK_LIMIT, WALK_STEPS, Walk, kernel::read_kernel,
};

/// Offsets in `struct task_struct` and what hangs on it, from the running kernel's BTF.
#[unsafe(no_mangle)]
static TASK_FILES: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILES_TABLE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TABLE_FILES: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TABLE_LENGTH: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILE_PRIVATE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILE_INODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILE_DENTRY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILE_MOUNT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_MODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_NUMBER: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_SUPER: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SUPER_DEVICE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DENTRY_PARENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DENTRY_NAME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DENTRY_HASHED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static VFSMOUNT_ROOT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MOUNT_VFSMOUNT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MOUNT_PARENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MOUNT_POINT: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
static TASK_FS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FS_DENTRY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FS_MOUNT: Global<u32> = Global::new(0);

/// `S_IFMT` (include/uapi/linux/stat.h).
const S_IFMT: u16 = 0o170_000;
/// A regular file, as [`file_type`] has it.
pub const S_IFREG: u16 = 0o100_000;
/// A block device.
pub const S_IFBLK: u16 = 0o060_000;
/// A socket.
pub const S_IFSOCK: u16 = 0o140_000;
/// Room for a name and its NUL (`NAME_MAX`, include/uapi/linux/limits.h).
const NAME_BYTES: u32 = 256;

/// Reads a member of a structure at an address of the kernel: zeros if it cannot be read.
#[inline(always)]
fn member<T>(base: u64, offset: &Global<u32>) -> T {
    at(base.wrapping_add(offset.load().into()))
}

#[inline(always)]
fn at<T>(address: u64) -> T {
    // SAFETY: the helper checks the address, and all that is read here are numbers.
    unsafe { read_kernel(address as *const u8) }
}

/// The address of the `struct file` of a descriptor of the current thread; 0 if there is none.
#[inline(always)]
pub fn open_file(descriptor: u32) -> u64 {
    // SAFETY: the helper takes nothing.
    let files = member(unsafe { bpf_get_current_task() }, &TASK_FILES);
    let table = member(files, &FILES_TABLE);
    if descriptor >= member::<u32>(table, &TABLE_LENGTH) {
        return 0;
    }
    at(member::<u64>(table, &TABLE_FILES).wrapping_add(u64::from(descriptor) * 8))
}

/// `file.private_data`: of a socket's file its `struct socket`.
#[inline(always)]
pub fn private_data(file: u64) -> u64 {
    member(file, &FILE_PRIVATE)
}

/// The inode of a file.
#[inline(always)]
pub fn inode(file: u64) -> u64 {
    member(file, &FILE_INODE)
}

/// What an inode is, an `S_IF*`.
#[inline(always)]
pub fn file_type(inode: u64) -> u16 {
    member::<u16>(inode, &INODE_MODE) & S_IFMT
}

/// Names an inode for as long as it lives.
#[inline(always)]
pub fn id(inode: u64) -> FileId {
    let super_block = member(inode, &INODE_SUPER);
    FileId { inode: member(inode, &INODE_NUMBER), device: member(super_block, &SUPER_DEVICE), zero: 0 }
}

/// Finds the path of a file, up to the root of the tree of mounts that it is in.
///
/// # Safety
///
/// `walk` points into a map's value that nobody else writes meanwhile.
#[inline(always)]
pub unsafe fn walk(file: u64, walk: *mut Walk) {
    // SAFETY: the caller's promise.
    unsafe { walk_from(member(file, &FILE_DENTRY), member(file, &FILE_MOUNT), walk) }
}

/// The same for the working directory of the current thread.
///
/// # Safety
///
/// As above.
#[inline(always)]
pub unsafe fn walk_directory(walk: *mut Walk) {
    // SAFETY: the helper takes nothing; the rest is the caller's promise.
    unsafe {
        let fs = member(bpf_get_current_task(), &TASK_FS);
        walk_from(member(fs, &FS_DENTRY), member(fs, &FS_MOUNT), walk);
    }
}

/// As the kernel's own `prepend_path` (fs/d_path.c), but without its locks: a rename meanwhile may mix the old path with the new.
///
/// # Safety
///
/// `walk` points into a map's value that nobody else writes meanwhile.
#[inline(never)]
unsafe fn walk_from(mut dentry: u64, mut mount: u64, walk: *mut Walk) {
    let mut flags = if member::<u64>(dentry, &DENTRY_HASHED) == 0 { WALK_DELETED } else { 0 };
    // SAFETY: the caller's promise.
    unsafe { (*walk).len = 0 };
    for _ in 0..WALK_STEPS {
        let parent: u64 = member(dentry, &DENTRY_PARENT);
        if dentry == member::<u64>(mount, &VFSMOUNT_ROOT) {
            let inner = mount.wrapping_sub(MOUNT_VFSMOUNT.load().into());
            let outer: u64 = member(inner, &MOUNT_PARENT);
            if outer == inner {
                flags |= WALK_COMPLETE;
                break;
            }
            dentry = member(inner, &MOUNT_POINT);
            mount = outer.wrapping_add(MOUNT_VFSMOUNT.load().into());
            continue;
        }
        // SAFETY: the caller's promise.
        if !unsafe { took_name(dentry, walk) } {
            break;
        }
        if dentry == parent {
            flags |= WALK_DETACHED;
            break;
        }
        dentry = parent;
    }
    // SAFETY: the caller's promise.
    unsafe { (*walk).flags = flags };
}

/// Appends the name of a dentry; false if there is no room or no name.
///
/// How far the names reach is kept in memory, where the verifier knows nothing of it: it would follow each number of names and mounts on the
/// way up by itself, and give up.
#[inline(always)]
unsafe fn took_name(dentry: u64, walk: *mut Walk) -> bool {
    // SAFETY: the caller's promise; behind the limit is room for a name.
    unsafe {
        let len = &raw mut (*walk).len;
        let used = ptr::read_volatile(len);
        // The mask is a bound that the verifier can follow.
        let place = used & (WALK_BYTES as u32 - 1);
        if place >= WALK_LIMIT {
            return false;
        }
        let name = (&raw mut (*walk).names).cast::<u8>().add(place as usize);
        let source = member::<u64>(dentry, &DENTRY_NAME) as *const c_void;
        let taken = bpf_probe_read_kernel_str(name.cast(), NAME_BYTES, source);
        if taken <= 1 {
            return false;
        }
        ptr::write_volatile(len, used + taken as u32);
    }
    true
}
