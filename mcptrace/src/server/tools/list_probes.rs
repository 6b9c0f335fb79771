//! `list_probes`: the catalogue and the kernel's own probes. One of the original's four: `probes`, `count` and a text that is JSON.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use super::{Effect, Outcome, Row};
use crate::{
    bpftrace::tools,
    executions::obstacle,
    kernel::discovery::{self, Access, DEFAULT_LIMIT, DiscoveryError, Query},
    probes::{Entry, PROBES},
    scripts::{self, ByPid, Script},
    server::{
        bounds,
        call::{Call, Reply},
        error::ToolError,
        schema,
    },
    text::matches_glob,
};

pub(super) const ROW: Row = Row {
    name: "list_probes",
    title: "List probes",
    description: "Lists what can be traced: native probes for run_probe (summary, and why one cannot run here), and kernel probes for \
        exec_program by glob (syscalls:*read*, tracepoint:sched:*, kfunc:vfs_*, binary:/usr/bin/bash:*readline*), paged; scripts with \
        source=scripts. Use it to find a name. Without filter it lists the native probes only. Not for arguments of one probe: describe_probe.",
    input: || schema_for!(Arguments),
    output: schema::of_result::<Listed>,
    effect: Effect::Settles,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Glob over names; binary:/path[:glob] for a program or library
    #[serde(default)]
    filter: String,
    /// What to list; without it native, and with a filter all
    #[serde(default)]
    #[schemars(with = "Source")]
    source: Option<Source>,
    /// Kernel probes per page
    #[serde(default = "page")]
    #[schemars(range(min = 1, max = 1000))]
    limit: u64,
    /// `next_cursor` of the page before
    #[serde(default)]
    cursor: String,
}

fn page() -> u64 {
    DEFAULT_LIMIT as u64
}

#[derive(Clone, Copy, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Source {
    Native,
    Kernel,
    Scripts,
    All,
}

#[derive(Default, Serialize, JsonSchema)]
struct Listed {
    /// Names on this page
    probes: Vec<String>,
    /// How many names are on this page
    count: usize,
    /// How many match on all pages
    total: u64,
    /// The native ones
    #[serde(skip_serializing_if = "Vec::is_empty")]
    native: Vec<Native>,
    /// Library scripts, and the host's own bpftrace tools
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scripts: Vec<Listing>,
    /// How many tracepoints there are to list with a filter
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    tracepoints: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    next_cursor: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct Native {
    name: &'static str,
    summary: &'static str,
    category: &'static str,
    available: bool,
    /// Why it cannot run here
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    reason: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Listing {
    name: String,
    question: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cost: String,
    /// Takes `pid`
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    by_pid: bool,
    /// Where a tool of the host is
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    path: Option<String>,
    /// Why it cannot run here
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    reason: Option<String>,
}

async fn run(mut call: Call) -> Outcome {
    let arguments: Arguments = call.arguments()?;
    call.room(bounds::LIST_BYTES).await?;
    let listed = call.looking(move |_| list(&arguments)).await??;
    Reply::json(&listed)
}

fn list(arguments: &Arguments) -> Result<Listed, ToolError> {
    let filter = arguments.filter.as_str();
    if filter.len() > discovery::MAX_FILTER {
        return Err(DiscoveryError::TooLong(filter.len()).into());
    }
    let default = if filter.is_empty() { Source::Native } else { Source::All };
    let source = arguments.source.unwrap_or(default);
    let mut listed = Listed::default();
    if matches!(source, Source::Native | Source::All) && arguments.cursor.is_empty() {
        add_native(&mut listed, filter);
    }
    if matches!(source, Source::Kernel | Source::All) {
        add_kernel(&mut listed, arguments)?;
    } else if !arguments.cursor.is_empty() {
        return Err(ToolError::new(
            "invalid_cursor",
            "`cursor` is of a list of kernel probes: pass the same filter and source with it",
        ));
    }
    if matches!(source, Source::Scripts | Source::All) && arguments.cursor.is_empty() {
        add_scripts(&mut listed, filter);
    }
    if arguments.source.is_none() && filter.is_empty() {
        listed.tracepoints = count_tracepoints();
        listed.notes.push(
            "these are the native probes; give a filter (tracepoint:*, syscalls:*read*) for kernel probes".into(),
        );
    }
    listed.count = listed.probes.len();
    Ok(listed)
}

fn add_native(listed: &mut Listed, filter: &str) {
    let matching = PROBES.iter().filter(|entry| filter.is_empty() || is_native(entry, filter));
    for entry in matching {
        let reason = obstacle(entry);
        listed.probes.push(entry.name.to_owned());
        listed.native.push(Native {
            name: entry.name,
            summary: entry.summary,
            category: entry.category,
            available: reason.is_none(),
            reason,
        });
    }
    listed.total += listed.native.len() as u64;
}

/// Whether a name matches, or what is said of a probe has the word.
fn is_native(entry: &Entry, filter: &str) -> bool {
    glob(filter, entry.name) || (!filter.contains(['*', '?', ':']) && entry.is_about(filter))
}

fn add_kernel(listed: &mut Listed, arguments: &Arguments) -> Result<(), ToolError> {
    let query = Query {
        filter: (!arguments.filter.is_empty()).then_some(arguments.filter.as_str()),
        limit: arguments.limit as usize,
        cursor: (!arguments.cursor.is_empty()).then_some(arguments.cursor.as_str()),
    };
    let page = discovery::list(&query, access())?;
    listed.probes.extend(page.names);
    listed.total += page.total;
    listed.next_cursor = page.next;
    // What matched nothing among kernel probes may have matched a native one.
    if listed.native.is_empty() || page.total > 0 {
        listed.notes.extend(page.notes);
    }
    Ok(())
}

fn add_scripts(listed: &mut Listed, filter: &str) {
    let installed = tools::installed();
    let all = scripts::library().iter().chain(&installed);
    let matching = all.filter(|script| filter.is_empty() || is_about(script, filter));
    listed.scripts.extend(matching.map(Listing::of));
    listed.total += listed.scripts.len() as u64;
    if !listed.scripts.is_empty() {
        listed.notes.push("run scripts with exec_program {script}; describe_probe tells how to read one".into());
    }
}

/// Whether a name matches, or the question has the word.
fn is_about(script: &Script, filter: &str) -> bool {
    let word = filter.to_lowercase();
    glob(filter, &script.name) || (!filter.contains(['*', '?', ':']) && script.question.to_lowercase().contains(&word))
}

impl Listing {
    fn of(script: &Script) -> Self {
        Self {
            name: script.name.clone(),
            question: script.question.clone(),
            cost: script.cost.clone(),
            by_pid: script.pid != ByPid::Never,
            path: script.path.as_ref().map(|path| path.display().to_string()),
            reason: script_obstacle(script),
        }
    }
}

/// Why a script cannot run here, as far as can be told without compiling it.
pub(super) fn script_obstacle(script: &Script) -> Option<String> {
    let hooks = script.hooks();
    discovery::obstacle(hooks.iter().map(String::as_str), access())
}

/// Read-only tools do not mount; this one may, because a fresh machine has tracefs unmounted.
pub(super) fn access() -> Access {
    Access { allow_mount: true, fentry_works: None }
}

/// How many tracepoints there are. Counted once: what modules add later is not worth reading them all a call.
fn count_tracepoints() -> Option<u64> {
    static COUNT: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    if let Some(count) = COUNT.get() {
        return Some(*count);
    }
    let page = discovery::list(&Query { filter: Some("tracepoint:*"), limit: 1, cursor: None }, access()).ok()?;
    Some(*COUNT.get_or_init(|| page.total))
}

/// Whether a name matches a pattern of `*` and `?`; a pattern without either matches any part of it.
fn glob(pattern: &str, name: &str) -> bool {
    if !pattern.contains(['*', '?']) {
        return name.contains(pattern);
    }
    matches_glob(pattern, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names_and_words_any_part() {
        assert!(glob("sys*_counts", "syscall_counts"));
        assert!(glob("*", "file_opens") && glob("file_open?", "file_opens"));
        assert!(!glob("sys*", "file_opens") && !glob("file_open", "x") && !glob("*counts*x", "syscall_counts"));
        assert!(glob("latency", "syscall_latency"));
        assert!(!glob("--version", "syscall_latency"));
    }

    #[test]
    fn a_hostile_pattern_ends_soon() {
        assert!(!glob(&"*a".repeat(2000), &"a".repeat(1999)));
    }
}
