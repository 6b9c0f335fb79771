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
];

/// What was found.
#[derive(Debug)]
pub struct Layout {
    globals: BTreeMap<&'static str, Result<u32, String>>,
    tracepoints: BTreeSet<Box<str>>,
}

impl Layout {
    /// Finds every offset and tracepoint.
    pub fn read(btf: &KernelBtf) -> Self {
        let mut globals: BTreeMap<_, _> = OFFSETS.iter().map(|row| (row.global, find(btf, row))).collect();
        globals.insert("QUEUE_DISK", queue_disk(btf));
        globals.insert("CGROUP_ANCESTORS_ARE_IDS", Ok(u32::from(btf.offset("cgroup", "ancestors").is_err())));
        globals.insert("REQUEST_ARGUMENT", request_argument(btf));
        globals.insert("HAS_TASK_BTF", Ok(u32::from(has_task_btf(btf))));
        Self { globals, tracepoints: btf.tracepoints().map(Box::from).collect() }
    }

    /// A kernel that has these tracepoints and nothing else.
    #[cfg(test)]
    pub(super) fn with_tracepoints(tracepoints: &[&'static str]) -> Self {
        Self { globals: BTreeMap::new(), tracepoints: tracepoints.iter().map(|name| Box::from(*name)).collect() }
    }

    /// The value of a global, or why this kernel has none.
    pub fn global(&self, name: &str) -> Result<u32, String> {
        self.globals.get(name).cloned().unwrap_or_else(|| Err(format!("no offset is known by the name {name}")))
    }

    /// Every global that has a value.
    pub fn globals(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.globals.iter().filter_map(|(name, value)| value.as_ref().ok().map(|value| (*name, *value)))
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

/// `bpf_get_current_task_btf` came with 5.11 (commit 3ca1032ab7ab); so did the prototype that describes it.
fn has_task_btf(btf: &KernelBtf) -> bool {
    btf.function("bpf_get_current_task_btf").is_ok()
}
