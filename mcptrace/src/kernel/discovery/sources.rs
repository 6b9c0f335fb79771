//! Where the names of each probe type come from.

use std::fs;
use std::io;
use std::path::Path;

use super::binary::Binary;
use super::filter::Filter;
use super::suggest::nearest;
use super::{Access, BinaryFilter, Family};
use crate::kernel::btf::KernelBtf;
use crate::kernel::tracefs;

/// The events of `enum perf_sw_ids` (`include/uapi/linux/perf_event.h`), under bpftrace's names.
const SOFTWARE: [&str; 11] = [
    "alignment-faults:",
    "bpf-output:",
    "context-switches:",
    "cpu-clock:",
    "cpu-migrations:",
    "dummy:",
    "emulation-faults:",
    "major-faults:",
    "minor-faults:",
    "page-faults:",
    "task-clock:",
];
/// The events of `enum perf_hw_id`, under bpftrace's names.
const HARDWARE: [&str; 10] = [
    "backend-stalls:",
    "branch-instructions:",
    "branch-misses:",
    "bus-cycles:",
    "cache-misses:",
    "cache-references:",
    "cpu-cycles:",
    "frontend-stalls:",
    "instructions:",
    "ref-cycles:",
];
/// The units of a timer.
const TIMER: [&str; 4] = ["hz:", "ms:", "s:", "us:"];

/// Hands each name of the family, without the probe type and in a stable order, to `take`.
///
/// Returns what a reader must know about them; an error says why there are none.
pub(super) fn each(family: Family, access: &Access, take: &mut dyn FnMut(&str)) -> Result<Vec<String>, String> {
    match family {
        Family::Tracepoint => tracepoints(access, take).map(|()| Vec::new()),
        Family::Rawtracepoint => raw_tracepoints(take).map(|()| Vec::new()),
        Family::Kfunc => functions(access, take),
        Family::Kprobe => kprobes(access, take).map(|()| Vec::new()),
        Family::Software => all(&SOFTWARE, take),
        Family::Hardware => hardware(take),
        Family::Profile | Family::Interval => all(&TIMER, take),
        Family::Uprobe | Family::Usdt => Ok(Vec::new()),
    }
}

fn all(names: &[&str], take: &mut dyn FnMut(&str)) -> Result<Vec<String>, String> {
    names.iter().for_each(|name| take(name));
    Ok(Vec::new())
}

fn tracepoints(access: &Access, take: &mut dyn FnMut(&str)) -> Result<(), String> {
    let events = read_tracefs(access, "available_events")?;
    sorted(events.lines()).into_iter().for_each(take);
    Ok(())
}

fn raw_tracepoints(take: &mut dyn FnMut(&str)) -> Result<(), String> {
    let btf = KernelBtf::load().map_err(|error| error.to_string())?;
    sorted(btf.tracepoints()).into_iter().for_each(take);
    Ok(())
}

fn functions(access: &Access, take: &mut dyn FnMut(&str)) -> Result<Vec<String>, String> {
    let btf = KernelBtf::load().map_err(|error| error.to_string())?;
    let mut any = false;
    let mut name = String::from("vmlinux:");
    for function in sorted(btf.functions()) {
        name.truncate("vmlinux:".len());
        name.push_str(function);
        take(&name);
        any = true;
    }
    let refused = any && access.fentry_works == Some(false);
    Ok(refused.then(|| FENTRY_REFUSED.to_owned()).into_iter().collect())
}

/// What is said of kfunc probes on a kernel that has the types but takes no fentry programs.
pub(super) const FENTRY_REFUSED: &str = "this kernel refuses fentry programs: kfunc probes show which functions exist and what they take, but cannot attach";

fn kprobes(access: &Access, take: &mut dyn FnMut(&str)) -> Result<(), String> {
    let at = tracefs::ensure(access.allow_mount).map_err(|error| error.to_string())?;
    if !at.join("kprobe_events").exists() {
        return Err("this kernel has none (built without CONFIG_KPROBE_EVENTS)".into());
    }
    let list = read_tracefs(access, "available_filter_functions")?;
    // A function of a module has the module behind it in brackets.
    sorted(list.lines().filter_map(|line| line.split_whitespace().next())).into_iter().for_each(take);
    Ok(())
}

fn hardware(take: &mut dyn FnMut(&str)) -> Result<Vec<String>, String> {
    let processor =
        ["cpu", "cpu_core", "armv8_pmuv3_0"].map(|unit| Path::new("/sys/bus/event_source/devices").join(unit));
    if !processor.iter().any(|unit| unit.exists()) {
        return Err("this machine has no hardware counters (virtual machines often hide them)".into());
    }
    all(&HARDWARE, take)
}

/// Reads a whole file of tracefs.
pub(super) fn read_tracefs(access: &Access, name: &str) -> Result<String, String> {
    let path = tracefs::ensure(access.allow_mount).map_err(|error| error.to_string())?.join(name);
    fs::read_to_string(&path).map_err(|error| refusal(&path, &error))
}

fn refusal(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The names of the family nearest to `word`, compared with and without their category or module.
pub(super) fn near(family: Family, access: &Access, word: &str) -> Vec<String> {
    let mut names = Vec::new();
    let _ = each(family, access, &mut |rest| names.push(rest.to_owned()));
    let last = |name: &str| name.trim_end_matches(':').rsplit(':').next().unwrap_or_default().to_owned();
    let wanted = last(word);
    let lasts: Vec<String> = names.iter().map(|name| last(name)).collect();
    let found = nearest(&wanted, lasts.iter().map(String::as_str));
    let whole = |name: &String| lasts.iter().position(|last| last == name).map(|at| names[at].clone());
    found.iter().filter_map(whole).map(|rest| format!("{}:{rest}", family.name())).collect()
}

/// Says that nothing matched and what would have been near.
pub(super) fn nothing_matched(filter: &Filter, access: &Access) -> String {
    let literal: String = filter.without_family().chars().filter(|each| !"*?[]".contains(*each)).collect();
    let category = literal.rsplit_once(':').map(|(category, _)| category.to_owned());
    let near = match unknown_category(category.as_deref(), access) {
        Some(categories) => categories,
        None => nearest_names(filter, access, &literal),
    };
    match near.is_empty() {
        true => "nothing matches the filter".into(),
        false => format!("nothing matches the filter; near it: {}", near.join(", ")),
    }
}

fn nearest_names(filter: &Filter, access: &Access, literal: &str) -> Vec<String> {
    let families = Family::OF_THE_KERNEL.into_iter().filter(|family| filter.may_match(*family));
    let mut names: Vec<String> = families.flat_map(|family| near(family, access, literal)).collect();
    names.truncate(5);
    names
}

/// The categories nearest to one that does not exist; none when it does.
fn unknown_category(category: Option<&str>, access: &Access) -> Option<Vec<String>> {
    let category = category.filter(|category| *category != "vmlinux" && !category.is_empty())?;
    let events = read_tracefs(access, "available_events").ok()?;
    let categories = sorted(events.lines().filter_map(|line| Some(line.split_once(':')?.0)));
    if categories.contains(&category) {
        return None;
    }
    let found = nearest(category, categories);
    Some(found.into_iter().map(|category| format!("tracepoint:{category}:*")).collect())
}

/// Says why a binary gave no names.
pub(super) fn nothing_in_binary(path: &str, binary: &Binary<'_>, wanted: &BinaryFilter<'_>) -> String {
    let functions = binary.functions.len();
    let probes = binary.probes.len();
    let path = path.escape_debug();
    match (functions, probes) {
        (0, _) if wanted.functions && !wanted.probes => format!("{path} has no function symbols: it is stripped"),
        (_, 0) if wanted.probes && !wanted.functions => format!("{path} has no USDT probes"),
        (0, 0) => format!("{path} has neither function symbols (it is stripped) nor USDT probes"),
        _ => format!("nothing matches: {path} has {functions} functions and {probes} places of USDT probes"),
    }
}
