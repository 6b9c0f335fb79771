//! Whether each native probe runs here: the kernel has what it needs, and its verifier takes the programs.

use super::{
    Check, ProbeSupport, Why,
    explain::{Facts, Failure, Needs},
    once,
};
use crate::{
    executions,
    kernel::{
        attached::{self, Transport, possible_cpus},
        filter::Filter,
        hook::Need,
        loader::{Kernel, LoadError, chain},
    },
    probes::{Context, Entry, PROBES},
};

/// Every probe of the catalogue.
pub(super) fn check(kernel: Result<&Kernel, &LoadError>, facts: &Facts, ways: &[Check]) -> Vec<ProbeSupport> {
    let why = |entry| check_one(entry, kernel, facts).err().or_else(|| closed_way(entry, ways));
    PROBES.iter().map(|entry| support(entry, why(entry))).collect()
}

/// A way to attach that one of its hooks needs and that does not work here: programs can load all the same.
fn closed_way(entry: &Entry, ways: &[Check]) -> Option<Why> {
    let needed = |way: &&Check| entry.hooks.iter().any(|one| one.need == Need::Required && one.hook.way() == way.name);
    let closed = ways.iter().filter(|way| way.works == Some(false)).find(needed)?;
    let reason = closed.reason.clone().unwrap_or_default();
    Some(Why { reason: format!("it attaches by {}: {reason}", closed.name), remedy: closed.remedy.clone() })
}

fn support(entry: &Entry, why: Option<Why>) -> ProbeSupport {
    let why = why.map(|why| (why.reason, why.remedy));
    let available = why.is_none();
    let (reason, remedy) = why.map_or((None, None), |(reason, remedy)| (Some(reason), remedy));
    ProbeSupport {
        name: entry.name.to_owned(),
        available,
        hooks: entry.hook_names(),
        reason,
        remedy,
        cost_ns: entry.cost_ns,
    }
}

fn check_one(entry: &Entry, kernel: Result<&Kernel, &LoadError>, facts: &Facts) -> Result<(), Why> {
    let kernel = kernel.map_err(|error| why(error, facts))?;
    executions::supported(entry, kernel).map_err(|refusal| Why::new(refusal.to_string()))?;
    once(&format!("probe {}", entry.name), || load(entry, kernel)).map_err(|outcome| match outcome {
        Ok(error) => why(&error, facts),
        Err(words) => Why::new(words),
    })
}

/// Loads it with its default options.
fn load(entry: &Entry, kernel: &Kernel) -> Result<(), Result<LoadError, String>> {
    let filter = Filter::default().resolve().map_err(|error| Err(error.to_string()))?;
    let ring = aya::sys::is_map_supported(aya::maps::MapType::RingBuf).unwrap_or(true);
    let transport = if ring { Transport::Ring } else { Transport::Perf };
    let context = Context { layout: &kernel.layout, filter: &filter, cpus: possible_cpus(), transport };
    attached::check(kernel, &(entry.trial)(&context)).map_err(Ok)
}

fn why(error: &LoadError, facts: &Facts) -> Why {
    match error {
        LoadError::Permission { .. } => facts.explain(&Failure::permission(), &Needs::default()),
        LoadError::Btf(_) | LoadError::ParseBtf(_) => facts.explain(&Failure::no_types(), &Needs::default()),
        _ => facts.explain(&Failure::said(chain(error)), &Needs::default()),
    }
}
