//! Settings as a person reads them: as a file that would set them.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::{Config, KEYS, Key, Loaded};

/// The settings in force, each with what it does and where it comes from. The text can be used as a file.
pub fn show(loaded: &Loaded) -> String {
    let head = loaded.file.as_ref().map_or_else(
        || format!("# There is no {}: these are the defaults.\n", super::DEFAULT_FILE),
        |file| format!("# From {} and the environment.\n", file.display()),
    );
    head + &sections(&loaded.config, |key| format!("# {}\n{}", key.what, origin(loaded, key)))
}

/// Every key with its default and the reason for it: docs/configuration.md is generated from this.
pub fn document() -> String {
    let comment = |key: &Key| {
        let variable = if key.variable.is_empty() { String::new() } else { format!("# Variable: {}\n", key.variable) };
        format!("# {}\n# Default because: {}\n{variable}", key.what, key.why)
    };
    sections(&Config::default(), comment)
}

/// What differs from the defaults, a line each.
pub fn summary(loaded: &Loaded) -> Vec<String> {
    let (values, defaults) = (table(&loaded.config), table(&Config::default()));
    let differs = KEYS.iter().filter(|key| get(&values, key) != get(&defaults, key));
    let line = |key: &Key| format!("{} = {}{}", key.name, text(get(&values, key)), said(loaded, key));
    differs.map(line).collect()
}

fn sections(config: &Config, comment: impl Fn(&Key) -> String) -> String {
    let values = table(config);
    let mut text = String::new();
    let mut last = "";
    for key in KEYS {
        let (section, name) = key.name.split_once('.').unwrap_or_default();
        if section != last {
            let _ = write!(text, "\n[{section}]\n");
            last = section;
        }
        let _ = writeln!(text, "{}{name} = {}", comment(key), self::text(get(&values, key)));
    }
    text
}

fn origin(loaded: &Loaded, key: &Key) -> String {
    match said(loaded, key) {
        said if said.is_empty() => String::new(),
        said => format!("#{said}\n"),
    }
}

fn said(loaded: &Loaded, key: &Key) -> String {
    let variable = loaded.in_environment.iter().find(|(name, _)| name == key.name);
    match variable {
        Some((_, variable)) => format!(" (from {variable})"),
        None if loaded.in_file.iter().any(|name| name == key.name) => " (from the file)".to_owned(),
        None => String::new(),
    }
}

fn table(config: &Config) -> Table {
    Table::try_from(config).unwrap_or_default()
}

fn get<'a>(table: &'a Table, key: &Key) -> Option<&'a Value> {
    let (section, name) = key.name.split_once('.')?;
    table.get(section)?.get(name)
}

fn text(value: Option<&Value>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

    #[test]
    fn what_is_shown_can_be_used_as_a_file() {
        let mut loaded = Loaded::default();
        loaded.config = loaded.config.with_policy(Some(crate::bpftrace::policy::Level::Never), true);
        assert_eq!(toml::from_str::<Config>(&show(&loaded)).unwrap(), loaded.config);
        assert_eq!(toml::from_str::<Config>(&document()).unwrap(), Config::default());
        assert_eq!(summary(&loaded), ["scripts.allow = \"never\"", "scripts.programs = true"]);
        assert_eq!(summary(&Loaded::default()), [""; 0]);
    }

    /// `UPDATE=1` writes it anew.
    #[test]
    fn the_documentation_is_that_of_the_table() {
        let page = format!(
            "# Configuration\n\nOne file: `--config FILE`, `MCPTRACE_CONFIG`, or `/etc/mcptrace/config.toml`. Variables of the \
             environment override it, flags of a command both.\nA key that is not known is an error with its place. `mcptrace config \
             check` reads a file and says all that is wrong; `mcptrace config show` prints\nwhat is in force and where it comes from. \
             There is no secret in it: tokens are in files of their own.\n\nThis is every key with its default, as `mcptrace config \
             defaults` prints it:\n\n```toml{}```\n",
            document()
        );
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(DOCUMENT, &page).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(DOCUMENT).unwrap_or_default(),
            page,
            "UPDATE=1 cargo test -p mcptrace config"
        );
    }
}
