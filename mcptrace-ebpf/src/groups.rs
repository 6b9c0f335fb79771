//! Names of control groups that are removed while tracing runs. User space finds those that are there by their ids.

use core::ffi::c_void;

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel_str, macros::map, maps::LruHashMap};

use crate::{
    GROUP_PATH_MAX, GroupPath,
    kernel::{CGROUP_KN, KN_ID, read_kernel},
};

/// Offsets of `cgroup.root` and `cgroup_root.hierarchy_id`.
#[unsafe(no_mangle)]
static CGROUP_ROOT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static ROOT_HIERARCHY: Global<u32> = Global::new(0);

/// Paths of groups that were removed, by id. Made with one entry unless rows have places.
#[map]
static GROUPS_GONE: LruHashMap<u64, GroupPath> = LruHashMap::with_max_entries(1, 0);

/// Keeps the path of a group.
///
/// # Safety
///
/// `group` points to a `struct cgroup`; `path` points to its path.
#[inline(always)]
pub unsafe fn gone(group: *const u8, path: *const u8) {
    // SAFETY: the caller's promise; a failed read gives zeros, and the helper writes at most so many bytes, the last of them a NUL.
    unsafe {
        // Ids are those of one hierarchy. That of version 2 is the first to be made and has number 0 (cgroup_init, kernel/cgroup/cgroup.c).
        let root: *const u8 = read_kernel(group.wrapping_add(CGROUP_ROOT.load() as usize));
        if read_kernel::<u32>(root.wrapping_add(ROOT_HIERARCHY.load() as usize)) != 0 {
            return;
        }
        let node: *const u8 = read_kernel(group.wrapping_add(CGROUP_KN.load() as usize));
        let id: u64 = read_kernel(node.wrapping_add(KN_ID.load() as usize));
        let mut kept = GroupPath { path: [0; GROUP_PATH_MAX] };
        bpf_probe_read_kernel_str((&raw mut kept.path).cast::<c_void>(), GROUP_PATH_MAX as u32, path.cast::<c_void>());
        let kept: &GroupPath = &kept;
        let _ = GROUPS_GONE.insert(id, kept, 0);
    }
}

/// Adds the program that keeps the names of control groups which are removed. User space attaches it only where rows have places.
#[macro_export]
macro_rules! names_groups {
    () => {
        #[aya_ebpf::macros::btf_tracepoint(function = "cgroup_rmdir")]
        fn group_gone(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            // SAFETY: the arguments of cgroup_rmdir are the struct cgroup and its path (include/trace/events/cgroup.h).
            unsafe { $crate::groups::gone(ctx.arg(0), ctx.arg(1)) };
            0
        }
    };
}
