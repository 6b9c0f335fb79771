//! The eBPF programs of the whole machine: what the kernel, its links and the descriptors of processes say of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, OsString},
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use libbpf_rs::query::{LinkInfo, LinkInfoIter, LinkTypeInfo, PerfEventType};

use super::{btf::KernelBtf, cgroups};

/// How many descriptors of other processes are looked at.
const MOST_DESCRIPTORS: usize = 200_000;
/// How many programs are looked at.
const MOST_PROGRAMS: usize = 10_000;

/// A loaded program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Its kind, in libbpf's words: `tracing`, `kprobe`, `cgroup_skb`.
    pub kind: String,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The user that loaded it.
    pub uid: u32,
    /// Runs while statistics were on.
    pub runs: u64,
    /// Time in it while statistics were on, in nanoseconds.
    pub run_time_ns: u64,
    /// Id of the function or tracepoint of the kernel that it was loaded for, in the kernel's types; 0 for none.
    pub target: u32,
}

/// Who holds a program, and where it is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Where it is attached.
    pub attached: BTreeSet<String>,
    /// Processes that have a descriptor of it or of a link to it.
    pub holders: BTreeMap<u32, Holder>,
}

/// A process that holds programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its command name, as it is.
    pub comm: Vec<u8>,
    /// The path of its control group that names its container or unit, if one does.
    pub group: Option<String>,
}

impl Holder {
    fn of(pid: u32) -> Self {
        let mut comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.pop_if(|last| *last == b'\n');
        Self { comm, group: cgroups::of_process(pid) }
    }
}

/// Uses by program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllUses {
    /// By id of the program.
    pub by_program: BTreeMap<u32, Uses>,
    /// Whether there were more descriptors than are looked at.
    pub incomplete: bool,
}

/// Keeps run-time statistics of all programs on until it is dropped.
#[derive(Debug)]
pub struct Statistics(#[expect(dead_code, reason = "it is open, and that is what it is for")] OwnedFd);

impl Statistics {
    /// Turns them on (5.8 and later, with `CAP_SYS_ADMIN`).
    pub fn on() -> Result<Self, String> {
        let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime);
        statistics.map(Self).map_err(|error| super::loader::chain(&error))
    }
}

/// All loaded programs by id.
pub fn programs() -> BTreeMap<u32, Program> {
    let mut all = BTreeMap::new();
    let mut id = 0;
    // SAFETY: the call writes one number.
    while all.len() < MOST_PROGRAMS && unsafe { libbpf_sys::bpf_prog_get_next_id(id, &raw mut id) } == 0 {
        // One that was unloaded meanwhile is none.
        if let Some(program) = program(id) {
            all.insert(id, program);
        }
    }
    all
}

/// A descriptor of a program, if it is still loaded.
pub fn open(id: u32) -> Option<OwnedFd> {
    // SAFETY: takes a number; the descriptor is new and ours.
    unsafe {
        let raw = libbpf_sys::bpf_prog_get_fd_by_id(id);
        (raw >= 0).then(|| OwnedFd::from_raw_fd(raw))
    }
}

/// The programs that a process has descriptors of, or of links to them.
///
/// # Errors
///
/// If its descriptors may not be looked at.
pub fn held_by(process: u32) -> io::Result<BTreeSet<u32>> {
    let descriptors = numbers(&format!("/proc/{process}/fd"))?;
    Ok(descriptors.into_iter().filter_map(|descriptor| held(process, descriptor)).map(|(id, _)| id).collect())
}

fn program(id: u32) -> Option<Program> {
    let descriptor = open(id)?;
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: the kernel fills at most `length` bytes of the structure.
    let outcome =
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(descriptor.as_raw_fd(), &raw mut info, &raw mut length) };
    (outcome == 0).then(|| Program {
        kind: kind(info.type_),
        name: crate::text::comm(&info.name.map(|letter| letter as u8)),
        uid: info.created_by_uid,
        runs: info.run_cnt,
        run_time_ns: info.run_time_ns,
        target: info.attach_btf_id,
    })
}

fn kind(number: u32) -> String {
    // SAFETY: gives a constant string or nothing.
    let text = unsafe {
        let text = libbpf_sys::libbpf_bpf_prog_type_str(number);
        (!text.is_null()).then(|| CStr::from_ptr(text))
    };
    text.map_or_else(|| number.to_string(), |text| text.to_string_lossy().into_owned())
}

/// Where programs are attached and who holds them.
pub fn uses(programs: &BTreeMap<u32, Program>) -> AllUses {
    let mut uses = AllUses::default();
    let links: Vec<LinkInfo> = LinkInfoIter::default().take(MOST_PROGRAMS).collect();
    let traced = links.iter().any(|link| matches!(link.info, LinkTypeInfo::Tracing(_)));
    // 6 MB for as long as it takes.
    let btf = traced.then(KernelBtf::load).and_then(Result::ok);
    for link in &links {
        let program = programs.get(&link.prog_id);
        let target = program.map_or(0, |program| program.target);
        let place = match &link.info {
            // What is attached to a BTF tracepoint has a link like a raw tracepoint's.
            LinkTypeInfo::RawTracepoint(raw) if program.is_some_and(|program| program.kind == "tracing") => {
                format!("tp_btf/{}", raw.name)
            }
            info => place(info, || btf.as_ref().and_then(|btf| Some(traced_name(&btf.name(target)?)))),
        };
        uses.by_program.entry(link.prog_id).or_default().attached.insert(place);
    }
    descriptors(&mut uses);
    uses
}

/// The target of a traced program: a tracepoint is a type of the kernel's named after it.
fn traced_name(name: &str) -> String {
    name.strip_prefix("btf_trace_").map_or_else(|| format!("function/{name}"), |name| format!("tp_btf/{name}"))
}

fn place(link: &LinkTypeInfo, traced: impl Fn() -> Option<String>) -> String {
    let text =
        |name: &Option<OsString>| name.as_ref().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match link {
        LinkTypeInfo::RawTracepoint(link) => format!("raw_tp/{}", link.name),
        LinkTypeInfo::Tracing(_) => traced().unwrap_or_else(|| "tracing".to_owned()),
        LinkTypeInfo::Cgroup(link) => format!("cgroup/{}", link.cgroup_id),
        LinkTypeInfo::Iter(link) => format!("iter/{}", link.target_name.to_string_lossy()),
        LinkTypeInfo::NetNs(link) => format!("netns/{}", link.ino),
        LinkTypeInfo::Xdp(link) => format!("xdp/interface {}", link.ifindex),
        LinkTypeInfo::Tcx(link) => format!("tcx/interface {}", link.ifindex),
        LinkTypeInfo::Netkit(link) => format!("netkit/interface {}", link.ifindex),
        LinkTypeInfo::Netfilter(link) => format!("netfilter/hook {}", link.hooknum),
        LinkTypeInfo::KprobeMulti(link) => format!("kprobe.multi/{} functions", link.count),
        LinkTypeInfo::UprobeMulti(link) => format!("uprobe.multi/{} places", link.count),
        LinkTypeInfo::PerfEvent(link) => match &link.event_type {
            PerfEventType::Tracepoint { name, .. } => format!("tracepoint/{}", text(name)),
            PerfEventType::Kprobe { func_name, .. } => format!("kprobe/{}", text(func_name)),
            PerfEventType::Uprobe { file_name, .. } => format!("uprobe/{}", text(file_name)),
            PerfEventType::Event { .. } | PerfEventType::Unknown(_) => "perf_event".to_owned(),
        },
        _ => "link".to_owned(),
    }
}

/// Looks through the descriptors of all processes.
fn descriptors(uses: &mut AllUses) {
    let mut seen = 0;
    for pid in numbers("/proc").unwrap_or_default() {
        let mut holder = None;
        for descriptor in numbers(&format!("/proc/{pid}/fd")).unwrap_or_default() {
            seen += 1;
            if seen > MOST_DESCRIPTORS {
                uses.incomplete = true;
                return;
            }
            if let Some((program, place)) = held(pid, descriptor) {
                let uses = uses.by_program.entry(program).or_default();
                uses.holders.insert(pid, holder.get_or_insert_with(|| Holder::of(pid)).clone());
                uses.attached.extend(place);
            }
        }
    }
}

fn numbers(directory: &str) -> io::Result<Vec<u32>> {
    let names = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.file_name()));
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// The program that a descriptor is of, itself or by a link or an event, and where an event attaches it.
fn held(pid: u32, descriptor: u32) -> Option<(u32, Option<String>)> {
    let target = fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
    match target.to_str()? {
        "anon_inode:bpf-prog" | "anon_inode:bpf_link" | "anon_inode:bpf-link" => {
            let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"))?.trim().parse().ok()?;
            Some((id, None))
        }
        "anon_inode:[perf_event]" => event(pid, descriptor),
        _ => None,
    }
}

/// The program of an event that it was attached to without a link, as bpftrace does.
fn event(pid: u32, descriptor: u32) -> Option<(u32, Option<String>)> {
    let mut name = [0_u8; 256];
    let (mut length, mut program, mut kind) = (name.len() as u32, 0_u32, 0_u32);
    let (mut offset, mut address) = (0_u64, 0_u64);
    // SAFETY: the kernel writes at most `length` bytes and a number to each pointer.
    let outcome = unsafe {
        libbpf_sys::bpf_task_fd_query(
            pid.cast_signed(),
            descriptor.cast_signed(),
            0,
            name.as_mut_ptr().cast(),
            &raw mut length,
            &raw mut program,
            &raw mut kind,
            &raw mut offset,
            &raw mut address,
        )
    };
    let text = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy();
    // enum bpf_task_fd_type (include/uapi/linux/bpf.h).
    let prefix = ["raw_tp", "tracepoint", "kprobe", "kretprobe", "uprobe", "uretprobe"].get(kind as usize)?;
    (outcome == 0).then(|| (program, Some(format!("{prefix}/{text}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traced_targets_are_tracepoints_or_functions() {
        assert_eq!(traced_name("btf_trace_sched_switch"), "tp_btf/sched_switch");
        assert_eq!(traced_name("vfs_read"), "function/vfs_read");
    }

    #[test]
    fn kinds_have_libbpfs_names() {
        assert_eq!(kind(2), "kprobe");
        assert_eq!(kind(4_000_000), "4000000");
    }
}
