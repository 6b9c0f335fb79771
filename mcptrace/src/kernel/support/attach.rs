//! Ways to attach, each tried with an empty program at something harmless, and detached at once.

use std::{fs, io, os::fd::OwnedFd};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{
        BtfTracePoint, FEntry, FExit, Iter, KProbe, Lsm, PerfEvent, Program, ProgramError, RawTracePoint, TracePoint,
        UProbe,
        perf_event::{HardwareEvent, PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
        uprobe::{UProbeAttachLocation, UProbeScope},
    },
    util::online_cpus,
};
use libbpf_sys as sys;

use super::{
    Check, Why,
    explain::{Facts, Failure, Needs},
    once, raw,
};
use crate::kernel::loader::Kernel;

/// An empty program for each way.
const OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/attach_types.o");
/// Runs when a thread ends: seldom, and in every kernel.
const TRACEPOINT: &str = "sched_process_exit";
/// Seldom called, in every kernel from 5.10 to 7.3, and it returns: 7.3 refuses fexit at functions that do not.
const FUNCTION: &str = "vfs_fallocate";
/// Functions that are attached to by their type.
pub(in crate::kernel) const FUNCTIONS: &[&str] = &[FUNCTION];

/// One way to attach.
struct Way {
    name: &'static str,
    purpose: &'static str,
    try_it: Try,
    needs: Needs,
}

/// How it is tried.
enum Try {
    /// With a program of the object.
    Plain(&'static str, fn(&mut Program) -> Result<(), ProgramError>),
    /// The same, with the kernel's types.
    Typed(&'static str, fn(&mut Program, &Btf) -> Result<(), ProgramError>),
    /// By libbpf's calls.
    Raw(fn() -> Result<(), Failure>),
}

const WAYS: &[Way] = &[
    Way {
        name: "tp_btf",
        purpose: "tracepoints with typed arguments; all native probes use it",
        try_it: Try::Typed("empty_tp_btf", tp_btf),
        needs: Needs {
            since: (5, 5),
            config: &["BPF_EVENTS", "DEBUG_INFO_BTF"],
            built: "typed tracepoints",
            tracefs: false,
        },
    },
    Way {
        name: "raw_tp",
        purpose: "tracepoints with raw arguments",
        try_it: Try::Plain("empty_raw_tp", raw_tp),
        needs: Needs { since: (4, 17), config: &["BPF_EVENTS"], built: "eBPF tracing", tracefs: false },
    },
    Way {
        name: "tracepoint",
        purpose: "tracepoints by their format files; scripts use it",
        try_it: Try::Plain("empty_tracepoint", tracepoint),
        needs: Needs { since: (4, 7), config: &["BPF_EVENTS"], built: "eBPF tracing", tracefs: true },
    },
    Way {
        name: "perf_event",
        purpose: "sampling by the clock: CPU profiles",
        try_it: Try::Plain("empty_perf_event", perf_event),
        needs: Needs { since: (4, 9), config: &["PERF_EVENTS"], built: "perf events", tracefs: false },
    },
    Way {
        name: "perf_event:hardware",
        purpose: "sampling by the processor's counters: cycles, cache misses",
        try_it: Try::Plain("empty_perf_event", perf_event_hardware),
        needs: Needs { since: (4, 9), config: &["PERF_EVENTS"], built: "", tracefs: false },
    },
    Way {
        name: "uprobe",
        purpose: "entry of functions of programs and libraries",
        try_it: Try::Plain("empty_uprobe", uprobe),
        needs: UPROBE,
    },
    Way {
        name: "uretprobe",
        purpose: "return of functions of programs and libraries",
        try_it: Try::Plain("empty_uretprobe", uprobe),
        needs: UPROBE,
    },
    Way {
        name: "uprobe_multi",
        purpose: "many functions of a program at once",
        try_it: Try::Raw(uprobe_multi),
        needs: Needs { since: (6, 6), ..UPROBE },
    },
    Way {
        name: "iter",
        purpose: "walks over all tasks in one go",
        try_it: Try::Typed("empty_iter", iter),
        needs: Needs {
            since: (5, 8),
            config: &["BPF_SYSCALL", "DEBUG_INFO_BTF"],
            built: "eBPF iterators",
            tracefs: false,
        },
    },
    Way {
        name: "kprobe",
        purpose: "entry of most kernel functions",
        try_it: Try::Plain("empty_kprobe", kprobe),
        needs: KPROBE,
    },
    Way {
        name: "kretprobe",
        purpose: "return of most kernel functions",
        try_it: Try::Plain("empty_kretprobe", kprobe),
        needs: KPROBE,
    },
    Way {
        name: "kprobe_multi",
        purpose: "many kernel functions at once",
        try_it: Try::Raw(kprobe_multi),
        needs: Needs { since: (5, 18), config: &["FPROBE"], built: "fprobes", tracefs: false },
    },
    Way {
        name: "fentry",
        purpose: "entry of kernel functions with typed arguments",
        try_it: Try::Typed("empty_fentry", fentry),
        needs: FENTRY,
    },
    Way {
        name: "fexit",
        purpose: "return of kernel functions with typed arguments",
        try_it: Try::Typed("empty_fexit", fexit),
        needs: FENTRY,
    },
    Way {
        name: "lsm",
        purpose: "hooks of security modules",
        try_it: Try::Typed("empty_lsm", lsm),
        needs: Needs {
            since: (5, 7),
            config: &["BPF_LSM", "DEBUG_INFO_BTF"],
            built: "eBPF security modules",
            tracefs: false,
        },
    },
];

const UPROBE: Needs = Needs { since: (4, 17), config: &["UPROBES", "UPROBE_EVENTS"], built: "uprobes", tracefs: false };
const KPROBE: Needs = Needs { since: (4, 17), config: &["KPROBES", "KPROBE_EVENTS"], built: "kprobes", tracefs: false };
const FENTRY: Needs = Needs {
    since: (5, 5),
    config: &["FUNCTION_TRACER", "DYNAMIC_FTRACE", "DEBUG_INFO_BTF"],
    built: "typed function probes",
    tracefs: false,
};

/// Tries every way.
pub(super) fn check(kernel: Option<&Kernel>, facts: &Facts) -> Vec<Check> {
    let mut object = load(kernel);
    WAYS.iter().map(|way| try_way(way, &mut object, kernel, facts)).collect()
}

fn load(kernel: Option<&Kernel>) -> Result<Ebpf, Failure> {
    match kernel {
        Some(kernel) => kernel.load(OBJECT),
        // Without the kernel's types there is nothing to parse again.
        None => EbpfLoader::new().btf(None).load(OBJECT),
    }
    .map_err(|error| Failure::of(&error))
}

fn try_way(way: &Way, object: &mut Result<Ebpf, Failure>, kernel: Option<&Kernel>, facts: &Facts) -> Check {
    // aya remembers for good that there is no tracefs, so it is not asked before there is one.
    let hopeless = way.needs.tracefs && !facts.tracefs.readable;
    let outcome = if hopeless { Err(Failure::default()) } else { once(way.name, || run(way, object, kernel)) };
    match outcome.map_err(|failure| explain(way, &failure, facts)).err().or_else(|| inactive(way.name, facts)) {
        None => Check::works(way.name, way.purpose),
        Some(why) => Check::fails(way.name, way.purpose, why),
    }
}

fn run(way: &Way, object: &mut Result<Ebpf, Failure>, kernel: Option<&Kernel>) -> Result<(), Failure> {
    let outcome = match way.try_it {
        Try::Raw(test) => return test(),
        Try::Plain(name, attach) => attach(program(object, name)?),
        Try::Typed(name, attach) => attach(program(object, name)?, kernel.ok_or_else(Failure::no_types)?.btf()),
    };
    outcome.map_err(|error| Failure::of(&error))
}

fn program<'a>(object: &'a mut Result<Ebpf, Failure>, name: &str) -> Result<&'a mut Program, Failure> {
    let ebpf = object.as_mut().map_err(|failure| failure.clone())?;
    ebpf.program_mut(name).ok_or_else(|| Failure::said("the object has no such program"))
}

fn explain(way: &Way, failure: &Failure, facts: &Facts) -> Why {
    let virtual_machine = failure.is(&[libc::ENOENT, libc::EOPNOTSUPP, libc::ENODEV]);
    if way.name == "perf_event:hardware" && virtual_machine {
        let reason = "this machine shows no hardware counters, as most virtual machines";
        return Why::with_remedy(
            reason,
            "sample by the clock (perf_event), or let the hypervisor pass the counters on",
        );
    }
    facts.explain(failure, &way.needs)
}

/// A program that attaches and yet never runs: security hooks of a module that is not active.
fn inactive(name: &str, facts: &Facts) -> Option<Why> {
    let modules = facts.modules.as_ref().filter(|_| name == "lsm")?;
    let active = modules.split(',').any(|module| module == "bpf");
    let reason = format!("programs attach but never run: bpf is not among the active security modules ({modules})");
    (!active).then(|| Why::with_remedy(reason, format!("boot with lsm={modules},bpf")))
}

fn tp_btf(program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(TRACEPOINT, btf)?;
    program.attach()?;
    program.unload()
}

fn raw_tp(program: &mut Program) -> Result<(), ProgramError> {
    let program: &mut RawTracePoint = program.try_into()?;
    program.load()?;
    program.attach(TRACEPOINT)?;
    program.unload()
}

fn tracepoint(program: &mut Program) -> Result<(), ProgramError> {
    let program: &mut TracePoint = program.try_into()?;
    program.load()?;
    program.attach("sched", TRACEPOINT)?;
    program.unload()
}

fn perf_event(program: &mut Program) -> Result<(), ProgramError> {
    sample(program, PerfEventConfig::Software(SoftwareEvent::CpuClock))
}

fn perf_event_hardware(program: &mut Program) -> Result<(), ProgramError> {
    sample(program, PerfEventConfig::Hardware(HardwareEvent::CpuCycles))
}

/// One sample a second on one CPU.
fn sample(program: &mut Program, config: PerfEventConfig) -> Result<(), ProgramError> {
    let cpu = online_cpus().ok().and_then(|cpus| cpus.first().copied()).unwrap_or(0);
    let program: &mut PerfEvent = program.try_into()?;
    if program.fd().is_err() {
        program.load()?;
    }
    program.attach(config, PerfEventScope::AllProcessesOneCpu { cpu }, SamplePolicy::Frequency(1), false)?;
    program.unload()
}

fn kprobe(program: &mut Program) -> Result<(), ProgramError> {
    let program: &mut KProbe = program.try_into()?;
    program.load()?;
    program.attach(FUNCTION, 0)?;
    program.unload()
}

fn fentry(program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    let program: &mut FEntry = program.try_into()?;
    program.load(FUNCTION, btf)?;
    program.attach()?;
    program.unload()
}

fn fexit(program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    let program: &mut FExit = program.try_into()?;
    program.load(FUNCTION, btf)?;
    program.attach()?;
    program.unload()
}

fn lsm(program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    let program: &mut Lsm = program.try_into()?;
    program.load("task_free", btf)?;
    program.attach()?;
    program.unload()
}

fn iter(program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    let program: &mut Iter = program.try_into()?;
    program.load("task", btf)?;
    let link = program.attach()?;
    drop(program.take_link(link)?.into_file().map_err(io::Error::other)?);
    program.unload()
}

/// At a function of this program that nobody calls, for this thread only.
fn uprobe(program: &mut Program) -> Result<(), ProgramError> {
    let offset = own_offset().ok_or(ProgramError::IOError(io::Error::other(
        "where this program's code is in its file cannot be read from /proc/self/maps",
    )))?;
    let program: &mut UProbe = program.try_into()?;
    program.load()?;
    program.attach(UProbeAttachLocation::AbsoluteOffset(offset), OWN_FILE, UProbeScope::CallingProcess)?;
    program.unload()
}

fn uprobe_multi() -> Result<(), Failure> {
    let program = load_raw(sys::BPF_TRACE_UPROBE_MULTI)?;
    let offset = own_offset()
        .ok_or_else(|| Failure::said("where this program's code is in its file cannot be read from /proc/self/maps"))?;
    raw::link_uprobe_multi(&program, OWN_FILE, offset).map(drop).map_err(|error| Failure::of(&error))
}

fn kprobe_multi() -> Result<(), Failure> {
    let program = load_raw(sys::BPF_TRACE_KPROBE_MULTI)?;
    raw::link_kprobe_multi(&program, FUNCTION).map(drop).map_err(|error| Failure::of(&error))
}

fn load_raw(attach: u32) -> Result<OwnedFd, Failure> {
    let code = raw::return_zero();
    let program = raw::Program { kind: sys::BPF_PROG_TYPE_KPROBE, attach, flags: 0, code: &code };
    raw::load(&program).map_err(|(error, _)| Failure::of(&error))
}

/// The file of the running program, even if it was replaced or removed since.
const OWN_FILE: &str = "/proc/self/exe";

/// Where [`target`] is in the file of the running program.
fn own_offset() -> Option<u64> {
    let address = target as *const () as u64;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| file_offset(line, address))
}

/// A function to attach to.
#[inline(never)]
extern "C" fn target() {
    std::hint::black_box(());
}

/// The offset in its file of an address that a line of `/proc/self/maps` covers: `start-end perms offset …`, in hex.
fn file_offset(line: &str, address: u64) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    let [start, end, offset] = [start, end, offset].map(|number| u64::from_str_radix(number, 16).ok());
    (start?..end?).contains(&address).then(|| offset.map(|offset| address - start.unwrap_or(0) + offset))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_an_offset_in_its_file() {
        let line = "55d0c0100000-55d0c0200000 r-xp 00042000 fe:00 1234   /usr/bin/mcptrace";
        assert_eq!(file_offset(line, 0x55d0_c010_0123), Some(0x42123));
        assert_eq!(file_offset(line, 0x55d0_c020_0000), None);
        assert_eq!(file_offset("broken", 1), None);
    }

    #[test]
    fn the_target_is_in_this_programs_file() {
        assert!(own_offset().is_some());
    }

    #[test]
    fn each_way_has_a_name_of_its_own_and_a_purpose() {
        let mut names: Vec<_> = WAYS.iter().map(|way| way.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WAYS.len());
        assert!(WAYS.iter().all(|way| !way.purpose.is_empty()));
    }

    #[test]
    fn an_lsm_program_that_never_runs_does_not_count_as_working() {
        let with = |modules: &str| Facts { modules: Some(modules.into()), ..Facts::default() };
        assert!(inactive("lsm", &with("lockdown,capability,bpf")).is_none());
        assert!(inactive("lsm", &with("lockdown,yama")).unwrap().remedy.unwrap().contains("lsm=lockdown,yama,bpf"));
        assert!(inactive("tp_btf", &with("yama")).is_none());
        assert!(inactive("lsm", &Facts::default()).is_none(), "unknown is not inactive");
    }
}
