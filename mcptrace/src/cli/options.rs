//! A probe's own options as flags, made from the schema of its options. Pure.

use clap::{Arg, ArgAction, ArgMatches, builder::PossibleValue, value_parser};
use serde_json::{Map, Value};

use crate::probes::Entry;

/// An option of a probe.
#[derive(Clone, Debug)]
pub(super) struct ProbeOption {
    /// As in JSON.
    pub(super) name: String,
    /// What it does.
    pub(super) help: String,
    /// What it takes.
    pub(super) kind: Kind,
    /// What holds without it.
    pub(super) default: Option<String>,
}

/// What an option takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: it is there or not.
    Switch,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// Any text.
    Text,
    /// One of these words, each with its meaning.
    Word(Vec<(String, String)>),
}

impl ProbeOption {
    /// The flag, without its dashes.
    pub(super) fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// What stands for its value in help.
    pub(super) fn placeholder(&self) -> &'static str {
        match self.kind {
            Kind::Switch => "",
            Kind::Integer | Kind::Number => "N",
            Kind::Text => "TEXT",
            Kind::Word(_) => "WORD",
        }
    }

    fn id(&self) -> String {
        format!("option.{}", self.name)
    }

    fn argument(&self) -> Arg {
        let arg = Arg::new(self.id()).long(self.flag()).help(self.help()).help_heading("Options of the probe");
        let arg = if self.name.contains('_') { arg.alias(self.name.clone()) } else { arg };
        let arg = if self.kind == Kind::Switch { arg } else { arg.value_name(self.placeholder()) };
        match &self.kind {
            Kind::Switch => arg.action(ArgAction::SetTrue),
            Kind::Integer => arg.value_parser(value_parser!(u64)),
            Kind::Number => arg.value_parser(value_parser!(f64)),
            Kind::Text => arg,
            Kind::Word(words) => arg.value_parser(words.iter().map(possible).collect::<Vec<_>>()),
        }
    }

    fn help(&self) -> String {
        let default = self.default.as_ref().map(|default| format!(" [default: {default}]")).unwrap_or_default();
        self.help.clone() + &default
    }

    fn value(&self, matches: &ArgMatches) -> Option<Value> {
        let id = self.id();
        match self.kind {
            Kind::Switch => matches.get_flag(&id).then_some(Value::Bool(true)),
            Kind::Integer => matches.get_one::<u64>(&id).map(|number| (*number).into()),
            Kind::Number => matches.get_one::<f64>(&id).map(|number| (*number).into()),
            Kind::Text | Kind::Word(_) => matches.get_one::<String>(&id).map(|text| text.clone().into()),
        }
    }
}

/// The options of a probe, in the order of its schema.
pub(super) fn of(entry: &Entry) -> Vec<ProbeOption> {
    let schema = (entry.schema)();
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().map(|(name, property)| option(name, property)).collect()
}

/// The flags of a probe.
pub(super) fn arguments(entry: &Entry) -> Vec<Arg> {
    of(entry).iter().map(ProbeOption::argument).collect()
}

/// What was given, as the engine takes it.
pub(super) fn given(entry: &Entry, matches: &ArgMatches) -> Map<String, Value> {
    of(entry).iter().filter_map(|option| Some((option.name.clone(), option.value(matches)?))).collect()
}

fn option(name: &str, property: &Value) -> ProbeOption {
    let text = |field: &str| property[field].as_str().unwrap_or_default().to_owned();
    let default = property.get("default").filter(|default| !matches!(default, Value::Bool(_) | Value::Null));
    let bound = |field: &str| property[field].as_u64();
    let range = bound("minimum").zip(bound("maximum")).map(|(least, most)| format!(", {least} to {most}"));
    ProbeOption {
        name: name.to_owned(),
        help: text("description") + &range.unwrap_or_default(),
        kind: kind(property),
        default: default.map(crate::report::text::units::text),
    }
}

fn kind(property: &Value) -> Kind {
    let words = property["oneOf"].as_array().or_else(|| property["enum"].as_array());
    if let Some(words) = words {
        return Kind::Word(words.iter().filter_map(word).collect());
    }
    match property["type"].as_str() {
        Some("boolean") => Kind::Switch,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        _ => Kind::Text,
    }
}

/// A word of an enumeration: with a description where its variants have them, bare where they do not.
fn word(value: &Value) -> Option<(String, String)> {
    let name = value.as_str().or_else(|| value["const"].as_str())?;
    Some((name.to_owned(), value["description"].as_str().unwrap_or_default().to_owned()))
}

fn possible((word, help): &(String, String)) -> PossibleValue {
    let value = PossibleValue::new(word.clone());
    if help.is_empty() { value } else { value.help(help.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::{PROBES, find};

    #[test]
    fn every_option_of_every_probe_is_a_flag_of_the_right_type() {
        for entry in PROBES {
            let schema = (entry.schema)();
            for option in of(entry) {
                let declared = schema.get("properties").unwrap()[&option.name]["type"].as_str().map(str::to_owned);
                let made = match option.kind {
                    Kind::Switch => Some("boolean"),
                    Kind::Integer => Some("integer"),
                    Kind::Number => Some("number"),
                    Kind::Text => Some("string"),
                    Kind::Word(_) => None,
                };
                assert_eq!(declared.as_deref(), made, "{}: {}", entry.name, option.name);
                assert!(!option.help.is_empty());
            }
        }
    }

    #[test]
    fn what_is_given_is_what_the_engine_takes() {
        let entry = find("syscall_latency").unwrap();
        let command = clap::Command::new("x").args(arguments(entry));
        let words = ["x", "--syscall", "openat", "--slower-than-us", "7", "--transport", "perf"];
        let matches = command.clone().try_get_matches_from(words).unwrap();
        let expected = serde_json::json!({"syscall": "openat", "slower_than_us": 7, "transport": "perf"});
        assert_eq!(Value::Object(given(entry, &matches)), expected);
        assert!(given(entry, &command.try_get_matches_from(["x"]).unwrap()).is_empty());
    }
}
