//! `mcptrace setup CLIENT`: enters the server into the configuration of an MCP client, or takes it out again.

mod clients;
mod entry;
mod file;
mod json;
mod person;
mod toml;

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command, builder::PossibleValue, value_parser};

use super::{Failure, output};
use clients::{CLIENTS, Client, Place, Scope};
use entry::{Entry, Fault};
use file::{File, Written};
use person::Person;

/// The longest name of a server; clients put it in front of the name of each tool.
const LONGEST_NAME: usize = 64;

const AFTER_HELP: &str = "\
Examples:
  mcptrace setup claude-code                      for you, in every project
  mcptrace setup vscode --scope project           .vscode/mcp.json of the folder that you are in
  mcptrace setup codex --print                    only shows what it would enter, and where
  mcptrace setup cursor -- --allow-scripts never  with options of `mcptrace serve`
  mcptrace setup claude-code --remove             takes it out again

Everything else in the file stays as it is, also comments. What stood there before is kept beside it, as FILE.before-mcptrace.
Under sudo it is the file of whoever called sudo.";

pub(super) fn define() -> Command {
    let clients = CLIENTS.iter().map(|client| PossibleValue::new(client.name).help(client.title));
    let scopes = Scope::ALL.iter().map(|scope| PossibleValue::new(scope.name()).help(scope.help()));
    Command::new("setup")
        .about("Enter mcptrace into the configuration of an MCP client")
        .after_help(AFTER_HELP)
        .arg(
            Arg::new("client")
                .value_name("CLIENT")
                .required(true)
                .value_parser(clients.collect::<Vec<_>>())
                .help("Which client"),
        )
        .arg(
            Arg::new("scope")
                .long("scope")
                .value_name("SCOPE")
                .default_value(Scope::User.name())
                .value_parser(scopes.collect::<Vec<_>>())
                .help("For which work"),
        )
        .arg(
            Arg::new("name")
                .long("name")
                .value_name("NAME")
                .default_value("mcptrace")
                .value_parser(name)
                .help("What the client calls it"),
        )
        .arg(
            Arg::new("print")
                .long("print")
                .action(ArgAction::SetTrue)
                .help("Change nothing: print what would be entered; where it belongs goes to stderr"),
        )
        .arg(
            Arg::new("remove")
                .long("remove")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["print", "arguments"])
                .help("Take it out again"),
        )
        .arg(
            Arg::new("arguments")
                .value_name("ARGUMENTS")
                .num_args(1..)
                .last(true)
                .value_parser(value_parser!(String))
                .help("Options of `mcptrace serve` that the client is to start it with"),
        )
}

/// A name that all clients take, and that needs no quotes in TOML.
fn name(text: &str) -> Result<String, String> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    if !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!("letters, digits, - and _, {LONGEST_NAME} at most"))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let word = |id: &str| matches.get_one::<String>(id).map(String::as_str).unwrap_or_default();
    let arguments: Vec<String> = matches.get_many("arguments").into_iter().flatten().cloned().collect();
    check(&arguments)?;
    let client = CLIENTS.iter().find(|client| client.name == word("client"));
    let scope = Scope::ALL.iter().find(|scope| scope.name() == word("scope"));
    let (Some(client), Some(scope)) = (client, scope) else { return Err(Failure::usage("which client?")) };
    let program = env::current_exe()?;
    // From here on as the one whose file it is: with no more rights over it than they have, and it stays theirs.
    let person = Person::become_caller()?;
    let path = client.path(*scope, &person, &env::current_dir()?)?;
    let program = if *scope == Scope::Project { portable(&program) } else { program };
    let entry = Entry::new(word("name"), &program, arguments)?;
    let job = Job { client, place: Place { path: &path, person: &person } };
    if matches.get_flag("print") {
        return job.print(&entry);
    }
    output::text(&if matches.get_flag("remove") { job.remove(&entry.name)? } else { job.enter(&entry)? })
}

/// Options that `mcptrace serve` does not take would be found out only when the client starts it, where nobody sees why.
fn check(arguments: &[String]) -> Result<(), Failure> {
    let words = ["mcptrace", "serve"].into_iter().chain(arguments.iter().map(String::as_str));
    match super::command().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = super::without_tip(error).to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err(Failure::usage(format!("`mcptrace serve` does not start so: {first}")))
        }
    }
}

/// What others can use too: the bare name, where the search path leads from it to this program.
fn portable(program: &Path) -> PathBuf {
    let Some(name) = program.file_name() else { return program.to_owned() };
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file());
    let same = |found: PathBuf| Some(fs::canonicalize(found).ok()? == fs::canonicalize(program).ok()?);
    if found.and_then(same) == Some(true) { name.into() } else { program.to_owned() }
}

/// One change of one file.
struct Job<'a> {
    client: &'a Client,
    place: Place<'a>,
}

impl Job<'_> {
    fn print(&self, entry: &Entry) -> Result<(), Failure> {
        let text = self.client.format.enter("", entry).map_err(|fault| self.failure(&fault))?;
        output::text(&text)?;
        // Nobody need read it.
        let _ = writeln!(io::stderr(), "{} reads it from {}", self.client.title, self.place.shown());
        Ok(())
    }

    fn enter(&self, entry: &Entry) -> Result<String, Failure> {
        let file = File::read(self.place.path)?;
        let old = file.text();
        let new = self.client.format.enter(old, entry).map_err(|fault| self.failure(&fault))?;
        let (title, shown) = (self.client.title, self.place.shown());
        let undo = "the same with --remove takes it out again";
        if new == old {
            return Ok(format!("{title}: {shown} has `{}` already; nothing was changed. {undo}.\n", entry.name));
        }
        let kept = kept(&file.replace(&new)?);
        let command = entry.command_line();
        Ok(format!("{title}: entered `{}` ({command}) in {shown}{kept}.\n{}; {undo}.\n", entry.name, self.client.next))
    }

    fn remove(&self, name: &str) -> Result<String, Failure> {
        let file = File::read(self.place.path)?;
        let (title, shown) = (self.client.title, self.place.shown());
        let new = self.client.format.remove(file.text(), name).map_err(|fault| self.failure(&fault))?;
        let Some(new) = new else {
            return Ok(format!("{title}: {shown} has no `{name}`; nothing was changed.\n"));
        };
        if self.client.format.is_empty(&new) && file.is_ours() {
            file.delete()?;
            return Ok(format!("{title}: removed {shown}, in which there was nothing but `{name}`.\n"));
        }
        let kept = kept(&file.replace(&new)?);
        Ok(format!("{title}: took `{name}` out of {shown}{kept}.\n"))
    }

    fn failure(&self, fault: &Fault) -> Failure {
        let place = fault.at.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
        let path = self.place.path.display();
        Failure::failed(format!("{path}{place}: {}; nothing was changed", fault.message))
    }
}

fn kept(written: &Written) -> String {
    written.backup.as_ref().map_or_else(String::new, |path| format!("; what it was is in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_clients_take() {
        assert_eq!(name("mcp-trace_2"), Ok("mcp-trace_2".to_owned()));
        for wrong in ["", "a b", "a.b", "ä", &"x".repeat(65)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arguments_are_those_of_serve() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(check(&[]).is_ok());
        assert!(check(&words("--allow-scripts never")).is_ok());
        let said = check(&words("--allow-scripts perhaps")).unwrap_err().message;
        assert!(said.contains("`mcptrace serve` does not start so") && said.contains("perhaps"), "{said}");
        assert!(check(&words("--nosuch")).is_err());
    }

    #[test]
    fn a_program_in_the_search_path_goes_by_its_name() {
        let shell = fs::canonicalize("/bin/sh").unwrap();
        let name = shell.file_name().unwrap();
        assert_eq!(portable(&shell), Path::new(name));
        assert_eq!(portable(Path::new("/no/such/mcptrace")), Path::new("/no/such/mcptrace"));
    }
}
