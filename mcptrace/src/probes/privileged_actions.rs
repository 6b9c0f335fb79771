//! What changes or needs privilege: identities, mounts, tracing, modules, eBPF, namespaces.

use std::ffi::CStr;

use aya::maps::MapError;
use mcptrace_wire::{PRIVILEGED_STRING, PrivilegedCall, SYSCALLS};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Context, Found, OptionError, Probe, actor,
    options::Transport,
    parse, plain, plan_of, put,
    syscall_counts::{syscall_globals, words},
    syscall_latency::forks,
};
use crate::{
    clock::Clock,
    errno,
    kernel::{
        arch::{ARCH, syscall_name, syscall_pair},
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Row},
    signals,
    text::untrusted,
};

/// Buffer for events: 3,300.
const EVENT_BYTES: u32 = 2 << 20;

/// How an argument is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// A number.
    Number,
    /// A signed number: ids, where -1 means unchanged, and descriptors.
    Signed,
    /// A string of the caller.
    Text,
    /// Bits with names.
    Flags(&'static [(u64, &'static str)]),
    /// One of several numbers with names.
    One(&'static [(u64, &'static str)]),
    /// A signal.
    Signal,
}
use As::{Flags, Number, One, Signal, Signed, Text};

/// What an action is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Kind {
    /// Users, groups and capabilities.
    Identity,
    /// Mounts, roots and swap.
    Mount,
    /// Other processes, with every step.
    Ptrace,
    /// Kernel modules.
    Module,
    /// eBPF, with every step.
    Bpf,
    /// Namespaces.
    Namespace,
    /// Clock, ports, reboot.
    Machine,
}

impl Kind {
    /// As it stands in events.
    fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Mount => "mount",
            Self::Ptrace => "ptrace",
            Self::Module => "module",
            Self::Bpf => "bpf",
            Self::Namespace => "namespace",
            Self::Machine => "machine",
        }
    }
}

/// A call that is reported: what it does, and its arguments by name, in order; an empty name is left out.
struct Action {
    syscall: &'static str,
    kind: Kind,
    arguments: &'static [(&'static str, As)],
}

const fn action(syscall: &'static str, kind: Kind, arguments: &'static [(&'static str, As)]) -> Action {
    Action { syscall, kind, arguments }
}

/// Every call that is reported, with its arguments as the manual has them.
const ACTIONS: &[Action] = &[
    action("setuid", Kind::Identity, &[("uid", Signed)]),
    action("setgid", Kind::Identity, &[("gid", Signed)]),
    action("setreuid", Kind::Identity, &[("ruid", Signed), ("euid", Signed)]),
    action("setregid", Kind::Identity, &[("rgid", Signed), ("egid", Signed)]),
    action("setresuid", Kind::Identity, &[("ruid", Signed), ("euid", Signed), ("suid", Signed)]),
    action("setresgid", Kind::Identity, &[("rgid", Signed), ("egid", Signed), ("sgid", Signed)]),
    action("setfsuid", Kind::Identity, &[("fsuid", Signed)]),
    action("setfsgid", Kind::Identity, &[("fsgid", Signed)]),
    action("setgroups", Kind::Identity, &[("groups", Number)]),
    action("capset", Kind::Identity, &[]),
    action("mount", Kind::Mount, &[("source", Text), ("target", Text), ("type", Text), ("flags", Flags(MOUNT))]),
    action("umount2", Kind::Mount, &[("target", Text), ("flags", Number)]),
    action("pivot_root", Kind::Mount, &[("new_root", Text), ("put_old", Text)]),
    action("chroot", Kind::Mount, &[("path", Text)]),
    action("move_mount", Kind::Mount, &[("", Number), ("from", Text), ("", Number), ("to", Text)]),
    action("fsopen", Kind::Mount, &[("type", Text)]),
    action("fsconfig", Kind::Mount, &[("fd", Signed), ("command", One(FSCONFIG)), ("key", Text), ("value", Text)]),
    action("fsmount", Kind::Mount, &[("fd", Signed)]),
    action("open_tree", Kind::Mount, &[("", Number), ("path", Text)]),
    action("mount_setattr", Kind::Mount, &[("", Number), ("path", Text)]),
    action("swapon", Kind::Mount, &[("path", Text)]),
    action("swapoff", Kind::Mount, &[("path", Text)]),
    action("ptrace", Kind::Ptrace, &[("request", One(PTRACE)), ("pid", Signed)]),
    action("process_vm_readv", Kind::Ptrace, &[("pid", Signed)]),
    action("process_vm_writev", Kind::Ptrace, &[("pid", Signed)]),
    action("pidfd_getfd", Kind::Ptrace, &[("pidfd", Signed), ("fd", Signed)]),
    action("init_module", Kind::Module, &[("", Number), ("bytes", Number), ("parameters", Text)]),
    action("finit_module", Kind::Module, &[("fd", Signed), ("parameters", Text), ("flags", Number)]),
    action("delete_module", Kind::Module, &[("name", Text), ("flags", Number)]),
    action("kexec_load", Kind::Module, &[]),
    action("kexec_file_load", Kind::Module, &[("kernel_fd", Signed)]),
    action("bpf", Kind::Bpf, &[("command", One(BPF))]),
    action("unshare", Kind::Namespace, &[("flags", Flags(CLONE))]),
    action("setns", Kind::Namespace, &[("fd", Signed), ("type", Flags(CLONE))]),
    action("clone", Kind::Namespace, &[]),
    action("clone3", Kind::Namespace, &[]),
    action("iopl", Kind::Machine, &[("level", Number)]),
    action("ioperm", Kind::Machine, &[("from", Number), ("ports", Number), ("on", Number)]),
    action("reboot", Kind::Machine, &[("", Number), ("", Number), ("command", Number)]),
    action("settimeofday", Kind::Machine, &[]),
    action("clock_settime", Kind::Machine, &[("clock", Signed)]),
    action("adjtimex", Kind::Machine, &[]),
    action("clock_adjtime", Kind::Machine, &[("clock", Signed)]),
    action("sethostname", Kind::Machine, &[]),
    action("acct", Kind::Machine, &[("path", Text)]),
    action("pidfd_send_signal", Kind::Ptrace, &[("pidfd", Signed), ("signal", Signal)]),
];

/// `ADJ_*` (include/uapi/linux/timex.h).
const CLOCK_MODES: &[(u64, &str)] = &[
    (1, "ADJ_OFFSET"),
    (2, "ADJ_FREQUENCY"),
    (4, "ADJ_MAXERROR"),
    (8, "ADJ_ESTERROR"),
    (0x10, "ADJ_STATUS"),
    (0x20, "ADJ_TIMECONST"),
    (0x80, "ADJ_TAI"),
    (0x100, "ADJ_SETOFFSET"),
    (0x1000, "ADJ_MICRO"),
    (0x2000, "ADJ_NANO"),
    (0x4000, "ADJ_TICK"),
    (0x8000, "ADJ_ADJTIME"),
];
/// `MS_*` (include/uapi/linux/mount.h).
const MOUNT: &[(u64, &str)] = &[
    (1, "MS_RDONLY"),
    (2, "MS_NOSUID"),
    (4, "MS_NODEV"),
    (8, "MS_NOEXEC"),
    (16, "MS_SYNCHRONOUS"),
    (32, "MS_REMOUNT"),
    (1024, "MS_NOATIME"),
    (4096, "MS_BIND"),
    (8192, "MS_MOVE"),
    (16_384, "MS_REC"),
    (32_768, "MS_SILENT"),
    (1 << 17, "MS_UNBINDABLE"),
    (1 << 18, "MS_PRIVATE"),
    (1 << 19, "MS_SLAVE"),
    (1 << 20, "MS_SHARED"),
    (1 << 21, "MS_RELATIME"),
];
/// `enum fsconfig_command` (include/uapi/linux/mount.h).
const FSCONFIG: &[(u64, &str)] = &[
    (0, "FSCONFIG_SET_FLAG"),
    (1, "FSCONFIG_SET_STRING"),
    (2, "FSCONFIG_SET_BINARY"),
    (3, "FSCONFIG_SET_PATH"),
    (4, "FSCONFIG_SET_PATH_EMPTY"),
    (5, "FSCONFIG_SET_FD"),
    (6, "FSCONFIG_CMD_CREATE"),
    (7, "FSCONFIG_CMD_RECONFIGURE"),
    (8, "FSCONFIG_CMD_CREATE_EXCL"),
];
/// `CLONE_*` (include/uapi/linux/sched.h): those that unshare and setns take, and clone when it makes namespaces.
const CLONE: &[(u64, &str)] = &[
    (0x80, "CLONE_NEWTIME"),
    (0x200, "CLONE_FS"),
    (0x400, "CLONE_FILES"),
    (0x2_0000, "CLONE_NEWNS"),
    (0x4_0000, "CLONE_SYSVSEM"),
    (0x200_0000, "CLONE_NEWCGROUP"),
    (0x400_0000, "CLONE_NEWUTS"),
    (0x800_0000, "CLONE_NEWIPC"),
    (0x1000_0000, "CLONE_NEWUSER"),
    (0x2000_0000, "CLONE_NEWPID"),
    (0x4000_0000, "CLONE_NEWNET"),
];
/// `PTRACE_*` (include/uapi/linux/ptrace.h).
const PTRACE: &[(u64, &str)] = &[
    (0, "PTRACE_TRACEME"),
    (1, "PTRACE_PEEKTEXT"),
    (2, "PTRACE_PEEKDATA"),
    (3, "PTRACE_PEEKUSR"),
    (4, "PTRACE_POKETEXT"),
    (5, "PTRACE_POKEDATA"),
    (6, "PTRACE_POKEUSR"),
    (7, "PTRACE_CONT"),
    (8, "PTRACE_KILL"),
    (9, "PTRACE_SINGLESTEP"),
    (16, "PTRACE_ATTACH"),
    (17, "PTRACE_DETACH"),
    (24, "PTRACE_SYSCALL"),
    (0x4200, "PTRACE_SETOPTIONS"),
    (0x4201, "PTRACE_GETEVENTMSG"),
    (0x4202, "PTRACE_GETSIGINFO"),
    (0x4203, "PTRACE_SETSIGINFO"),
    (0x4204, "PTRACE_GETREGSET"),
    (0x4205, "PTRACE_SETREGSET"),
    (0x4206, "PTRACE_SEIZE"),
    (0x4207, "PTRACE_INTERRUPT"),
    (0x4208, "PTRACE_LISTEN"),
    (0x420e, "PTRACE_GET_SYSCALL_INFO"),
];
/// `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF: &[(u64, &str)] = &[
    (0, "BPF_MAP_CREATE"),
    (1, "BPF_MAP_LOOKUP_ELEM"),
    (2, "BPF_MAP_UPDATE_ELEM"),
    (3, "BPF_MAP_DELETE_ELEM"),
    (4, "BPF_MAP_GET_NEXT_KEY"),
    (5, "BPF_PROG_LOAD"),
    (6, "BPF_OBJ_PIN"),
    (7, "BPF_OBJ_GET"),
    (8, "BPF_PROG_ATTACH"),
    (9, "BPF_PROG_DETACH"),
    (10, "BPF_PROG_TEST_RUN"),
    (11, "BPF_PROG_GET_NEXT_ID"),
    (12, "BPF_MAP_GET_NEXT_ID"),
    (13, "BPF_PROG_GET_FD_BY_ID"),
    (14, "BPF_MAP_GET_FD_BY_ID"),
    (15, "BPF_OBJ_GET_INFO_BY_FD"),
    (16, "BPF_PROG_QUERY"),
    (17, "BPF_RAW_TRACEPOINT_OPEN"),
    (18, "BPF_BTF_LOAD"),
    (19, "BPF_BTF_GET_FD_BY_ID"),
    (20, "BPF_TASK_FD_QUERY"),
    (21, "BPF_MAP_LOOKUP_AND_DELETE_ELEM"),
    (22, "BPF_MAP_FREEZE"),
    (23, "BPF_BTF_GET_NEXT_ID"),
    (24, "BPF_MAP_LOOKUP_BATCH"),
    (25, "BPF_MAP_LOOKUP_AND_DELETE_BATCH"),
    (26, "BPF_MAP_UPDATE_BATCH"),
    (27, "BPF_MAP_DELETE_BATCH"),
    (28, "BPF_LINK_CREATE"),
    (29, "BPF_LINK_UPDATE"),
    (30, "BPF_LINK_GET_FD_BY_ID"),
    (31, "BPF_LINK_GET_NEXT_ID"),
    (32, "BPF_ENABLE_STATS"),
    (33, "BPF_ITER_CREATE"),
    (34, "BPF_LINK_DETACH"),
    (35, "BPF_PROG_BIND_MAP"),
    (36, "BPF_TOKEN_CREATE"),
];

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct PrivilegedActions {
    has_steps: bool,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only what failed
    pub failed_only: bool,
    /// Only this kind
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Kind")]
    pub kind: Option<Kind>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for PrivilegedActions {
    const NAME: &'static str = "privileged_actions";
    const SUMMARY: &'static str = "Who changes identity, mounts, traces, loads modules or eBPF, or enters namespaces?";
    const CATEGORY: &'static str = "security";
    const DETAILS: &'static str = "One event for each such system call when it returns, whether it succeeded or not. kind: identity (setuid and \
        kin, capset), mount (also chroot, pivot_root, swap), ptrace (also reading another process's memory and descriptors), module, bpf, \
        namespace (unshare, setns, a clone that makes one), machine (clock, ports, reboot; adjtimex and \
        clock_adjtime only where they steer, not where they read). Of ptrace only the requests that attach, and of bpf \
        no reading of maps and lists, which debuggers and tracers do by the thousand: options.kind = ptrace or bpf shows every call, this \
        server's own included. uid is that after the call. Strings are what the caller passed, at most 127 bytes, read at \
        return; of fsconfig only the source is shown, because other values can be passwords. A 32-bit call has its prefix. Not seen: privilege \
        gained by executing a set-uid program (process_exec shows it run) and what io_uring does.";
    const NEXT: &'static [&'static str] = &[
        "refused with EPERM: capability_checks with options.failed_only",
        "who that process is and where it comes from: process_exec",
        "kind bpf: bpf_programs shows what is loaded",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"privileged_actions","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/privileged_actions.o");
    const HOOKS: &'static [Attach] = &[Attach::tracepoint("exit", "sys_exit")];
    const NEEDS: &'static [&'static str] = &["TASK_COMPAT_WORD", "TASK_COMM", "TASK_TGID", "TASK_REAL_PARENT"];
    const COUNTS: &'static str = "exit";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 510.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        plan.globals.push(("REGS_FOURTH", words(&ARCH.regs_fourth)));
        plan.globals.push(("FORKS", forks()));
        plan.globals.push(("FAILED_ONLY", u32::from(options.failed_only).to_ne_bytes().to_vec()));
        plan.globals.push(("CLONE", words(&syscall_pair("clone"))));
        plan.globals.push(("CLONE3", words(&syscall_pair("clone3"))));
        let [adjtime, compat_adjtime] = syscall_pair("clock_adjtime");
        plan.globals.push(("ADJTIMEX", words(&syscall_pair("adjtimex"))));
        plan.globals.push(("CLOCK_ADJTIME", words(&[adjtime, compat_adjtime, syscall_pair("clock_adjtime64")[1]])));
        let wanted = |action: &Action| options.kind.is_none_or(|kind| action.kind == kind);
        plan.globals.push(("WANTED", bits(wanted)));
        plan.globals.push(("STEPS", u32::from(options.kind.is_some()).to_ne_bytes().to_vec()));
        plan.globals.push(("PTRACE", words(&syscall_pair("ptrace"))));
        plan.globals.push(("BPF", words(&syscall_pair("bpf"))));
        let strings = (0..4).flat_map(|place| bits(|action| has_text(action, place)));
        plan.globals.push(("STRINGS", strings.collect()));
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self { has_steps: options.kind.is_some() }, plan))
    }

    fn report(&self, _maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let note = "of ptrace and bpf, calls that begin something are listed, not each step after it; options.kind = ptrace or bpf lists all";
        let notes = (!self.has_steps).then(|| note.to_owned()).into_iter().collect();
        Ok(Found { notes, ..Found::default() })
    }

    fn fields() -> Vec<Field> {
        Self::event_fields()
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "kind", "syscall", "arguments", "result", "errno"]);
        fields.extend(plain(&actor::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<PrivilegedCall>(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (call, _) = parse::<PrivilegedCall>(record)?;
        let syscall = syscall_name(call.syscall);
        let action = action_of(&syscall)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(call.time_ns));
        put(&mut row, "kind", action.kind.as_str());
        put(&mut row, "arguments", arguments(action, &call));
        put(&mut row, "syscall", syscall);
        if (-4095..0).contains(&call.result) {
            put(&mut row, "errno", errno::name(-call.result as i32));
        } else {
            put(&mut row, "result", call.result);
        }
        actor::insert(&mut row, &call.actor);
        Some(row)
    }
}

/// 32-bit tables have second calls for ids of 32 bits (setuid32) and times of 64 (clock_settime64).
const WIDE: [&str; 2] = ["32", "64"];

/// What a call is.
fn action_of(syscall: &str) -> Option<&'static Action> {
    let compat = syscall.strip_prefix(ARCH.compat_prefix);
    let narrow = |name| WIDE.iter().find_map(|wide| str::strip_suffix(name, wide)).unwrap_or(name);
    let plain = compat.map_or(syscall, narrow);
    ACTIONS.iter().find(|action| action.syscall == plain)
}

/// The indexes of an action's calls.
fn indexes(action: &Action) -> impl Iterator<Item = u32> {
    let [native, compat] = syscall_pair(action.syscall);
    let wide = WIDE.map(|wide| syscall_pair(&format!("{}{wide}", action.syscall))[1]);
    [native, compat].into_iter().chain(wide).filter(|index| *index != u32::MAX)
}

fn has_text(action: &Action, place: usize) -> bool {
    action.arguments.get(place).is_some_and(|(_, kind)| *kind == Text)
}

/// A bit for each call, native and 32-bit, of the actions that are wanted.
fn bits(wanted: impl Fn(&Action) -> bool) -> Vec<u8> {
    let mut words = [0_u64; SYSCALLS as usize / 64];
    for index in ACTIONS.iter().filter(|action| wanted(action)).flat_map(indexes) {
        if let Some(word) = words.get_mut(index as usize / 64) {
            *word |= 1 << (index % 64);
        }
    }
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn arguments(action: &Action, call: &PrivilegedCall) -> Row {
    let mut row = Row::new();
    for (place, (name, kind)) in action.arguments.iter().enumerate().filter(|(_, (name, _))| !name.is_empty()) {
        put(&mut row, name, argument(*kind, call, place));
    }
    // Values of other keys can be passwords of network file systems.
    if action.syscall == "fsconfig" && row.get("key").is_none_or(|key| key != "source") {
        row.remove("value");
    }
    if action.syscall.starts_with("clone") {
        put(&mut row, "flags", flags(CLONE, call.flags));
    }
    if action.syscall.contains("adjtime") {
        put(&mut row, "modes", flags(CLOCK_MODES, call.flags));
    }
    row
}

fn argument(kind: As, call: &PrivilegedCall, place: usize) -> Value {
    let value = call.arguments[place];
    match kind {
        Number => value.into(),
        // These are all of 32 bits.
        Signed => (value as i32).into(),
        Text if call.strings_read >> place & 1 == 0 => Value::Null,
        Text => text(&call.strings[place]).into(),
        Flags(names) => flags(names, value).into(),
        One(names) => {
            names.iter().find(|(number, _)| *number == value).map_or_else(|| value.into(), |(_, name)| (*name).into())
        }
        Signal => signals::name(value as i32).into(),
    }
}

fn text(bytes: &[u8]) -> String {
    let until_nul = CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes);
    untrusted(until_nul, PRIVILEGED_STRING)
}

/// The names of bits, and what is left as a number.
fn flags(names: &[(u64, &str)], value: u64) -> String {
    let mut left = value;
    let mut text = Vec::new();
    for (bit, name) in names.iter().filter(|(bit, _)| value & bit == *bit) {
        text.push((*name).to_owned());
        left &= !bit;
    }
    if left != 0 || text.is_empty() {
        text.push(format!("{left:#x}"));
    }
    text.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_a_system_call_and_stands_once() {
        for action in ACTIONS {
            let known = syscall_pair(action.syscall)[0] != u32::MAX;
            // aarch64 has no ports and no fork of its own kind.
            assert!(known || ["iopl", "ioperm"].contains(&action.syscall), "{}", action.syscall);
            assert!(action.arguments.len() <= 4);
        }
        let mut names: Vec<_> = ACTIONS.iter().map(|action| action.syscall).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ACTIONS.len());
    }

    #[test]
    fn a_call_has_its_bit_in_the_tables() {
        let is_set = |table: &[u8], index: u32| {
            let word = u64::from_ne_bytes(table[index as usize / 64 * 8..][..8].try_into().unwrap());
            word >> (index % 64) & 1 != 0
        };
        let (wanted, second) = (bits(|_| true), bits(|action| has_text(action, 1)));
        for index in syscall_pair("mount").into_iter().filter(|index| *index != u32::MAX) {
            assert!(is_set(&wanted, index) && is_set(&second, index));
        }
        let [read, setuid] = ["read", "setuid"].map(|name| syscall_pair(name)[0]);
        assert!(!is_set(&wanted, read) && is_set(&wanted, setuid) && !is_set(&second, setuid));
    }

    #[test]
    fn of_a_new_mount_the_source_is_shown_and_no_password() {
        let of = |key: &str, value: &str| {
            let mut call = crate::probes::read::<PrivilegedCall>(&[0; size_of::<PrivilegedCall>()]).unwrap();
            call.strings_read = 0b1100;
            call.arguments[1] = 1;
            call.strings[2][..key.len()].copy_from_slice(key.as_bytes());
            call.strings[3][..value.len()].copy_from_slice(value.as_bytes());
            Value::from(arguments(action_of("fsconfig").unwrap(), &call))
        };
        let source =
            serde_json::json!({"fd": 0, "command": "FSCONFIG_SET_STRING", "key": "source", "value": "/dev/sda1"});
        assert_eq!(of("source", "/dev/sda1"), source);
        let password = serde_json::json!({"fd": 0, "command": "FSCONFIG_SET_STRING", "key": "password"});
        assert_eq!(of("password", "hunter2"), password);
    }

    #[test]
    fn flags_are_named_and_none_is_lost() {
        assert_eq!(flags(CLONE, 0x2002_0000), "CLONE_NEWNS|CLONE_NEWPID");
        assert_eq!(flags(MOUNT, 0x1001), "MS_RDONLY|MS_BIND");
        assert_eq!(flags(CLONE, 0), "0x0");
        assert_eq!(flags(CLONE, 1 << 40 | 0x80), "CLONE_NEWTIME|0x10000000000");
    }
}
