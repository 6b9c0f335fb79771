//! Where the names of each probe type come from.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use super::binary::Binary;
use super::filter::Filter;
use super::suggest::{MOST, Nearest, nearest};
use super::{Access, BinaryFilter, Family};
use crate::kernel::btf::{BtfError, KernelBtf};
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
/// The module of the functions in `/sys/kernel/btf/vmlinux`.
const MODULE: &str = "vmlinux:";
/// The units of a timer.
const TIMER: [&str; 4] = ["hz:", "ms:", "s:", "us:"];

/// Reads the names; what is costly to read is read once.
pub(super) struct Sources {
    /// What may be done.
    pub(super) access: Access,
    btf: OnceCell<Result<KernelBtf, BtfError>>,
}

impl Sources {
    pub(super) fn new(access: Access) -> Self {
        Self { access, btf: OnceCell::new() }
    }

    /// Hands each name of the family, without the probe type and in a stable order, to `take`.
    ///
    /// Returns what a reader must know about them; an error says why there are none.
    pub(super) fn each(&self, family: Family, take: &mut dyn FnMut(&str)) -> Result<Vec<String>, String> {
        match family {
            Family::Tracepoint => self.tracepoints(take).map(|()| Vec::new()),
            Family::Rawtracepoint => self.raw_tracepoints(take).map(|()| Vec::new()),
            Family::Kfunc => self.functions(take),
            Family::Kprobe => self.kprobes(take).map(|()| Vec::new()),
            Family::Software => Ok(all(&SOFTWARE, take)),
            Family::Hardware => hardware(take),
            Family::Profile | Family::Interval => Ok(all(&TIMER, take)),
            Family::Uprobe | Family::Usdt => Ok(Vec::new()),
        }
    }

    /// The kernel's types.
    pub(super) fn btf(&self) -> Result<&KernelBtf, BtfError> {
        self.btf.get_or_init(KernelBtf::load).as_ref().map_err(Clone::clone)
    }

    fn tracepoints(&self, take: &mut dyn FnMut(&str)) -> Result<(), String> {
        let events = self.read_tracefs("available_events")?;
        sorted(events.lines()).into_iter().for_each(take);
        Ok(())
    }

    fn raw_tracepoints(&self, take: &mut dyn FnMut(&str)) -> Result<(), String> {
        let btf = self.btf().map_err(|error| error.to_string())?;
        sorted(btf.tracepoints()).into_iter().for_each(take);
        Ok(())
    }

    fn functions(&self, take: &mut dyn FnMut(&str)) -> Result<Vec<String>, String> {
        let btf = self.btf().map_err(|error| error.to_string())?;
        let mut name = String::from(MODULE);
        for function in sorted(btf.functions()) {
            name.truncate(MODULE.len());
            name.push_str(function);
            take(&name);
        }
        let refused = self.access.fentry_works == Some(false);
        Ok(refused.then(|| FENTRY_REFUSED.to_owned()).into_iter().collect())
    }

    fn kprobes(&self, take: &mut dyn FnMut(&str)) -> Result<(), String> {
        let at = tracefs::ensure(self.access.allow_mount).map_err(|error| error.to_string())?;
        if !at.join("kprobe_events").exists() {
            return Err("this kernel has none (built without CONFIG_KPROBE_EVENTS)".into());
        }
        let list = self.read_tracefs("available_filter_functions")?;
        // A function of a module has the module behind it in brackets.
        sorted(list.lines().filter_map(|line| line.split_whitespace().next())).into_iter().for_each(take);
        Ok(())
    }

    fn read_tracefs(&self, name: &str) -> Result<String, String> {
        let path = tracefs::ensure(self.access.allow_mount).map_err(|error| error.to_string())?.join(name);
        fs::read_to_string(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    }

    /// The names of the family whose last part is nearest to the last part of `word`.
    pub(super) fn near(&self, family: Family, word: &str) -> Vec<String> {
        let mut nearest = Nearest::to(last_part(word));
        // Where the family cannot be listed there is nothing to suggest.
        let _ = self.each(family, &mut |rest| nearest.offer(last_part(rest), rest));
        nearest.into_names().into_iter().map(|rest| format!("{}:{rest}", family.name())).collect()
    }

    /// Says that nothing matched and what would have been near.
    pub(super) fn nothing_matched(&self, filter: &Filter) -> String {
        let literal: String = filter.without_family().chars().filter(|each| !"*?[]".contains(*each)).collect();
        let category = literal.rsplit_once(':').map(|(category, _)| category);
        let near = self.near_categories(category).unwrap_or_else(|| self.near_names(filter, &literal));
        if near.is_empty() {
            return "nothing matches the filter".into();
        }
        format!("nothing matches the filter; near it: {}", near.join(", "))
    }

    fn near_names(&self, filter: &Filter, literal: &str) -> Vec<String> {
        let families = Family::OF_THE_KERNEL.into_iter().filter(|family| filter.may_match(*family));
        let mut names: Vec<String> = families.flat_map(|family| self.near(family, literal)).collect();
        names.truncate(MOST);
        names
    }

    /// The categories nearest to one that does not exist; none when it does.
    fn near_categories(&self, category: Option<&str>) -> Option<Vec<String>> {
        let category = category.filter(|category| *category != "vmlinux" && !category.is_empty())?;
        let events = self.read_tracefs("available_events").ok()?;
        let categories = sorted(events.lines().filter_map(|line| Some(line.split_once(':')?.0)));
        if categories.contains(&category) {
            return None;
        }
        let found = nearest(category, categories);
        Some(found.into_iter().map(|category| format!("tracepoint:{category}:*")).collect())
    }
}

fn all(names: &[&str], take: &mut dyn FnMut(&str)) -> Vec<String> {
    names.iter().copied().for_each(take);
    Vec::new()
}

/// What is said of kfunc probes on a kernel that has the types but takes no fentry programs.
pub(super) const FENTRY_REFUSED: &str = "this kernel refuses fentry programs: kfunc probes show which functions exist and what they take, but cannot attach";

fn hardware(take: &mut dyn FnMut(&str)) -> Result<Vec<String>, String> {
    let processor =
        ["cpu", "cpu_core", "armv8_pmuv3_0"].map(|unit| Path::new("/sys/bus/event_source/devices").join(unit));
    if !processor.iter().any(|unit| unit.exists()) {
        return Err("this machine has no hardware counters (virtual machines often hide them)".into());
    }
    Ok(all(&HARDWARE, take))
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `sched_switch` of `sched:sched_switch`, `cpu-clock` of `cpu-clock:`.
fn last_part(name: &str) -> &str {
    name.trim_end_matches(':').rsplit(':').next().unwrap_or_default()
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
