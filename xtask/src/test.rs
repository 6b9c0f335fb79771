//! `cargo xtask test`: every check of the workspace, as a user and, where the kernel is traced, as root.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;
use serde::Deserialize;
use xtask::clients::Clients;
use xtask::workspace_root;

use crate::checks::{Checks, Counts};
use crate::kernels;
use crate::packages::{self, TO_BUILD, TO_RUN_CLIENTS, TO_TEST};
use crate::process::{self, cargo};

/// The package whose tests trace the kernel.
const ROOT_PACKAGE: &str = "mcptrace-tests";

/// The test program that drives the server with clients of others.
const CLIENTS: &str = "clients";

/// A test program that runs longer than this many seconds hangs.
const LIMIT_SECONDS: &str = "1800";

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// Leave out the tests that trace the kernel
    #[arg(long)]
    no_root: bool,
    /// Leave out the tests with clients of others, which are fetched from PyPI and npm the first time
    #[arg(long)]
    no_clients: bool,
    #[command(flatten)]
    kernels: kernels::KernelOptions,
    /// Run only tests whose name contains this, and neither rustfmt nor clippy
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let clients = if options.no_clients { &[] } else { TO_RUN_CLIENTS };
    let needs: Vec<_> = TO_BUILD.iter().chain(TO_TEST).chain(clients).collect();
    packages::ensure_installed(&needs, &options.packages)?;
    if options.kernels.any() {
        return kernels::run(&options.kernels, &options.packages, options.filter.as_deref());
    }
    if !options.no_root {
        packages::become_able("tests that trace the kernel need root (--no-root leaves them out)")?;
    }
    let mut checks = Checks::default();
    if options.filter.is_none() {
        checks.step("rustfmt", cargo().args(["fmt", "--all", "--check"]));
        checks.step(
            "clippy",
            cargo().args(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
        );
    }
    let filter = options.filter.as_slice();
    checks.tests("unit and integration tests", parallel_tests().args(filter));
    if !options.no_clients {
        // As the user who runs this; the tests find them there.
        checks.record("clients of others", || Clients::install().map(|_| Counts { passed: 1, ..Counts::default() }));
    }
    test_programs(&mut checks, options);
    checks.finish(options.filter.as_deref())
}

fn parallel_tests() -> Command {
    let mut cargo = cargo();
    cargo.args(["test", "--workspace", "--exclude", ROOT_PACKAGE, "--no-fail-fast"]);
    cargo
}

/// The tests of [`ROOT_PACKAGE`], which are built as the user who runs this.
fn test_programs(checks: &mut Checks, options: &Options) {
    let programs = match build_programs(&[]) {
        Ok(programs) => programs,
        Err(error) => return checks.record(ROOT_PACKAGE, || Err(error)),
    };
    for program in programs {
        if options.no_root && program.traces_kernel() {
            println!("xtask: --no-root leaves out {}", program.name);
            continue;
        }
        if options.no_clients && program.name == CLIENTS {
            println!("xtask: --no-clients leaves out {}", program.name);
            continue;
        }
        checks.tests(&program.name, program.command(options).args(&options.filter));
    }
}

/// A compiled test program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Program {
    /// Tests on the real kernel measure what all processes share, so they run one after the other.
    fn traces_kernel(&self) -> bool {
        self.name.starts_with("kernel")
    }

    fn command(&self, options: &Options) -> Command {
        let folder = workspace_root().join("tests");
        let mut command = if options.no_root { Command::new("env") } else { packages::as_root("env") };
        command.arg(format!("CARGO_MANIFEST_DIR={}", folder.display())).arg("RUST_BACKTRACE=1");
        command.args(["timeout", "--foreground", "--kill-after=10", LIMIT_SECONDS]).arg(&self.path);
        if self.traces_kernel() {
            command.arg("--test-threads=1");
        }
        command.current_dir(folder);
        command
    }
}

/// Builds the program itself, which these tests start, and test programs: those of some names, all if there are none.
pub(crate) fn build_programs(names: &[&str]) -> Result<Vec<Program>> {
    process::run(cargo().args(["build", "--package", "mcptrace"]))?;
    let mut build = cargo();
    build.args(["test", "--package", ROOT_PACKAGE, "--no-run", "--message-format=json-render-diagnostics"]);
    build.args(names.iter().flat_map(|name| ["--test", name]));
    let messages = process::output(build.stderr(Stdio::inherit()))?;
    Ok(messages.lines().filter_map(program_of_message).collect())
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    profile: Profile,
    target: Target,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// The test program that a line of `cargo --message-format=json` announces, if it does.
fn program_of_message(line: &str) -> Option<Program> {
    let message: Message = serde_json::from_str(line).ok()?;
    let path = message.executable.filter(|_| message.profile.test)?;
    Some(Program { name: message.target.name, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_run() {
        let message = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"kernel"}},"profile":{{"test":{test}}},"executable":"/x"}}"#
            )
        };
        let program = program_of_message(&message(true)).unwrap();
        assert!(program.traces_kernel());
        assert_eq!(program_of_message(&message(false)), None);
        assert_eq!(program_of_message(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
