//! What a person is told about a native probe, in `run PROBE --help` and in `describe`. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    failure::as_flags,
    options::{self, Kind, ProbeOption},
};
use crate::{
    probes::Entry,
    report::{Field, text::units},
};

/// What follows the flags in the help of `run PROBE`.
pub(super) fn after_help(entry: &Entry) -> String {
    let parts = [details(entry), fields(entry), next(entry), example(entry)];
    parts.join("\n")
}

/// All about a probe.
pub(super) fn text(entry: &Entry) -> String {
    let head = format!("{} ({})\n  {}\n", entry.name, entry.category, entry.summary);
    let parts = [head, details(entry), option_list(entry), fields(entry), needs(entry), next(entry), example(entry)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

/// All about a probe, for programs.
pub(super) fn json(entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "category": entry.category,
        "summary": entry.summary,
        "details": entry.details,
        "options": (entry.schema)(),
        "fields": (entry.fields)(),
        "event_fields": entry.further_event_fields(),
        "hooks": entry.hook_names(),
        "cost_ns": entry.cost_ns,
        "next": entry.next,
        "example": serde_json::from_str::<Value>(entry.example).unwrap_or_default(),
    })
}

/// The example of the catalogue as a command.
pub(super) fn command_line(entry: &Entry) -> String {
    let example: Value = serde_json::from_str(entry.example).unwrap_or_default();
    let groups = [&example["options"], &example["filter"]];
    let fields = groups.into_iter().filter_map(Value::as_object).flatten();
    let mut line = format!("mcptrace run {}", entry.name);
    for (name, value) in fields {
        let _ = write!(line, " --{}", name.replace('_', "-"));
        if *value != Value::Bool(true) {
            let _ = write!(line, " {}", units::text(value));
        }
    }
    if let Some(seconds) = example["seconds"].as_f64() {
        let _ = write!(line, " -d {seconds}");
    }
    line
}

fn details(entry: &Entry) -> String {
    format!("What it shows:\n{}", indented(&as_flags(entry.details)))
}

fn option_list(entry: &Entry) -> String {
    let options = options::of(entry);
    if options.is_empty() {
        return String::new();
    }
    format!("Options, beside the filters that all probes take (mcptrace run {} --help):\n", entry.name)
        + &options.iter().map(option_line).collect::<String>()
}

fn option_line(option: &ProbeOption) -> String {
    let takes = match &option.kind {
        Kind::Word(words) => words.iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>().join("|"),
        _ => option.placeholder().to_owned(),
    };
    let flag = format!("--{} {takes}", option.flag());
    format!("  {:<32}  {}\n", flag.trim_end(), option.help)
}

fn fields(entry: &Entry) -> String {
    let line = |title: &str, fields: Vec<Field>| {
        let named: Vec<_> = fields.iter().map(field).collect();
        if named.is_empty() { String::new() } else { format!("{title}:\n{}", indented(&named.join(", "))) }
    };
    line("Fields", (entry.fields)()) + &line("Fields of events", entry.further_event_fields())
}

fn field(field: &Field) -> String {
    if field.unit.is_empty() || field.unit == field.name {
        field.name.clone()
    } else {
        format!("{} ({})", field.name, field.unit)
    }
}

fn needs(entry: &Entry) -> String {
    let cost = units::duration(entry.cost_ns);
    format!("Hooks:\n{}Cost:\n  {cost} an event on the reference machine\n", indented(&entry.hook_names().join(", ")))
}

fn next(entry: &Entry) -> String {
    format!("What to look at next:\n{}", entry.next.iter().map(|line| indented(&as_flags(line))).collect::<String>())
}

fn example(entry: &Entry) -> String {
    format!("Example:\n  {}", command_line(entry))
}

/// Text in lines of at most 100 characters, two spaces in.
fn indented(text: &str) -> String {
    let mut lines = vec![String::from(" ")];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].chars().count() + 1 + word.chars().count() > 100 {
            lines.push(format!("  {word}"));
        } else {
            lines[last].push(' ');
            lines[last].push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::{PROBES, find};

    #[test]
    fn examples_are_commands_that_parse() {
        for entry in PROBES {
            let line = command_line(entry);
            let parsed = crate::cli::command().try_get_matches_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        let line = command_line(find("file_opens").unwrap());
        assert_eq!(line, "mcptrace run file_opens --failed-only --path-prefix /etc/ -d 5");
    }

    #[test]
    fn fields_are_told_once() {
        for entry in PROBES {
            let told = json(entry);
            assert_ne!(told["fields"], told["event_fields"], "{}", entry.name);
        }
        let both = PROBES.iter().filter(|entry| !entry.further_event_fields().is_empty()).count();
        assert!(both > 0, "where they differ both are");
    }

    #[test]
    fn a_description_has_everything_a_person_asks() {
        let text = text(find("syscall_latency").unwrap());
        for part in [
            "How long does each system call take",
            "--slower-than-us N",
            "latency (ns)",
            "tp_btf/sys_enter",
            "block_latency",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 132), "{text}");
    }
}
