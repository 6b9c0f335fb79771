//! Completion of the arguments of resource templates: names of probes and scripts, ids of executions.

use std::sync::Arc;

use rmcp::{
    ErrorData,
    model::{CompleteRequestParams, CompleteResult, CompletionInfo, Reference},
};

use super::resources::{EXECUTION_URI, PROBE_URI};
use crate::{bpftrace::tools, execution::Execution, probes::PROBES, scripts};

/// What an argument may be, given what has been typed: first what starts with it, then what contains it.
pub(super) fn complete(
    request: &CompleteRequestParams,
    executions: &[Arc<Execution>],
) -> Result<CompleteResult, ErrorData> {
    let installed = tools::installed();
    let candidates: Vec<&str> = match (&request.r#ref, request.argument.name.as_str()) {
        (Reference::Resource(template), "name") if template.uri.starts_with(PROBE_URI) => {
            PROBES.iter().map(|entry| entry.name).collect()
        }
        (Reference::Resource(template), "name") if template.uri.starts_with(scripts::URI) => {
            scripts::library().iter().chain(&installed).map(|script| script.name.as_str()).collect()
        }
        (Reference::Resource(template), "id") if template.uri.starts_with(EXECUTION_URI) => {
            executions.iter().map(|execution| execution.identity.id.as_str()).collect()
        }
        _ => return Err(unknown(request)),
    };
    let info = CompletionInfo::with_all_values(matching(&request.argument.value, &candidates));
    info.map(CompleteResult::new).map_err(|error| ErrorData::internal_error(error, None))
}

fn unknown(request: &CompleteRequestParams) -> ErrorData {
    let argument = crate::text::untrusted(request.argument.name.as_bytes(), 60);
    let message = format!(
        "nothing completes `{argument}` of that reference: known are `name` of {PROBE_URI}{{name}} and {SCRIPT_URI}{{name}}, and `id` of \
         {EXECUTION_URI}{{id}}",
        SCRIPT_URI = scripts::URI
    );
    ErrorData::invalid_params(message, None)
}

fn matching(typed: &str, candidates: &[&str]) -> Vec<String> {
    let starts = candidates.iter().filter(|name| name.starts_with(typed));
    let contains = candidates.iter().filter(|name| !name.starts_with(typed) && name.contains(typed));
    starts.chain(contains).take(CompletionInfo::MAX_VALUES).map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::matching;

    #[test]
    fn what_starts_alike_comes_before_what_contains() {
        assert_eq!(matching("late", &["syscall_latency", "latency", "file"]), ["latency", "syscall_latency"]);
        assert_eq!(matching("", &["a", "b"]), ["a", "b"]);
        assert!(matching("x", &["a"]).is_empty());
    }
}
