//! From text to settings, or to an error with its place.

use std::{
    env::VarError,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use toml::{Table, Value, de::DeTable};

use super::{Config, DEFAULT_FILE, KEYS, Key, VARIABLE};
pub use crate::guarded::text;
use crate::{
    guarded::guarded,
    suggest::nearest,
    text::{clipped, untrusted},
};

/// Why the configuration cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigError {
    /// The file or the variable.
    pub place: String,
    /// Line and column in the file, counted from 1.
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub message: String,
    /// The known key that may have been meant.
    pub did_you_mean: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.place)?;
        if let Some((line, column)) = self.at {
            write!(formatter, ":{line}:{column}")?;
        }
        write!(formatter, ": {}", self.message)?;
        self.did_you_mean.iter().try_for_each(|name| write!(formatter, "; did you mean `{name}`?"))
    }
}

impl std::error::Error for ConfigError {}

/// Settings, and where they came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The settings in force.
    pub config: Config,
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// Keys that the file sets.
    pub in_file: Vec<String>,
    /// Keys that variables of the environment set, and which.
    pub in_environment: Vec<(String, String)>,
}

impl Loaded {
    /// Whether the file or the environment sets a key.
    pub fn says(&self, key: &str) -> bool {
        self.in_file.iter().chain(self.in_environment.iter().map(|(name, _)| name)).any(|name| name == key)
    }
}

/// The settings: of the file that is given, or named by [`VARIABLE`], or of [`DEFAULT_FILE`] if there is one; over them the environment.
pub fn load(given: Option<&Path>) -> Result<Loaded, ConfigError> {
    let named = given.map(Path::to_path_buf).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let named = named.filter(|path| !path.as_os_str().is_empty());
    let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let text = match guarded(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => None,
        Err(error) => return Err(fault(&path, format!("cannot be read: {error}"))),
    };
    if let Some(key) = KEYS.iter().find(|key| matches!(std::env::var(key.variable), Err(VarError::NotUnicode(_)))) {
        let (place, message) = (key.variable.to_owned(), "it is no text".to_owned());
        return Err(ConfigError { place, message, ..ConfigError::default() });
    }
    let environment = |name: &str| std::env::var(name).ok();
    assemble(text.as_deref().map(|text| (path.as_path(), text)), environment)
}

/// All that is wrong with a file; nothing if it can be used.
pub fn check(path: &Path, text: &str) -> Vec<ConfigError> {
    match parse(path, text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors,
    }
}

fn assemble(file: Option<(&Path, &str)>, environment: impl Fn(&str) -> Option<String>) -> Result<Loaded, ConfigError> {
    let first = |errors: Vec<ConfigError>| errors.into_iter().next().unwrap_or_default();
    let mut table = file.map(|(path, text)| parse(path, text).map_err(first)).transpose()?.unwrap_or_default();
    let in_file = KEYS.iter().filter(|key| get(&table, key.name).is_some()).map(|key| key.name.to_owned()).collect();
    let mut in_environment = Vec::new();
    let defaults = Table::try_from(Config::default()).unwrap_or_default();
    for key in KEYS.iter().filter(|key| !key.variable.is_empty()) {
        let Some(text) = environment(key.variable).filter(|text| !text.is_empty()) else { continue };
        set(&mut table, &defaults, key, &text)?;
        in_environment.push((key.name.to_owned(), key.variable.to_owned()));
    }
    let config = Config::deserialize(table)
        .map_err(|error| ConfigError { message: error.message().to_owned(), ..ConfigError::default() })?;
    let by_variable = |name: &str| in_environment.iter().find(|(key, _)| key == name).map(|(_, variable)| variable);
    if let Some((key, right)) = config.faults().into_iter().next() {
        let place = by_variable(key).cloned().unwrap_or_else(|| key.to_owned());
        return Err(ConfigError { place, message: right, ..ConfigError::default() });
    }
    Ok(Loaded { config, file: file.map(|(path, _)| path.to_owned()), in_file, in_environment })
}

/// The table of a file in which all is right.
fn parse(path: &Path, text: &str) -> Result<Table, Vec<ConfigError>> {
    let at = |error: &toml::de::Error| ConfigError {
        at: error.span().map(|span| position(text, span.start)),
        ..fault(path, error.message().trim().to_owned())
    };
    let places = DeTable::parse(text).map_err(|error| vec![at(&error)])?;
    let unknown = unknown(path, text, places.get_ref());
    if !unknown.is_empty() {
        return Err(unknown);
    }
    let config: Config = toml::from_str(text).map_err(|error| vec![at(&error)])?;
    let wrong = |(key, right): (&str, String)| ConfigError {
        at: place_of(places.get_ref(), key).map(|start| position(text, start)),
        ..fault(path, format!("`{key}`: {right}"))
    };
    let faults: Vec<_> = config.faults().into_iter().map(wrong).collect();
    if faults.is_empty() { toml::from_str(text).map_err(|error| vec![at(&error)]) } else { Err(faults) }
}

/// Sections and keys that there are not.
fn unknown(path: &Path, text: &str, table: &DeTable<'_>) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let sections: std::collections::BTreeSet<_> = KEYS.iter().filter_map(|key| key.name.split('.').next()).collect();
    let none = |what: &str, name: &str| format!("there is no {what} `{}`", untrusted(name.as_bytes(), 60));
    let mut push = |start: usize, message: String, near: Option<&str>| {
        let (at, did_you_mean) = (Some(position(text, start)), near.map(str::to_owned));
        errors.push(ConfigError { at, did_you_mean, ..fault(path, message) });
    };
    for (section, rows) in table {
        let (start, name) = (section.span().start, section.get_ref().as_ref());
        let Some(rows) = rows.get_ref().as_table().filter(|_| sections.contains(name)) else {
            if sections.contains(name) {
                push(start, format!("`{name}` is a section: write [{name}], and its keys below"), None);
                continue;
            }
            // A key without its section.
            let inside = KEYS.iter().find(|key| key.name.split('.').nth(1) == Some(name)).map(|key| key.name);
            push(start, none("section", name), inside.or_else(|| nearest(name, sections.iter().copied())));
            continue;
        };
        for key in rows.keys() {
            let full = format!("{name}.{}", key.get_ref());
            if !KEYS.iter().any(|known| known.name == full) {
                push(key.span().start, none("key", &full), nearest(&full, KEYS.iter().map(|known| known.name)));
            }
        }
    }
    errors
}

fn place_of(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (section, name) = key.split_once('.')?;
    let rows = table.iter().find(|(key, _)| key.get_ref() == section)?.1.get_ref().as_table()?;
    rows.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value.span().start)
}

/// Line and column of an offset, counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn get<'a>(table: &'a Table, name: &str) -> Option<&'a Value> {
    let (section, key) = name.split_once('.')?;
    table.get(section)?.get(key)
}

/// Takes over a variable, as the type that the key's default has.
fn set(table: &mut Table, defaults: &Table, key: &Key, text: &str) -> Result<(), ConfigError> {
    let wrong = |right: &str| ConfigError {
        place: key.variable.to_owned(),
        message: right.to_owned(),
        ..ConfigError::default()
    };
    let value = match get(defaults, key.name) {
        Some(Value::Boolean(_)) => boolean(text).map(Value::from).ok_or_else(|| wrong("use true or false"))?,
        Some(Value::Integer(_)) => Value::Integer(text.parse().map_err(|_| wrong("use a whole number"))?),
        Some(Value::Float(_)) => Value::Float(text.parse().map_err(|_| wrong("use a number"))?),
        Some(Value::Array(_)) => text.split(',').map(|word| Value::from(word.trim())).collect::<Vec<_>>().into(),
        _ => Value::from(text),
    };
    if let Some((section, name)) = key.name.split_once('.') {
        let rows = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Some(rows) = rows.as_table_mut() {
            rows.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn fault(path: &Path, message: String) -> ConfigError {
    let (place, message) = (path.display().to_string(), clipped(message, 1000));
    ConfigError { place, message, ..ConfigError::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpftrace::policy::Level;

    const FILE: &str = "/etc/mcptrace/config.toml";

    fn loaded(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let variable =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        assemble(Some((Path::new(FILE), text)), variable)
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(assemble(None, |_| None).unwrap().config, Config::default());
        // Servers keep results where there is a history; executions of whoever uses the library do not, unless told.
        let history = Some(crate::recorder::place::folder(None));
        assert_eq!(Config::default().limits(), crate::executions::Limits { history, ..Default::default() });
        assert_eq!(Config::default().audit(false), crate::audit::Settings::default());
        assert_eq!(Config::default().audit(true).to, crate::audit::Destination::Stderr);
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let text = "[scripts]\nallow = \"never\"\n[secrets]\nreveal = [\"names\"]\n[limits]\nrunning = 3\n";
        let from_file = loaded(text, &[]).unwrap();
        assert_eq!((from_file.config.policy().level, from_file.config.limits().running), (Level::Never, 3));
        assert_eq!(from_file.in_file, ["scripts.allow", "limits.running", "secrets.reveal"]);
        let environment = [("MCPTRACE_ALLOW_SCRIPTS", "any"), ("MCPTRACE_REVEAL", "texts, arguments")];
        let both = loaded(text, &environment).unwrap();
        assert_eq!((both.config.policy().level, both.config.limits().running), (Level::Any, 3));
        assert_eq!(both.config.secrets.reveal, ["texts", "arguments"]);
        assert_eq!(both.in_environment[0], ("scripts.allow".to_owned(), "MCPTRACE_ALLOW_SCRIPTS".to_owned()));
    }

    #[test]
    fn who_sets_nothing_leaves_places_to_others() {
        let each = |text: &str| loaded(text, &[]).unwrap().config.limits().running_each;
        assert_eq!([each(""), each("[limits]\nrunning = 20\n"), each("[limits]\nrunning = 1\n")], [6, 15, 1]);
        assert_eq!(each("[limits]\nrunning_each = 8\n"), 8, "what the operator sets holds");
    }

    #[test]
    fn what_is_not_known_is_an_error_with_its_place_and_the_nearest_key() {
        for (text, said) in [
            ("[scripts]\nalow = \"any\"\n", ":2:1: there is no key `scripts.alow`; did you mean `scripts.allow`?"),
            ("\n[script]\n", ":2:2: there is no section `script`; did you mean `scripts`?"),
            ("limits = 3\n", ":1:1: `limits` is a section: write [limits], and its keys below"),
            ("[[limits]]\nrunning = 1\n", ":1:3: `limits` is a section"),
            ("running = 3\n", ":1:1: there is no section `running`; did you mean `limits.running`?"),
            ("[limits]\n  running = \"many\"\n", ":2:13: invalid type: string \"many\", expected usize"),
            ("[limits]\nrunning = 0\n", ":2:11: `limits.running`: use 1 to 256"),
            ("[scripts]\nallow = \"Never\"\n", ":2:9: `scripts.allow`: use never, policy or any"),
            (
                "[audit]\nto = \"relative/file\"\n",
                ":2:6: `audit.to`: use auto, off, stderr, journal or the absolute path",
            ),
            ("[secrets]\nreveal = [\"passwords\"]\n", ":2:10: `secrets.reveal`: use arguments"),
            ("[recorder]\nbudget_percent = nan\n", ":2:18: `recorder.budget_percent`"),
            ("[scripts\n", ":1:9: "),
            ("[limits]\nrunning = 1\nrunning = 2\n", ":3:1: duplicate key"),
        ] {
            let error = loaded(text, &[]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{FILE}{said}")), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_variable_that_does_not_fit_is_named() {
        for (name, value, said) in [
            ("MCPTRACE_ALLOW_SCRIPTS", "sometimes", "MCPTRACE_ALLOW_SCRIPTS: use never, policy or any"),
            ("MCPTRACE_ALLOW_SCRIPT_PROGRAMS", "perhaps", "MCPTRACE_ALLOW_SCRIPT_PROGRAMS: use true or false"),
            ("MCPTRACE_REVEAL", "passwords", "MCPTRACE_REVEAL: use arguments"),
            ("MCPTRACE_SOCKET", "here", "MCPTRACE_SOCKET: use an absolute path"),
        ] {
            let error = loaded("", &[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn all_unknown_keys_of_a_file_are_told_at_once() {
        let errors = check(Path::new(FILE), "[scripts]\na = 1\nb = 2\n[nothing]\n");
        assert_eq!(errors.len(), 3, "{errors:?}");
    }

    #[test]
    fn a_file_that_others_can_write_is_not_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "[scripts]\nallow = \"any\"\n").unwrap();
        for (mode, good) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(load(Some(&path)).is_ok(), good, "{mode:o}");
        }
        assert!(load(Some(&folder.path().join("missing"))).unwrap_err().to_string().contains("cannot be read"));
        assert!(load(Some(folder.path())).is_err());
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        for endless in [pipe.as_path(), Path::new("/dev/zero")] {
            assert!(load(Some(endless)).unwrap_err().to_string().contains("it is no file"), "{}", endless.display());
            assert!(text(endless).is_err());
        }
    }
}
