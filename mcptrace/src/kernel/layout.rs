//! Where the running kernel keeps what the programs read, found once in its BTF.
//!
//! Rust-written programs carry no CO-RE relocations; offsets travel as read-only globals instead. What is missing is a reason why
//! a probe cannot run, never a wrong number.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    arch::ARCH,
    btf::{BtfError, KernelBtf},
};

/// A global that holds an offset: the first of the choices that this kernel has.
struct Offset {
    global: &'static str,
    choices: &'static [(&'static str, &'static str)],
}

/// A tag for [`OFFSETS`] rows.
const fn offset(global: &'static str, choices: &'static [(&'static str, &'static str)]) -> Offset {
    Offset { global, choices }
}

/// Every offset that a kernel program reads at, by the name of its global.
const OFFSETS: &[Offset] = &[
    offset("TASK_PID", &[("task_struct", "pid")]),
    offset("TASK_TGID", &[("task_struct", "tgid")]),
    offset("TASK_COMM", &[("task_struct", "comm")]),
    offset("TASK_CRED", &[("task_struct", "cred")]),
    offset("CRED_UID", &[("cred", "uid.val")]),
    offset("TASK_CGROUPS", &[("task_struct", "cgroups")]),
    offset("CSS_SET_DFL_CGRP", &[("css_set", "dfl_cgrp")]),
    // Ids in the cgroup itself became pointers to its ancestors in 6.1 (commit 7f203bc89eb6).
    offset("CGROUP_ANCESTORS", &[("cgroup", "ancestors"), ("cgroup", "ancestor_ids")]),
    offset("CGROUP_LEVEL", &[("cgroup", "level")]),
    offset("CGROUP_KN", &[("cgroup", "kn")]),
    offset("KN_ID", &[("kernfs_node", "id")]),
    offset("CGROUP_ROOT", &[("cgroup", "root")]),
    offset("ROOT_HIERARCHY", &[("cgroup_root", "hierarchy_id")]),
    // `state` became `__state` in 5.14 (commit 2f064a59a11f).
    offset("TASK_STATE", &[("task_struct", "__state"), ("task_struct", "state")]),
    offset("TASK_COMPAT_WORD", &[("task_struct", ARCH.compat_word)]),
    offset("REQUEST_START", &[("request", "start_time_ns")]),
    offset("REQUEST_FLAGS", &[("request", "cmd_flags")]),
    offset("REQUEST_BYTES", &[("request", "__data_len")]),
    // The disk moved from the request to its queue in 5.16 (commits d152c682f03c, f3fa33acca9f).
    offset("REQUEST_QUEUE", &[("request", "rq_disk"), ("request", "q")]),
    offset("DISK_MAJOR", &[("gendisk", "major")]),
    offset("DISK_MINOR", &[("gendisk", "first_minor")]),
    offset("SK_FAMILY", &[("sock", "__sk_common.skc_family")]),
    offset("SK_STATE", &[("sock", "__sk_common.skc_state")]),
    offset("SK_REMOTE_V4", &[("sock", "__sk_common.skc_daddr")]),
    offset("SK_LOCAL_V4", &[("sock", "__sk_common.skc_rcv_saddr")]),
    // Only in kernels with IPv6.
    offset("SK_REMOTE_V6", &[("sock", "__sk_common.skc_v6_daddr")]),
    offset("SK_LOCAL_V6", &[("sock", "__sk_common.skc_v6_rcv_saddr")]),
    offset("SK_REMOTE_PORT", &[("sock", "__sk_common.skc_dport")]),
    offset("SK_LOCAL_PORT", &[("sock", "__sk_common.skc_num")]),
    offset("SK_FLAGS", &[("sock", "__sk_common.skc_flags")]),
    // A bit field before 5.6 (commit bf9765145b85).
    offset("SK_PROTOCOL", &[("sock", "sk_protocol")]),
    offset("SK_ERROR", &[("sock", "sk_err")]),
    offset("INET_LOCAL_PORT", &[("inet_sock", "inet_sport")]),
    offset("TCP_BYTES_SENT", &[("tcp_sock", "bytes_sent")]),
    offset("TCP_BYTES_RETRANSMITTED", &[("tcp_sock", "bytes_retrans")]),
    offset("TCP_BYTES_RECEIVED", &[("tcp_sock", "bytes_received")]),
    offset("TCP_SRTT", &[("tcp_sock", "srtt_us")]),
    offset("TCP_RETRANSMITS", &[("tcp_sock", "total_retrans")]),
    offset("SOCKET_SK", &[("socket", "sk")]),
    offset("SKB_HEAD", &[("sk_buff", "head")]),
    offset("SKB_CB", &[("sk_buff", "cb")]),
    // TCP keeps it in `cb` (`TCP_SKB_CB`, include/net/tcp.h).
    offset("TCP_CB_SEGMENTS", &[("tcp_skb_cb", "tcp_gso_segs")]),
    offset("SKB_LEN", &[("sk_buff", "len")]),
    offset("SKB_DATA", &[("sk_buff", "data")]),
    offset("SKB_PROTOCOL", &[("sk_buff", "protocol")]),
    offset("SKB_NETWORK", &[("sk_buff", "network_header")]),
    offset("SKB_TRANSPORT", &[("sk_buff", "transport_header")]),
    offset("TASK_FILES", &[("task_struct", "files")]),
    offset("FILES_TABLE", &[("files_struct", "fdt")]),
    offset("TABLE_FILES", &[("fdtable", "fd")]),
    offset("TABLE_LENGTH", &[("fdtable", "max_fds")]),
    offset("FILE_PRIVATE", &[("file", "private_data")]),
    offset("FILE_INODE", &[("file", "f_inode")]),
    offset("FILE_DENTRY", &[("file", "f_path.dentry")]),
    offset("FILE_MOUNT", &[("file", "f_path.mnt")]),
    offset("INODE_MODE", &[("inode", "i_mode")]),
    offset("INODE_NUMBER", &[("inode", "i_ino")]),
    offset("INODE_SIZE", &[("inode", "i_size")]),
    offset("INODE_SUPER", &[("inode", "i_sb")]),
    offset("SUPER_DEVICE", &[("super_block", "s_dev")]),
    offset("DENTRY_PARENT", &[("dentry", "d_parent")]),
    offset("DENTRY_NAME", &[("dentry", "d_name.name")]),
    offset("DENTRY_HASHED", &[("dentry", "d_hash.pprev")]),
    offset("VFSMOUNT_ROOT", &[("vfsmount", "mnt_root")]),
    offset("MOUNT_VFSMOUNT", &[("mount", "mnt")]),
    offset("MOUNT_PARENT", &[("mount", "mnt_parent")]),
    offset("MOUNT_POINT", &[("mount", "mnt_mountpoint")]),
    // A page in the cache became a folio in 5.16, in tracepoints in 5.18.
    offset("FOLIO_FLAGS", &[("folio", "flags"), ("page", "flags")]),
    offset("FOLIO_MAPPING", &[("folio", "mapping"), ("page", "mapping")]),
    offset("FOLIO_INDEX", &[("folio", "index"), ("page", "index")]),
    // The low byte of the second page's flags since 6.6 (commit ebc1baf5c9b4), a byte of its own before; elsewhere before 6.1.
    offset("FOLIO_ORDER", &[("folio", "_folio_order"), ("folio", "_flags_1")]),
    offset("MAPPING_HOST", &[("address_space", "host")]),
    offset("TASK_REAL_PARENT", &[("task_struct", "real_parent")]),
    offset("TASK_LEADER", &[("task_struct", "group_leader")]),
    offset("TASK_START_TIME", &[("task_struct", "start_time")]),
    offset("TASK_EXIT_CODE", &[("task_struct", "exit_code")]),
    offset("TASK_THREAD_NODE", &[("task_struct", "thread_node")]),
    offset("TASK_UTIME", &[("task_struct", "utime")]),
    offset("TASK_STIME", &[("task_struct", "stime")]),
    offset("TASK_RUNTIME", &[("task_struct", "se.sum_exec_runtime")]),
    offset("TASK_SIGNAL", &[("task_struct", "signal")]),
    offset("TASK_MM", &[("task_struct", "mm")]),
    offset("SIGNAL_LIVE", &[("signal_struct", "live.counter")]),
    offset("SIGNAL_FLAGS", &[("signal_struct", "flags")]),
    offset("SIGNAL_EXIT_CODE", &[("signal_struct", "group_exit_code")]),
    offset("SIGNAL_THREADS", &[("signal_struct", "thread_head")]),
    offset("SIGNAL_UTIME", &[("signal_struct", "utime")]),
    offset("SIGNAL_STIME", &[("signal_struct", "stime")]),
    offset("SIGNAL_RUNTIME", &[("signal_struct", "sum_sched_runtime")]),
    offset("SIGNAL_MAXRSS", &[("signal_struct", "maxrss")]),
    offset("SIGNAL_OOM_ADJ", &[("signal_struct", "oom_score_adj")]),
    offset("SIGINFO_CODE", &[("kernel_siginfo", "si_code")]),
    offset("BPRM_FILENAME", &[("linux_binprm", "filename")]),
    offset("MM_ARG_START", &[("mm_struct", "arg_start")]),
    offset("MM_ARG_END", &[("mm_struct", "arg_end")]),
    offset("MM_TOTAL_VM", &[("mm_struct", "total_vm")]),
    offset("TASK_FS", &[("task_struct", "fs")]),
    offset("FS_DENTRY", &[("fs_struct", "pwd.dentry")]),
    offset("FS_MOUNT", &[("fs_struct", "pwd.mnt")]),
    // The same as TASK_CGROUPS, which belongs to the filter.
    offset("TASK_CSS_SET", &[("task_struct", "cgroups")]),
    // Only in kernels with memory control groups.
    offset("GROUP_MEMORY", &[("mem_cgroup", "memory")]),
    offset("MEMORY_USAGE", &[("page_counter", "usage.counter")]),
    offset("MEMORY_MAX", &[("page_counter", "max")]),
    offset("MEMORY_PARENT", &[("page_counter", "parent")]),
    offset("IRQACTION_NAME", &[("irqaction", "name")]),
];

/// Enums whose names are shown.
const ENUMS: &[&str] = &["skb_drop_reason", "sk_rst_reason"];

/// What was found.
#[derive(Debug)]
pub struct Layout {
    globals: BTreeMap<&'static str, Result<u32, String>>,
    tracepoints: BTreeSet<Box<str>>,
    /// Those of [`FUNCTIONS`] that the kernel has.
    functions: BTreeSet<&'static str>,
    enumerators: BTreeMap<&'static str, BTreeMap<u32, String>>,
}

/// Functions of the kernel that probes attach to where it has no tracepoint.
pub(super) const FUNCTIONS: &[&str] = &["cap_capable"];

impl Layout {
    /// Finds every offset and tracepoint.
    pub fn read(btf: &KernelBtf) -> Self {
        let mut globals: BTreeMap<_, _> = OFFSETS.iter().map(|row| (row.global, find(btf, row))).collect();
        globals.insert("QUEUE_DISK", queue_disk(btf));
        globals.insert("CGROUP_ANCESTORS_ARE_IDS", Ok(u32::from(btf.offset("cgroup", "ancestors").is_err())));
        globals.insert("REQUEST_ARGUMENT", request_argument(btf));
        globals.insert("HAS_TASK_BTF", Ok(u32::from(has_task_btf(btf))));
        globals.insert("HAS_DROP_REASON", Ok(u32::from(has_parameters(btf, "kfree_skb", 3))));
        globals.insert("HAS_RETRANSMIT_ERROR", Ok(u32::from(has_parameters(btf, "tcp_retransmit_skb", 3))));
        globals.insert("HAS_RESET_REASON", Ok(u32::from(has_parameters(btf, "tcp_send_reset", 3))));
        globals.insert("FOLIO_LARGE", folio_large(btf));
        globals.insert("CSS_SET_MEMORY", css_set_memory(btf));
        globals.extend(process_globals(btf));
        let enumerators = ENUMS.iter().map(|name| (*name, btf.enumerators(name))).collect();
        let functions =
            btf.functions().filter_map(|name| FUNCTIONS.iter().find(|known| **known == name).copied()).collect();
        Self { globals, tracepoints: btf.tracepoints().map(Box::from).collect(), functions, enumerators }
    }

    /// A kernel that has these tracepoints and nothing else.
    #[cfg(test)]
    pub(super) fn with_tracepoints(tracepoints: &[&'static str]) -> Self {
        let tracepoints = tracepoints.iter().map(|name| Box::from(*name)).collect();
        Self { globals: BTreeMap::new(), tracepoints, functions: BTreeSet::new(), enumerators: BTreeMap::new() }
    }

    /// The value of a global, or why this kernel has none.
    pub fn global(&self, name: &str) -> Result<u32, String> {
        self.globals.get(name).cloned().unwrap_or_else(|| Err(format!("no offset is known by the name {name}")))
    }

    /// Every global that has a value.
    pub fn globals(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.globals.iter().filter_map(|(name, value)| value.as_ref().ok().map(|value| (*name, *value)))
    }

    /// The names of an enum's values; none if the kernel has no such enum. Only those that probes ask for are known.
    pub fn enumerators(&self, name: &str) -> BTreeMap<u32, String> {
        self.enumerators.get(name).cloned().unwrap_or_default()
    }

    /// Whether the kernel has a function, of those that probes ask for.
    pub fn has_function(&self, name: &str) -> bool {
        self.functions.contains(name)
    }

    /// Whether the kernel has a BTF tracepoint.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.tracepoints.contains(name)
    }
}

fn find(btf: &KernelBtf, row: &Offset) -> Result<u32, String> {
    let mut reason = String::new();
    for (structure, member) in row.choices {
        match btf.offset(structure, member) {
            Ok(offset) => return Ok(offset),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

/// Where a queue keeps its disk; `u32::MAX` where the request itself does.
fn queue_disk(btf: &KernelBtf) -> Result<u32, String> {
    if btf.offset("request", "rq_disk").is_ok() {
        return Ok(u32::MAX);
    }
    btf.offset("request_queue", "disk").map_err(|error| error.to_string())
}

/// Which argument of `block_rq_issue` is the request: the queue came first before 5.11 (commit a54895fa057c).
fn request_argument(btf: &KernelBtf) -> Result<u32, String> {
    let parameters = btf.tracepoint("block_rq_issue").map_err(|error: BtfError| error.to_string())?;
    let position = parameters.iter().position(|parameter| parameter.type_name.starts_with("struct request *"));
    position.map(|index| index as u32).ok_or_else(|| "block_rq_issue of this kernel has no request".to_owned())
}

/// Where a `struct css_set` has its memory control group: by the number of the controller, which depends on the configuration.
fn css_set_memory(btf: &KernelBtf) -> Result<u32, String> {
    let controllers = btf.enumerators("cgroup_subsys_id");
    let memory = controllers.iter().find(|(_, name)| *name == "memory_cgrp_id");
    let (index, _) = memory.ok_or_else(|| "this kernel has no memory control groups".to_owned())?;
    let first = btf.offset("css_set", "subsys").map_err(|error| error.to_string())?;
    Ok(first + index * size_of::<u64>() as u32)
}

/// The flag of a page that is the first of several.
fn folio_large(btf: &KernelBtf) -> Result<u32, String> {
    let flags = btf.enumerators("pageflags");
    let head = flags.iter().find(|(_, name)| *name == "PG_head");
    head.map(|(bit, _)| 1 << bit).ok_or_else(|| "this kernel has no page flag `PG_head`".to_owned())
}

/// Whether a tracepoint has at least so many arguments.
fn has_parameters(btf: &KernelBtf, tracepoint: &str, count: usize) -> bool {
    btf.tracepoint(tracepoint).is_ok_and(|parameters| parameters.len() >= count)
}

/// What differs between kernels in how processes end and what memory they have.
fn process_globals(btf: &KernelBtf) -> [(&'static str, Result<u32, String>); 4] {
    let (first, stride) = rss_counts(btf);
    [
        ("EXIT_TELLS_LAST", Ok(u32::from(parameters(btf, "sched_process_exit").len() > 1))),
        ("VICTIM_IS_TASK", Ok(u32::from(takes_task(&parameters(btf, "mark_victim"))))),
        ("MM_RSS", first),
        ("MM_RSS_STRIDE", stride),
    ]
}

/// The C types of a tracepoint's arguments; none if there is no such tracepoint.
fn parameters(btf: &KernelBtf, tracepoint: &str) -> Vec<String> {
    let parameters = btf.tracepoint(tracepoint).unwrap_or_default();
    parameters.into_iter().map(|parameter| parameter.type_name).collect()
}

/// Whether a tracepoint's first argument is a task.
fn takes_task(parameters: &[String]) -> bool {
    parameters.first().is_some_and(|first| first.starts_with("struct task_struct *"))
}

/// Where a `struct mm_struct` counts its pages, and how far apart the counts are: a `struct percpu_counter` each from 6.2 on
/// (commit f1a7941243c1), numbers before.
fn rss_counts(btf: &KernelBtf) -> (Result<u32, String>, Result<u32, String>) {
    let text = |error: BtfError| error.to_string();
    if let Ok(offset) = btf.offset("mm_struct", "rss_stat.count") {
        return (Ok(offset), Ok(8));
    }
    let counter = btf.offset("percpu_counter", "count").map_err(text);
    // Each counter but the first begins where the one before it ends: four of them fill the member.
    let member = btf.member("mm_struct", "rss_stat").map_err(text);
    let first = member.clone().and_then(|member| counter.map(|count| member.offset + count));
    (first, member.map(|member| member.size / 4))
}

/// `bpf_get_current_task_btf` came with 5.11 (commit 3ca1032ab7ab); so did the prototype that describes it.
fn has_task_btf(btf: &KernelBtf) -> bool {
    btf.function("bpf_get_current_task_btf").is_ok()
}
