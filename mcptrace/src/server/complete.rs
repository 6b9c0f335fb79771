//! Completion of the arguments of resource templates and prompts: names of probes and scripts, ids of executions, processes, commands.

use std::{collections::BTreeSet, sync::Arc};

use rmcp::{
    ErrorData,
    model::{CompleteRequestParams, CompleteResult, CompletionInfo, Reference},
};

use super::{
    prompts,
    resources::{EXECUTION_URI, PROBE_URI},
};
use crate::{
    bpftrace::tools,
    execution::Execution,
    kernel::processes::{self, Process},
    probes::PROBES,
    scripts,
};

/// What an argument may be, given what has been typed: first what starts with it, then what contains it.
pub(super) fn complete(
    request: &CompleteRequestParams,
    executions: &[Arc<Execution>],
) -> Result<CompleteResult, ErrorData> {
    let typed = request.argument.value.as_str();
    let candidates = candidates(request, executions).ok_or_else(|| unknown(request))?;
    let values = match candidates {
        Candidates::Names(names) => matching(typed, &names),
        Candidates::Processes => pids(typed, &processes::list()),
    };
    let info = CompletionInfo::with_all_values(values);
    info.map(CompleteResult::new).map_err(|error| ErrorData::internal_error(error, None))
}

/// What may be completed.
enum Candidates {
    Names(Vec<String>),
    Processes,
}

fn candidates(request: &CompleteRequestParams, executions: &[Arc<Execution>]) -> Option<Candidates> {
    let names = match (&request.r#ref, request.argument.name.as_str()) {
        (Reference::Resource(template), "name") if template.uri.starts_with(PROBE_URI) => {
            PROBES.iter().map(|entry| entry.name.to_owned()).collect()
        }
        (Reference::Resource(template), "name") if template.uri.starts_with(scripts::URI) => {
            scripts::library().iter().cloned().chain(tools::installed()).map(|script| script.name).collect()
        }
        (Reference::Resource(template), "id") if template.uri.starts_with(EXECUTION_URI) => {
            executions.iter().map(|execution| execution.identity.id.clone()).collect()
        }
        (Reference::Prompt(prompt), argument) if prompts::takes(&prompt.name, argument) => match argument {
            "pid" => return Some(Candidates::Processes),
            "comm" => unique(processes::list().into_iter().map(|process| process.comm)),
            // Ids of containers are not known here; an empty list is no error.
            _ => Vec::new(),
        },
        _ => return None,
    };
    Some(Candidates::Names(names))
}

fn unique(names: impl Iterator<Item = String>) -> Vec<String> {
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Ids that begin with what was typed, or of commands whose name contains it.
fn pids(typed: &str, all: &[Process]) -> Vec<String> {
    let fits = |process: &&Process| {
        process.pid.to_string().starts_with(typed) || (!typed.is_empty() && process.comm.contains(typed))
    };
    all.iter().filter(fits).take(CompletionInfo::MAX_VALUES).map(|process| process.pid.to_string()).collect()
}

fn unknown(request: &CompleteRequestParams) -> ErrorData {
    let argument = crate::text::untrusted(request.argument.name.as_bytes(), 60);
    let message = format!(
        "nothing completes `{argument}` of that reference: known are `name` of {PROBE_URI}{{name}} and {SCRIPT_URI}{{name}}, `id` of \
         {EXECUTION_URI}{{id}}, and the arguments of prompts",
        SCRIPT_URI = scripts::URI
    );
    ErrorData::invalid_params(message, None)
}

fn matching(typed: &str, candidates: &[String]) -> Vec<String> {
    let starts = candidates.iter().filter(|name| name.starts_with(typed));
    let contains = candidates.iter().filter(|name| !name.starts_with(typed) && name.contains(typed));
    starts.chain(contains).take(CompletionInfo::MAX_VALUES).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_starts_alike_comes_before_what_contains() {
        assert_eq!(matching("late", &names(&["syscall_latency", "latency", "file"])), ["latency", "syscall_latency"]);
        assert_eq!(matching("", &names(&["a", "b"])), ["a", "b"]);
        assert!(matching("x", &names(&["a"])).is_empty());
    }

    #[test]
    fn a_process_is_found_by_its_id_and_by_its_name() {
        let all = [(123, "nginx"), (12, "sh"), (7, "sh12")].map(|(pid, comm)| Process { pid, comm: comm.into() });
        assert_eq!(pids("12", &all), ["123", "12", "7"]);
        assert_eq!(pids("ngi", &all), ["123"]);
        assert_eq!(pids("", &all), ["123", "12", "7"]);
    }
}
