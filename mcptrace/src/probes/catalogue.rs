//! docs/probes.md, out of the table: it cannot say anything that the program does not do.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Entry, PROBES};
use crate::report::Field;

/// The page.
pub fn markdown() -> String {
    let mut page = String::from(
        "# The native probes\n\nGenerated from the table in mcptrace/src/probes.rs; `UPDATE=1 cargo test -p mcptrace catalogue` writes it \
         again.\n\n| probe | question | category |\n|---|---|---|\n",
    );
    for entry in PROBES {
        let _ = writeln!(page, "| [`{0}`](#{0}) | {1} | {2} |", entry.name, entry.summary, entry.category);
    }
    page.push_str(FILTERS);
    for entry in PROBES {
        page.push_str(&section(entry));
    }
    page
}

const FILTERS: &str = "
All take the same filters, applied in the kernel: `pid`, `tid`, `comm` (exact), `uid`, `cgroup` (a path, with all below it), `container`
(an id or the start of one), `descendants` (with `pid`: also its children from now on), `min_duration_us` (where something has a duration).

All account for what was lost: `seen = delivered + dropped`, each counted on its own. Causes: `buffer_full` (user space did not read fast
enough), `start_missing` (it began before tracing, or its thread's slot was taken), `map_full` (more keys than the table holds),
`stack_busy` (a stack was being taken on that CPU when the event came), `malformed` (a record that cannot be read: a fault of mcptrace).
`missed` is what the kernel kept from the program because it was already running on that CPU, and processes and requests that there was
no room to follow.

`comm` is a command name. With `by = comm` each event counts for the name that its thread had then; rows of a process have the name that
it had last, which is that of its first thread.

Events and rows of a process have its `container` (the first 12 digits of its id) or, outside of containers, its systemd `unit`, by its
control group: of an event where the thread was then, of a row where its process was when it last executed a program or took a
name, else when it was first seen. Groups that have been removed meanwhile are known all the same. With `by = container` a row is of a
container or unit; what is in neither is one row without a name. Text shows units only there: beside a process they are in the JSON.
Programs in the kernel see groups of version 2. A container or unit in those of version 1 is found by the process, in /proc, when an event
is taken in or a row made: a row of a process that had ended by then has none, and rows by container cannot tell such containers apart.
";

fn section(entry: &Entry) -> String {
    let mut text = format!("\n## {}\n\n{} {}\n\n", entry.name, entry.summary, entry.details);
    let schema = (entry.schema)();
    let options = schema.get("properties").and_then(Value::as_object);
    for (name, option) in options.into_iter().flatten() {
        let _ = writeln!(text, "- option `{name}`{}: {}", choices(option), description(option));
    }
    let _ = writeln!(text, "- fields: {}", fields(&(entry.fields)()));
    let events = entry.further_event_fields();
    if !events.is_empty() {
        let _ = writeln!(text, "- fields of events: {}", fields(&events));
    }
    let hooks: Vec<_> = entry.hook_names().into_iter().map(|hook| format!("`{hook}`")).collect();
    let _ = writeln!(text, "- hooks: {}", hooks.join(", "));
    let _ =
        writeln!(text, "- cost: about {} ns an event on the reference machine (docs/performance.md)", entry.cost_ns);
    let _ = writeln!(text, "- example: `run_probe {}`", entry.example);
    for next in entry.next {
        let _ = writeln!(text, "- next: {next}");
    }
    text
}

fn choices(option: &Value) -> String {
    let named = option.get("oneOf").and_then(Value::as_array).into_iter().flatten().filter_map(|one| one.get("const"));
    let listed = option.get("enum").and_then(Value::as_array).into_iter().flatten();
    let words: Vec<_> = named.chain(listed).filter_map(Value::as_str).collect();
    let kind = option.get("type").and_then(Value::as_str).unwrap_or_default();
    if words.is_empty() { format!(" ({kind})") } else { format!(" ({})", words.join(", ")) }
}

fn description(option: &Value) -> &str {
    option.as_object().and_then(|option: &Map<_, _>| option.get("description")?.as_str()).unwrap_or_default()
}

fn fields(fields: &[Field]) -> String {
    let one = |field: &Field| {
        let unit = if field.unit.is_empty() { String::new() } else { format!(" ({})", field.unit) };
        format!("`{}`{unit}", field.name)
    };
    fields.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_in_docs_is_the_one_that_the_table_gives() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/probes.md");
        let page = super::markdown();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == page, "docs/probes.md is stale: UPDATE=1 cargo test -p mcptrace catalogue");
    }
}
