//! What the policy allows and refuses: tables, and how they are read. Pure.
//!
//! Names are of bpftrace 0.17 to 0.23 (`docs/language.adoc`, `man bpftrace`).

use std::cmp::Reverse;

use super::{
    Admitted, Fault, Hook, Output, Policy,
    lexer::{Kind, Token, clip},
    parser::{Call, Script},
};
use crate::bpftrace::{
    child::MAP_KEYS,
    error::{Category, nearest},
};

/// How many probes a program may attach, wildcards counted as what they stand for; the bound of bpftrace 0.17 too.
pub(super) const PROBES: usize = 512;
/// How often a loop is unrolled; 0.17 takes 20, later ones 100.
pub(super) const REPEATS: u64 = 100;
/// The fastest sampling and the fastest interval.
const HERTZ: u64 = 1000;

/// Functions that compute, format, or keep in maps.
const FUNCTIONS: &[&str] = &[
    "avg",
    "bswap",
    "buf",
    "cgroup_path",
    "cgroupid",
    "clear",
    "count",
    "delete",
    "elapsed",
    "errorf",
    "exit",
    "has_key",
    "hist",
    "jiffies",
    "join",
    "kaddr",
    "kptr",
    "kstack",
    "ksym",
    "len",
    "lhist",
    "macaddr",
    "max",
    "min",
    "nsecs",
    "ntop",
    "offsetof",
    "path",
    "percpu_kaddr",
    "pid",
    "ppid",
    "print",
    "printf",
    "pton",
    "reg",
    "sizeof",
    "socket_cookie",
    "stats",
    "str",
    "strcontains",
    "strerror",
    "strftime",
    "strncmp",
    "strstr",
    "sum",
    "tid",
    "time",
    "tseries",
    "uaddr",
    "uptr",
    "ustack",
    "usym",
    "warnf",
    "zero",
];

/// Values that are there without a call. Later versions have functions of some of these names too.
const BUILTINS: &[&str] = &[
    "arg0",
    "arg1",
    "arg2",
    "arg3",
    "arg4",
    "arg5",
    "arg6",
    "arg7",
    "arg8",
    "arg9",
    "args",
    "cgroup",
    "comm",
    "cpid",
    "cpu",
    "ctx",
    "curtask",
    "elapsed",
    "func",
    "gid",
    "jiffies",
    "kstack",
    "ncpus",
    "nsecs",
    "numaid",
    "pid",
    "ppid",
    "probe",
    "rand",
    "retval",
    "sarg0",
    "sarg1",
    "sarg2",
    "sarg3",
    "sarg4",
    "sarg5",
    "sarg6",
    "sarg7",
    "sarg8",
    "sarg9",
    "tid",
    "uid",
    "usermode",
    "username",
    "ustack",
    // What functions take: forms of stacks and clocks, and truth.
    "bpftrace",
    "perf",
    "raw",
    "build_id",
    "boot",
    "monotonic",
    "tai",
    "sw_tai",
    "true",
    "false",
];

/// Functions that do something to the host, and what.
const HARMFUL: &[(&str, &str)] = &[
    ("system", "it runs commands on the host"),
    ("cat", "it reads any file of the host"),
    ("signal", "it sends signals to processes"),
    ("signal_thread", "it sends signals to threads"),
    ("override", "it changes what the kernel's functions return"),
    ("override_return", "it changes what the kernel's functions return"),
    ("skboutput", "it writes files"),
    ("skb_output", "it writes files"),
    ("unwatch", "it belongs to watchpoints, which stop threads"),
    ("debugf", "it writes into the kernel's trace buffer, which is shared"),
];

/// Functions that send something to user space whenever they are reached.
///
/// `strftime` is none: it only formats what another one sends, or a key when its map is printed.
const OUTPUT: &[&str] = &["printf", "print", "time", "join", "clear", "zero", "errorf", "warnf"];

/// A type of probes: its names, and what is asked of the rest.
struct Type {
    names: &'static [&'static str],
    rule: Rule,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Once, at the beginning or end.
    Once,
    /// Of the kernel, with so many parts after the type.
    Kernel { least: usize, most: usize },
    /// Of programs: allowed if the operator says so.
    Program,
    /// Again and again, by the clock.
    Timer,
    /// At every so many events of a counter.
    Counter { least: u64 },
    /// Never.
    Refused(&'static str),
}

/// The names that are like nothing but themselves come first, so that messages name them.
const TYPES: &[Type] = &[
    Type { names: &["BEGIN", "END", "begin", "end"], rule: Rule::Once },
    Type { names: &["tracepoint", "t"], rule: Rule::Kernel { least: 2, most: 2 } },
    Type { names: &["rawtracepoint", "rt"], rule: Rule::Kernel { least: 1, most: 2 } },
    Type { names: &["kprobe", "k", "kretprobe", "kr"], rule: Rule::Kernel { least: 1, most: 2 } },
    Type { names: &["kfunc", "f", "kretfunc", "fr", "fentry", "fexit"], rule: Rule::Kernel { least: 1, most: 2 } },
    Type { names: &["iter", "it"], rule: Rule::Kernel { least: 1, most: 1 } },
    Type { names: &["profile", "p", "interval", "i"], rule: Rule::Timer },
    Type { names: &["software", "s"], rule: Rule::Counter { least: 1 } },
    Type { names: &["hardware", "h"], rule: Rule::Counter { least: 10_000 } },
    Type { names: &["uprobe", "u", "uretprobe", "ur", "usdt", "U"], rule: Rule::Program },
    Type {
        names: &["watchpoint", "w", "asyncwatchpoint", "aw"],
        rule: Rule::Refused("they stop threads and wear out a CPU's few debug registers"),
    },
    Type { names: &["self", "test", "bench"], rule: Rule::Refused("they are about bpftrace itself") },
];

/// Settings of `config` blocks, and the largest value where they are numbers; all others lift limits or do harm.
const SETTINGS: &[(&str, u64)] = &[
    ("stack_mode", 0),
    ("print_maps_on_exit", 1),
    ("lazy_symbolication", 1),
    ("show_debug_info", 1),
    ("missing_probes", 0),
    ("use_blazesym", 1),
    ("cpp_demangle", 1),
    ("str_trunc_trailer", 0),
    ("max_map_keys", MAP_KEYS),
    ("max_strlen", 1024),
    ("max_probes", PROBES as u64),
    ("max_bpf_progs", PROBES as u64),
    ("on_stack_limit", 32),
];

/// Whether the name of a probe of this type holds a path.
pub(super) fn takes_path(kind: &str) -> bool {
    find_type(kind).is_some_and(|one| one.rule == Rule::Program)
}

/// How often a hook fires a second by its name, where that tells: clocks do, on each CPU those of `profile`.
pub(super) fn known_rate(hook: &str, cpus: u64) -> Option<u64> {
    let mut parts = hook.split(':');
    let kind = parts.next().unwrap_or_default();
    let places = if ["profile", "p"].contains(&kind) { cpus } else { 1 };
    match find_type(kind)?.rule {
        Rule::Once => Some(0),
        Rule::Timer => Some(per_second(&parts.collect::<Vec<_>>())?.saturating_mul(places)),
        _ => None,
    }
}

/// Whether this type of probes fires when a counter has run over.
pub(super) fn is_counter(kind: &str) -> bool {
    find_type(kind).is_some_and(|one| matches!(one.rule, Rule::Counter { .. }))
}

/// Whether a hook is of programs, not of the kernel.
pub(super) fn is_of_programs(hook: &str) -> bool {
    takes_path(hook.split(':').next().unwrap_or_default())
}

/// Whether a hook is of the kernel, so that pointers there are taken for the kernel's. With clocks and counters bpftrace reads whatever
/// memory a number points to.
pub(super) fn is_of_kernel(hook: &str) -> bool {
    let kind = hook.split(':').next().unwrap_or_default();
    find_type(kind).is_some_and(|one| matches!(one.rule, Rule::Kernel { .. }))
}

/// Looks at all that a program does.
pub(super) fn admit(script: &Script<'_>, policy: Policy) -> Result<Admitted, Fault> {
    // What is refused for good goes before what is merely unknown.
    script.calls.iter().map(|call| &call.name).chain(&script.names).chain(&script.types).try_for_each(harmless)?;
    let hooks: Vec<&Token<'_>> = script.probes.iter().flat_map(|probe| &probe.hooks).collect();
    hooks.iter().try_for_each(|hook| attaches(hook, policy))?;
    script.settings.iter().try_for_each(|(key, value)| setting(*key, *value))?;
    script.calls.iter().try_for_each(|call| known_function(&call.name))?;
    script.names.iter().try_for_each(|name| known_name(name, &script.constants))?;
    script.repeats.iter().try_for_each(|times| at_most(*times, REPEATS, "a loop is unrolled"))?;
    script.map_sizes.iter().try_for_each(|keys| at_most(*keys, MAP_KEYS, "a map has keys"))?;
    if hooks.len() > PROBES {
        return Err(too_many(hooks[PROBES].at, hooks.len()));
    }
    Ok(Admitted { hooks: list(script) })
}

/// More hooks than a program may have.
pub(super) fn too_many(at: usize, count: usize) -> Fault {
    let count = if count > PROBES { format!("more than {PROBES}") } else { count.to_string() };
    Fault::policy(at, format!("the program attaches to {count} hooks; at most {PROBES} are allowed"))
        .remedy("narrow the wildcards, or name the hooks that matter")
}

fn list(script: &Script<'_>) -> Vec<Hook> {
    let of_probe = |(index, probe): (usize, &super::parser::Probe<'_>)| {
        let outputs = outputs(script, index);
        let hook =
            move |token: &Token<'_>| Hook { text: token.text.to_owned(), at: token.at, outputs: outputs.clone() };
        probe.hooks.iter().map(hook).collect::<Vec<_>>()
    };
    script.probes.iter().enumerate().flat_map(of_probe).collect()
}

/// What is sent at each event, and what is under a condition: how often together, and the call that does so most.
fn outputs(script: &Script<'_>, probe: usize) -> Vec<Output> {
    let of = |conditional| {
        let sends = |call: &&Call<'_>| {
            call.probe == probe && call.conditional == conditional && OUTPUT.contains(&call.name.text)
        };
        let all = || script.calls.iter().filter(sends);
        let Call { name, .. } = all().max_by_key(|call| (call.times, Reverse(call.name.at)))?;
        let times = all().fold(0_u64, |sum, call| sum.saturating_add(call.times));
        Some(Output { function: name.text.to_owned(), at: name.at, conditional, times })
    };
    [false, true].into_iter().filter_map(of).collect()
}

fn harmless(name: &Token<'_>) -> Result<(), Fault> {
    let Some((function, reason)) = HARMFUL.iter().find(|(harmful, _)| name.text.eq_ignore_ascii_case(harmful)) else {
        return Ok(());
    };
    Err(Fault::policy(name.at, format!("{function}() is refused: {reason}"))
        .remedy("leave it out; scripts here only look on"))
}

fn known_function(name: &Token<'_>) -> Result<(), Fault> {
    if FUNCTIONS.contains(&name.text) {
        return Ok(());
    }
    let mut fault = Fault::new(name.at, Category::UnknownFunction, format!("Unknown function: {}", clip(name.text)));
    fault.did_you_mean = nearest(name.text, FUNCTIONS.iter().copied());
    Err(fault)
}

/// A built-in value, or a constant of an enum: of the program, or of the kernel, which writes them in capitals.
fn known_name(name: &Token<'_>, constants: &[&str]) -> Result<(), Fault> {
    let capitals = name.text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if capitals || BUILTINS.contains(&name.text) || constants.contains(&name.text) {
        return Ok(());
    }
    let mut fault = Fault::new(name.at, Category::UnknownName, format!("Unknown identifier: '{}'", clip(name.text)));
    fault.did_you_mean = nearest(name.text, BUILTINS.iter().copied());
    Err(fault)
}

fn attaches(hook: &Token<'_>, policy: Policy) -> Result<(), Fault> {
    let mut parts = hook.text.split(':');
    let kind = parts.next().unwrap_or_default();
    let parts: Vec<&str> = parts.collect();
    let found = find_type(kind).ok_or_else(|| unknown_type(hook.at, kind))?;
    match found.rule {
        Rule::Once if parts.is_empty() => Ok(()),
        Rule::Kernel { least, most } => kernel_hook(hook, &parts, least, most),
        Rule::Timer => timer(hook, &parts),
        Rule::Counter { least } => counter(hook, &parts, least),
        Rule::Program if policy.programs => Ok(()),
        Rule::Program => Err(Fault::policy(
            hook.at,
            format!("{kind} probes are refused: they read the memory of other users' programs"),
        )
        .remedy("use a tracepoint or a native probe; the operator can allow them with --allow-script-programs")),
        Rule::Refused(reason) => {
            Err(Fault::policy(hook.at, format!("{kind} probes are refused: {reason}")).remedy("use a tracepoint"))
        }
        Rule::Once => Err(malformed(hook, "it takes no name")),
    }
}

fn unknown_type(at: usize, kind: &str) -> Fault {
    let mut fault = Fault::new(at, Category::UnknownProbe, format!("there is no probe type `{}`", clip(kind)));
    let names = TYPES.iter().filter(|one| !matches!(one.rule, Rule::Refused(_))).flat_map(|one| one.names);
    fault.did_you_mean = nearest(kind, names.copied());
    fault
}

fn malformed(hook: &Token<'_>, message: &str) -> Fault {
    Fault::syntax(hook.at, format!("`{}` is no hook: {message}", clip(hook.text)))
}

fn kernel_hook(hook: &Token<'_>, parts: &[&str], least: usize, most: usize) -> Result<(), Fault> {
    if !(least..=most).contains(&parts.len()) || parts.iter().any(|part| part.is_empty()) {
        return Err(malformed(
            hook,
            if least == 2 { "write tracepoint:group:name" } else { "write one name after the type" },
        ));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.*+-".contains(&byte);
    if hook.text.bytes().all(|byte| plain(byte) || byte == b':') {
        Ok(())
    } else {
        Err(malformed(hook, "it holds signs that no name has"))
    }
}

/// `hz:99`, `ms:10`, `s:1`; later versions take `1s` too.
fn timer(hook: &Token<'_>, parts: &[&str]) -> Result<(), Fault> {
    let per_second = per_second(parts)
        .ok_or_else(|| malformed(hook, "write a unit and a number, such as profile:hz:99 or interval:s:1"))?;
    if per_second <= HERTZ {
        return Ok(());
    }
    Err(Fault::policy(hook.at, format!("`{}` fires more than {HERTZ} times a second", clip(hook.text)))
        .remedy("use profile:hz:99"))
}

fn per_second(parts: &[&str]) -> Option<u64> {
    match parts {
        [unit, value] => rate(unit, value),
        [value] => {
            value.find(|letter: char| letter.is_ascii_alphabetic()).and_then(|end| rate(&value[end..], &value[..end]))
        }
        _ => None,
    }
}

fn rate(unit: &str, value: &str) -> Option<u64> {
    let value: u64 = value.parse().ok().filter(|value| *value > 0)?;
    let unit_per_second = match unit {
        "hz" => return Some(value),
        "s" => 1,
        "ms" => 1000,
        "us" => 1_000_000,
        "ns" => 1_000_000_000,
        _ => return None,
    };
    Some(u64::div_ceil(unit_per_second, value))
}

/// `software:page-faults:100`. The clocks count nanoseconds.
fn counter(hook: &Token<'_>, parts: &[&str], least: u64) -> Result<(), Fault> {
    let (event, every) = match parts {
        [event] => (event, None),
        [event, every] => {
            (event, Some(every.parse::<u64>().map_err(|_| malformed(hook, "the number of events is no number"))?))
        }
        _ => return Err(malformed(hook, "write an event and a number, such as software:page-faults:100")),
    };
    let least = if ["cpu-clock", "cpu", "task-clock"].contains(event) { 1_000_000_000 / HERTZ } else { least };
    if every.is_some_and(|every| every < least) {
        return Err(Fault::policy(hook.at, format!("`{}` fires too often", clip(hook.text)))
            .remedy(format!("count at least {least} events")));
    }
    Ok(())
}

fn setting(key: Token<'_>, value: Token<'_>) -> Result<(), Fault> {
    let name = key.text.to_ascii_lowercase();
    let name = name.strip_prefix("bpftrace_").unwrap_or(&name);
    let Some((_, most)) = SETTINGS.iter().find(|(known, _)| *known == name) else {
        return Err(Fault::policy(key.at, format!("the setting `{}` is refused", clip(key.text)))
            .remedy(format!("these may be set: {}", setting_names())));
    };
    // Later versions take a number in quotes for one; words stand for 0 and 1.
    if value.kind == Kind::Number || *most > 1 { at_most(value, *most, &format!("{name} is")) } else { Ok(()) }
}

fn setting_names() -> String {
    SETTINGS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn at_most(number: Token<'_>, most: u64, what: &str) -> Result<(), Fault> {
    let fits = number.text.parse::<u64>().is_ok_and(|value| value <= most);
    let fault = || Fault::policy(number.at, format!("{what} at most {most}, not {}", clip(number.text)));
    if fits { Ok(()) } else { Err(fault().remedy(format!("write {most} or less, in plain digits"))) }
}

fn find_type(kind: &str) -> Option<&'static Type> {
    TYPES.iter().find(|one| one.names.contains(&kind))
}
