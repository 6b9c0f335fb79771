//! Entries in TOML, with all else left as it is written.

use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value, value};

use super::entry::{Entry, Fault};

/// TOML as a client writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Toml {
    /// The table that has a table for each server.
    pub(super) servers: &'static str,
}

impl Toml {
    pub(super) fn enter(self, text: &str, entry: &Entry) -> Result<String, Fault> {
        let mut document = parse(text)?;
        let servers = document.entry(self.servers).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        let servers = like_table(servers, self.servers)?;
        match servers.get_mut(&entry.name) {
            Some(present) => update(like_table(present, &entry.name)?, entry)?,
            None => {
                servers.insert(&entry.name, new(entry));
            }
        }
        Ok(document.to_string())
    }

    pub(super) fn remove(self, text: &str, name: &str) -> Result<Option<String>, Fault> {
        let mut document = parse(text)?;
        let Some(servers) = document.get_mut(self.servers) else { return Ok(None) };
        let servers = like_table(servers, self.servers)?;
        if servers.remove(name).is_none() {
            return Ok(None);
        }
        Ok(Some(document.to_string()))
    }
}

fn parse(text: &str) -> Result<DocumentMut, Fault> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        let message = format!("no TOML: {}", error.message().lines().collect::<Vec<_>>().join(", "));
        error.span().map_or_else(|| Fault::new(&message), |span| Fault::at(text, span.start, &message))
    })
}

fn like_table<'a>(item: &'a mut Item, name: &str) -> Result<&'a mut dyn TableLike, Fault> {
    item.as_table_like_mut().ok_or_else(|| Fault::new(format!("`{name}` is no table")))
}

fn new(entry: &Entry) -> Item {
    let mut table = Table::new();
    table.insert("command", value(&entry.command));
    if !entry.arguments.is_empty() {
        table.insert("args", value(arguments(entry)));
    }
    Item::Table(table)
}

fn arguments(entry: &Entry) -> Array {
    entry.arguments.iter().map(String::as_str).collect()
}

/// Sets what is ours; an environment or a time limit that somebody has added stays.
fn update(table: &mut dyn TableLike, entry: &Entry) -> Result<(), Fault> {
    if table.contains_key("url") {
        return Err(Fault::taken(&entry.name));
    }
    if table.get("command").and_then(Item::as_str) != Some(&entry.command) {
        set(table, "command", entry.command.clone().into());
    }
    let present: Option<Vec<_>> =
        table.get("args").map(|item| item.as_array().into_iter().flatten().map(Value::as_str).collect());
    let wanted: Vec<_> = entry.arguments.iter().map(|word| Some(word.as_str())).collect();
    if present.unwrap_or_default() != wanted {
        set(table, "args", arguments(entry).into());
    }
    Ok(())
}

/// Replaces a value, with the comment behind it in its place.
fn set(table: &mut dyn TableLike, key: &str, mut new: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *new.decor_mut() = old.decor().clone();
            *old = new;
        }
        None => {
            table.insert(key, Item::Value(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODEX: Toml = Toml { servers: "mcp_servers" };

    fn entry(options: &[&str]) -> Entry {
        Entry {
            name: "mcptrace".into(),
            command: "/usr/bin/mcptrace".into(),
            arguments: options.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    fn entered(text: &str) -> String {
        CODEX.enter(text, &entry(&[])).unwrap()
    }

    #[test]
    fn a_new_file_has_the_entry_alone() {
        assert_eq!(entered(""), "[mcp_servers.mcptrace]\ncommand = \"/usr/bin/mcptrace\"\n");
        let with = CODEX.enter("", &entry(&["serve", "--allow-scripts", "never"])).unwrap();
        assert!(with.ends_with("args = [\"serve\", \"--allow-scripts\", \"never\"]\n"), "{with}");
    }

    #[test]
    fn what_is_there_stays_byte_for_byte() {
        let files = [
            "# mine\nmodel = \"o3\"   # the big one\n\n[mcp_servers.other]\ncommand = \"x\" # why\n\n[profiles.a]\nb = 1\n# the end\n",
            "model = 'x'\n\n[tui]\nnotifications = true\n",
            "[mcp_servers]\n\n[mcp_servers.other]\ncommand = \"x\"\nenv = { A = \"b\" }\n",
        ];
        for text in files {
            let with = entered(text);
            let value: toml::Table = with.parse().unwrap_or_else(|error| panic!("{error}: {with}"));
            assert_eq!(value["mcp_servers"]["mcptrace"]["command"].as_str(), Some("/usr/bin/mcptrace"));
            for line in text.lines() {
                assert!(with.contains(line), "{line:?} is lost: {with}");
            }
            assert_eq!(entered(&with), with, "a second time");
            assert_eq!(CODEX.remove(&with, "mcptrace").unwrap().as_deref(), Some(text), "{with}");
        }
    }

    #[test]
    fn servers_in_one_line_stay_in_one_line() {
        let text = "mcp_servers = { other = { command = \"x\" } } # all\n";
        let with = entered(text);
        let value: toml::Table = with.parse().unwrap();
        assert_eq!(value["mcp_servers"]["mcptrace"]["command"].as_str(), Some("/usr/bin/mcptrace"), "{with}");
        assert!(with.contains("# all"), "{with}");
        let without: toml::Table = CODEX.remove(&with, "mcptrace").unwrap().unwrap().parse().unwrap();
        assert_eq!(without, text.parse::<toml::Table>().unwrap());
    }

    #[test]
    fn an_entry_that_is_there_gets_the_new_command_and_keeps_the_rest() {
        let text =
            "[mcp_servers.mcptrace]\ncommand = \"/old\" # before\nargs = [\"serve\"]\nstartup_timeout_sec = 20\n";
        let with = entered(text);
        let expected =
            "[mcp_servers.mcptrace]\ncommand = \"/usr/bin/mcptrace\" # before\nargs = []\nstartup_timeout_sec = 20\n";
        assert_eq!(with, expected);
    }

    #[test]
    fn what_is_broken_is_refused_with_its_place() {
        let fault = |text: &str| CODEX.enter(text, &entry(&[])).unwrap_err();
        let broken = fault("a = 1\nb = = 2\n");
        assert_eq!(broken.at, Some((2, 5)), "{broken:?}");
        assert!(fault("a = 1\na = 2\n").at.is_some_and(|(line, _)| line == 2));
        assert!(fault("mcp_servers = 1\n").message.contains("`mcp_servers` is no table"));
        assert!(fault("[mcp_servers]\nmcptrace = 1\n").message.contains("`mcptrace` is no table"));
        assert!(fault("[mcp_servers.mcptrace]\nurl = \"u\"\n").message.contains("at a URL"));
        assert!(CODEX.remove("x", "mcptrace").is_err());
    }

    #[test]
    fn removing_what_is_not_there_is_no_change() {
        for text in ["", "a = 1\n", "[mcp_servers.other]\ncommand = \"x\"\n"] {
            assert_eq!(CODEX.remove(text, "mcptrace").unwrap(), None, "{text}");
        }
    }
}
