//! Entries in JSON, with all else left as it is written: order, indentation, and comments where the client takes them.

use jsonc_parser::{
    ParseOptions,
    cst::{CstInputValue, CstObject, CstObjectProp, CstRootNode},
};
use serde::de::IgnoredAny;

use super::entry::{Entry, Fault};

/// JSON as a client writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json {
    /// The object that has a member for each server.
    pub(super) servers: &'static str,
    /// Whether an entry says that it is for standard input and output.
    pub(super) typed: bool,
    /// Whether the client takes comments, and commas behind the last member.
    pub(super) comments: bool,
}

impl Json {
    pub(super) fn enter(self, text: &str, entry: &Entry) -> Result<String, Fault> {
        // A file that is not there, or has nothing in it, begins as an object on lines of its own.
        let text = if text.trim().is_empty() { "{\n}\n" } else { text };
        let root = self.parse(text)?;
        let servers = match self.servers_of(&root)? {
            Some(servers) => servers,
            None => top(&root)?.object_value_or_set(self.servers),
        };
        match member(&servers, &entry.name)? {
            Some(present) => self.update(&present, entry)?,
            None => {
                servers.append(&entry.name, self.value(entry));
            }
        }
        Ok(root.to_string())
    }

    pub(super) fn remove(self, text: &str, name: &str) -> Result<Option<String>, Fault> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        let root = self.parse(text)?;
        let Some(servers) = self.servers_of(&root)? else { return Ok(None) };
        let Some(present) = member(&servers, name)? else { return Ok(None) };
        present.remove();
        if is_bare(&servers)
            && let Some(whole) = member(&top(&root)?, self.servers)?
        {
            whole.remove();
        }
        Ok(Some(root.to_string()))
    }

    fn parse(self, text: &str) -> Result<CstRootNode, Fault> {
        if !self.comments {
            // The tree takes comments whether they are allowed or not.
            check(text)?;
        }
        let options = ParseOptions {
            allow_comments: self.comments,
            allow_trailing_commas: self.comments,
            allow_loose_object_property_names: false,
            allow_missing_commas: false,
            allow_single_quoted_strings: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            allow_extended_string_escapes: false,
        };
        CstRootNode::parse(text, &options).map_err(|error| Fault {
            at: Some((error.line_display(), error.column_display())),
            message: format!("no JSON: {}", error.kind().to_string().to_lowercase()),
        })
    }

    fn servers_of(self, root: &CstRootNode) -> Result<Option<CstObject>, Fault> {
        let Some(present) = member(&top(root)?, self.servers)? else { return Ok(None) };
        present.object_value().map(Some).ok_or_else(|| Fault::new(format!("`{}` is no object", self.servers)))
    }

    fn value(self, entry: &Entry) -> CstInputValue {
        CstInputValue::Object(self.fields(entry).into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn fields(self, entry: &Entry) -> Vec<(&'static str, CstInputValue)> {
        let text = |text: &str| CstInputValue::String(text.to_owned());
        let mut fields = Vec::new();
        if self.typed {
            fields.push(("type", text("stdio")));
        }
        fields.push(("command", text(&entry.command)));
        fields.push(("args", CstInputValue::Array(entry.arguments.iter().map(|word| text(word)).collect())));
        fields
    }

    /// Sets what is ours; an environment or a switch that somebody has added stays.
    fn update(self, present: &CstObjectProp, entry: &Entry) -> Result<(), Fault> {
        let object = present.object_value().ok_or_else(|| Fault::new(format!("`{}` is no object", entry.name)))?;
        if member(&object, "url")?.is_some() {
            return Err(Fault::taken(&entry.name));
        }
        for (name, value) in self.fields(entry) {
            match member(&object, name)? {
                Some(field) if says(&field, &value) => {}
                Some(field) => field.set_value(value),
                None => {
                    object.append(name, value);
                }
            }
        }
        Ok(())
    }
}

/// JSON as its standard has it, which is what most clients read.
fn check(text: &str) -> Result<(), Fault> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let rest = text.lines().nth(line.saturating_sub(1)).and_then(|text| text.get(column.saturating_sub(1)..));
        let comment = rest.is_some_and(|rest| rest.starts_with("//") || rest.starts_with("/*"));
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        let said =
            if comment { "this client takes no comments in JSON".to_owned() } else { format!("no JSON: {said}") };
        Fault { at: Some((line, column)), message: said }
    })
}

/// Whether a member has a value of text or a list of texts, however it is written.
fn says(field: &CstObjectProp, value: &CstInputValue) -> bool {
    let text = |node: &jsonc_parser::cst::CstNode| node.as_string_lit().and_then(|text| text.decoded_value().ok());
    match value {
        CstInputValue::String(wanted) => field.value().is_some_and(|node| text(&node).as_ref() == Some(wanted)),
        CstInputValue::Array(wanted) => field.array_value().is_some_and(|list| {
            let found: Vec<_> = list.elements().iter().map(text).collect();
            let wanted =
                wanted.iter().map(|one| if let CstInputValue::String(text) = one { Some(text.clone()) } else { None });
            found == wanted.collect::<Vec<_>>()
        }),
        _ => false,
    }
}

fn top(root: &CstRootNode) -> Result<CstObject, Fault> {
    root.object_value().ok_or_else(|| Fault::new("the file is no JSON object"))
}

/// The member of a name. Of two, a client takes one and we might change the other.
fn member(object: &CstObject, name: &str) -> Result<Option<CstObjectProp>, Fault> {
    let mut all = object.properties().into_iter().filter(|one| one.decoded_name().as_deref() == Some(name));
    let first = all.next();
    if all.next().is_some() {
        return Err(Fault::new(format!("`{name}` is there twice; take one out")));
    }
    Ok(first)
}

/// Whether nothing is in it, not even a comment.
fn is_bare(object: &CstObject) -> bool {
    object.properties().is_empty() && !object.children().iter().any(jsonc_parser::cst::CstNode::is_comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Json = Json { servers: "mcpServers", typed: true, comments: false };
    const WITH_COMMENTS: Json = Json { servers: "servers", typed: true, comments: true };

    fn entry(options: &[&str]) -> Entry {
        Entry {
            name: "mcptrace".into(),
            command: "/usr/bin/mcptrace".into(),
            arguments: options.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    fn entered(json: Json, text: &str) -> String {
        json.enter(text, &entry(&[])).unwrap()
    }

    #[test]
    fn a_new_file_has_the_entry_alone() {
        let expected = r#"{
  "mcpServers": {
    "mcptrace": {
      "type": "stdio",
      "command": "/usr/bin/mcptrace",
      "args": []
    }
  }
}
"#;
        assert_eq!(entered(PLAIN, ""), expected);
        assert_eq!(entered(PLAIN, " \n"), expected);
        let desktop = Json { typed: false, ..PLAIN };
        assert!(!entered(desktop, "").contains("type"));
    }

    /// Files as they are found: entering changes the entry only, a second time nothing, and removing gives the file back.
    #[test]
    fn what_is_there_stays_byte_for_byte() {
        let files = [
            "{\n  \"z\": 1,\n  \"a\": [1, 2],\n  \"mcpServers\": {\n    \"other\": {\n      \"command\": \"x\"\n    }\n  },\n  \"b\": \"\\u00e4\"\n}\n",
            "{\n    \"numStartups\": 3,\n    \"projects\": {\n        \"/a\": { \"mcpServers\": {} }\n    }\n}\n",
            "{\n\t\"a\": 1.50e3\n}",
            "{\r\n  \"a\": 1\r\n}\r\n",
            "{}",
        ];
        for text in files {
            let with = entered(PLAIN, text);
            let value: serde_json::Value =
                serde_json::from_str(&with).unwrap_or_else(|error| panic!("{error}: {with}"));
            assert_eq!(value["mcpServers"]["mcptrace"]["command"], "/usr/bin/mcptrace", "{with}");
            assert_eq!(entered(PLAIN, &with), with, "a second time");
            assert_eq!(PLAIN.remove(&with, "mcptrace").unwrap().as_deref(), Some(text), "{with}");
        }
    }

    /// What stood in one line is opened where the entry went in, and says the same.
    #[test]
    fn what_stands_in_one_line_keeps_its_order() {
        let text = r#"{"z":1,"a":2,"mcpServers":{"other":{"command":"x"}}}"#;
        let with = entered(PLAIN, text);
        let value: serde_json::Value = serde_json::from_str(&with).unwrap();
        let names: Vec<_> = value.as_object().unwrap().keys().collect();
        assert_eq!(names, ["z", "a", "mcpServers"]);
        let without = PLAIN.remove(&with, "mcptrace").unwrap().unwrap();
        assert_eq!(without.split_whitespace().collect::<String>(), text);
    }

    #[test]
    fn comments_are_kept_where_the_client_takes_them() {
        let text = "// mine\n{\n  // all of them\n  \"servers\": {\n    \"other\": { \"url\": \"https://x\" }, // remote\n  },\n  \"inputs\": [], /* none */\n}\n";
        let with = entered(WITH_COMMENTS, text);
        for comment in ["// mine", "// all of them", "// remote", "/* none */"] {
            assert!(with.contains(comment), "{with}");
        }
        assert_eq!(entered(WITH_COMMENTS, &with), with);
        assert_eq!(WITH_COMMENTS.remove(&with, "mcptrace").unwrap().as_deref(), Some(text), "{with}");
        let empty = "{\n  \"servers\": {\n    // to come\n  }\n}\n";
        let without = WITH_COMMENTS.remove(&entered(WITH_COMMENTS, empty), "mcptrace").unwrap().unwrap();
        assert!(without.contains("// to come"), "{without}");
    }

    #[test]
    fn an_entry_that_is_there_gets_the_new_command_and_keeps_the_rest() {
        let text = "{\n  \"mcpServers\": {\n    \"mcptrace\": {\n      \"command\": \"/old\",\n      \"env\": { \"MCPTRACE_LOG\": \"info\" }\n    }\n  }\n}\n";
        let with = PLAIN.enter(text, &entry(&["serve", "--allow-scripts", "never"])).unwrap();
        let value: serde_json::Value = serde_json::from_str(&with).unwrap();
        let found = &value["mcpServers"]["mcptrace"];
        assert_eq!(found["env"]["MCPTRACE_LOG"], "info");
        assert_eq!(found["args"], serde_json::json!(["serve", "--allow-scripts", "never"]));
        assert_eq!((&found["command"], &found["type"]), (&"/usr/bin/mcptrace".into(), &"stdio".into()));
        let back = PLAIN.enter(&with, &entry(&[])).unwrap();
        assert!(back.contains("\"args\": []"), "{back}");
    }

    #[test]
    fn a_command_is_compared_by_what_it_says() {
        let text = r#"{"mcpServers":{"mcptrace":{"type":"stdio","command":"\/usr\/bin\/mcptrace","args":[ ]}}}"#;
        assert_eq!(entered(PLAIN, text), text);
    }

    #[test]
    fn what_is_broken_is_refused_with_its_place() {
        let fault = |json: Json, text: &str| json.enter(text, &entry(&[])).unwrap_err();
        assert_eq!(fault(PLAIN, "{\n  \"a\": 1\n  \"b\": 2\n}").at, Some((3, 3)));
        assert_eq!(fault(PLAIN, "{\n  \"a\": }").at, Some((2, 8)));
        assert!(fault(WITH_COMMENTS, "{\n  \"a\": }").at.is_some_and(|(line, _)| line == 2));
        let comment = fault(PLAIN, "{\n  // x\n}");
        assert_eq!((comment.at, &*comment.message), (Some((2, 3)), "this client takes no comments in JSON"));
        assert!(fault(PLAIN, "{\"a\": 1,}").at.is_some(), "a comma behind the last member");
        assert!(fault(PLAIN, "{'a': 1}").at.is_some() && fault(WITH_COMMENTS, "{a: 1}").at.is_some());
        assert!(fault(PLAIN, "[]").message.contains("no JSON object"));
        assert!(fault(PLAIN, r#"{"mcpServers": []}"#).message.contains("`mcpServers` is no object"));
        assert!(fault(PLAIN, r#"{"mcpServers": {"mcptrace": 1}}"#).message.contains("`mcptrace` is no object"));
        assert!(fault(PLAIN, r#"{"mcpServers": {}, "mcpServers": {}}"#).message.contains("twice"));
        assert!(fault(PLAIN, r#"{"mcpServers": {"mcptrace": {"url": "u"}}}"#).message.contains("at a URL"));
        assert!(PLAIN.remove("{", "mcptrace").is_err());
    }

    #[test]
    fn removing_what_is_not_there_is_no_change() {
        for text in ["", "{}", r#"{"mcpServers": {"other": {}}}"#] {
            assert_eq!(PLAIN.remove(text, "mcptrace").unwrap(), None, "{text}");
        }
    }
}
