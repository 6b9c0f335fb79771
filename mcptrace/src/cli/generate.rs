//! `mcptrace generate DIR`: man pages and completions of shells, out of the definition of the command line itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::{Shell, generate_to};

use super::{Failure, output};

/// Where shells look for completions below `share`.
const COMPLETIONS: &[(Shell, &str)] = &[
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];
/// Where man looks.
const PAGES: &str = "man/man1";

pub(super) fn define() -> Command {
    Command::new("generate")
        .about("Write the man pages, and completions for bash, zsh and fish")
        .after_help("Example:\n  mcptrace generate ~/.local/share     where man, bash and fish find them")
        .arg(
            Arg::new("dir")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("A folder like /usr/share, /usr/local/share or ~/.local/share"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let Some(share) = matches.get_one::<PathBuf>("dir") else { return Err(Failure::usage("which folder?")) };
    let failed = |error: io::Error| Failure::failed(format!("cannot write below {}: {error}", share.display()));
    let written = write(share).map_err(failed)?;
    output::text(&written.iter().fold(String::new(), |text, path| text + &path.display().to_string() + "\n"))
}

/// Writes everything, and gives the folders and files that it wrote.
fn write(share: &Path) -> io::Result<Vec<PathBuf>> {
    let pages = share.join(PAGES);
    fs::create_dir_all(&pages)?;
    clap_mangen::generate_to(super::command(), &pages)?;
    let mut written = vec![pages];
    for (shell, folder) in COMPLETIONS {
        let folder = share.join(folder);
        fs::create_dir_all(&folder)?;
        let path = generate_to(*shell, &mut visible(super::command()), "mcptrace", &folder)?;
        // bash looks for the name of the command alone.
        let path = if *shell == Shell::Bash { renamed(path, "mcptrace")? } else { path };
        written.push(path);
    }
    Ok(written)
}

fn renamed(path: PathBuf, name: &str) -> io::Result<PathBuf> {
    let new = path.with_file_name(name);
    fs::rename(path, &new)?;
    Ok(new)
}

/// Without what is hidden, which completions would offer.
fn visible(command: Command) -> Command {
    let shown: Vec<Command> = command.get_subcommands().filter(|one| !one.is_hide_set()).cloned().collect();
    // There is no way to take one out of a command.
    let arguments: Vec<Arg> = command.get_arguments().cloned().collect();
    Command::new("mcptrace")
        .version(env!("CARGO_PKG_VERSION"))
        .args(arguments.into_iter().filter(|one| !one.is_hide_set()))
        .subcommands(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::VERBS, probes::PROBES};

    #[test]
    fn every_command_has_its_page_and_every_shell_its_completions() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let read =
            |path: &str| fs::read_to_string(folder.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let all = read("man/man1/mcptrace.1");
        assert!(all.contains(".TH mcptrace 1"), "{all}");
        assert!(all.contains("Exit status"), "{all}");
        for verb in VERBS.iter().map(|verb| (verb.define)()) {
            let page = folder.path().join(format!("man/man1/mcptrace-{}.1", verb.get_name()));
            assert_eq!(page.exists(), !verb.is_hide_set(), "{}", verb.get_name());
        }
        assert!(read("man/man1/mcptrace-run-file_opens.1").contains("failed\\-only"));
        for path in [
            "bash-completion/completions/mcptrace",
            "zsh/site-functions/_mcptrace",
            "fish/vendor_completions.d/mcptrace.fish",
        ] {
            let text = read(path);
            assert!(PROBES.iter().all(|probe| text.contains(probe.name)), "{path} lacks a probe");
            assert!(text.contains("failed-only"), "{path}");
            // Those for fish know flags and commands, and no values of arguments.
            assert!(path.starts_with("fish") || text.contains("claude-code"), "{path}");
            assert!(!text.contains("__gate"), "{path} offers what is hidden");
        }
    }
}
