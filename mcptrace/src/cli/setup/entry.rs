//! What is entered, and why it cannot be.

use std::path::Path;

use super::Failure;

/// How a client starts the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What the client calls it.
    pub(super) name: String,
    /// The program.
    pub(super) command: String,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
}

impl Entry {
    /// Options of `mcptrace serve` come after that word.
    pub(super) fn new(name: &str, program: &Path, options: Vec<String>) -> Result<Self, Failure> {
        let command = program.to_str().map(str::to_owned);
        let command = command.ok_or_else(|| {
            Failure::failed(format!("{} is no UTF-8, which configurations must be; move it", program.display()))
        })?;
        let serve = (!options.is_empty()).then(|| "serve".to_owned());
        Ok(Self { name: name.to_owned(), command, arguments: serve.into_iter().chain(options).collect() })
    }

    /// For people.
    pub(super) fn command_line(&self) -> String {
        std::iter::once(&self.command).chain(&self.arguments).cloned().collect::<Vec<_>>().join(" ")
    }
}

/// Why a file cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Line and column, from 1, where there is a place.
    pub(super) at: Option<(usize, usize)>,
    /// What is wrong, and what would be right.
    pub(super) message: String,
}

impl Fault {
    /// Of something that has no place.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { at: None, message: message.into() }
    }

    /// At a byte of a text.
    pub(super) fn at(text: &str, byte: usize, message: impl Into<String>) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { at: Some((line, column)), message: message.into() }
    }

    /// Something else stands under a name that a server would have.
    pub(super) fn taken(name: &str) -> Self {
        Self::new(format!(
            "`{name}` is a server at a URL; --remove takes it out, --name enters this one under another name"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_letters() {
        assert_eq!(Fault::at("ä\nöx", 5, "").at, Some((2, 2)));
        assert_eq!(Fault::at("", 0, "").at, Some((1, 1)));
        assert_eq!(Fault::at("a\n", 9, "").at, Some((2, 1)));
    }

    #[test]
    fn options_come_after_the_word_that_takes_them() {
        let bare = Entry::new("mcptrace", Path::new("/usr/bin/mcptrace"), vec![]).unwrap();
        assert_eq!(bare.command_line(), "/usr/bin/mcptrace");
        let with = Entry::new("x", Path::new("m"), vec!["--allow-scripts".into(), "never".into()]).unwrap();
        assert_eq!(with.command_line(), "m serve --allow-scripts never");
    }
}
