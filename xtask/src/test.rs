//! `cargo xtask test`: every check of the workspace, as a user and, where the kernel is traced, as root.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD, TO_TEST};
use crate::process::{self, cargo};

/// The package whose tests trace the kernel.
const ROOT_PACKAGE: &str = "mcptrace-tests";

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
    /// Run only tests whose name contains this, and neither rustfmt nor clippy
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let needs: Vec<_> = TO_BUILD.iter().chain(TO_TEST).collect();
    packages::ensure_installed(&needs, &options.packages)?;
    if !options.no_root {
        packages::become_able("tests that trace the kernel need root (--no-root leaves them out)")?;
    }
    let mut checks = Checks::default();
    if options.filter.is_none() {
        checks.step("rustfmt", cargo().args(["fmt", "--all", "--check"]));
        checks.step("clippy", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]));
    }
    let filter = options.filter.as_slice();
    checks.tests("unit and integration tests", parallel_tests().args(filter));
    checks.test_programs(options);
    checks.finish(options.filter.as_deref())
}

fn parallel_tests() -> Command {
    let mut cargo = cargo();
    cargo.args(["test", "--workspace", "--exclude", ROOT_PACKAGE, "--no-fail-fast"]);
    cargo
}

/// What was checked so far.
#[derive(Debug, Default)]
struct Checks(Vec<Check>);

#[derive(Debug)]
struct Check {
    name: String,
    counts: Counts,
    took: Duration,
}

/// Tests by outcome. A step that is not made of tests is one that passed or failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Checks {
    /// A command that passes or fails as a whole.
    fn step(&mut self, name: &str, command: &mut Command) {
        self.record(name, || {
            process::run(command)?;
            Ok(Counts { passed: 1, ..Counts::default() })
        });
    }

    /// A command that runs tests of libtest.
    fn tests(&mut self, name: &str, command: &mut Command) {
        self.record(name, || run_tests(command));
    }

    /// The tests of [`ROOT_PACKAGE`], which are built as the user who runs this.
    fn test_programs(&mut self, options: &Options) {
        let programs = match build_programs() {
            Ok(programs) => programs,
            Err(error) => return self.record(ROOT_PACKAGE, || Err(error)),
        };
        for program in programs {
            if options.no_root && program.traces_kernel() {
                println!("xtask: --no-root leaves out {}", program.name);
                continue;
            }
            self.tests(&program.name, program.command(options).args(&options.filter));
        }
    }

    fn record(&mut self, name: &str, check: impl FnOnce() -> Result<Counts>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let counts = check().unwrap_or_else(|error| {
            eprintln!("error: {name}: {error:#}");
            Counts { failed: 1, ..Counts::default() }
        });
        self.0.push(Check { name: name.to_owned(), counts, took: start.elapsed() });
    }

    /// Prints the summary, whose last line is for machines.
    fn finish(self, filter: Option<&str>) -> Result<()> {
        println!("\n=== summary");
        for check in &self.0 {
            println!("{check}");
        }
        let total = self.0.iter().fold(Counts::default(), |sum, check| sum.plus(check.counts));
        println!("{} passed, {} failed", total.passed, total.failed);
        ensure!(total.failed == 0, "not everything passed");
        ensure!(total.passed > 0, "no test has a name with {:?} in it", filter.unwrap_or_default());
        Ok(())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, counts: Counts { passed, failed, ignored }, took } = self;
        let verdict = if *failed == 0 { "ok" } else { "FAILED" };
        let seconds = took.as_secs_f64();
        write!(
            formatter,
            "{verdict:7} {name:28} {passed:5} passed {failed:4} failed {ignored:4} ignored {seconds:7.1} s"
        )
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |name: &str| {
            let part = counts.split(';').find_map(|part| part.trim().strip_suffix(name))?;
            part.trim().parse().ok()
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }
}

/// Runs tests, shows what they print, and adds up their results. A program that ends badly without saying which test failed
/// counts as one that failed.
fn run_tests(command: &mut Command) -> Result<Counts> {
    let name = process::name(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let mut total = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        total = total.plus(Counts::of_line(&line).unwrap_or_default());
    }
    let status = child.wait()?;
    if !status.success() && total.failed == 0 {
        eprintln!("error: {name}: {status}");
        total.failed = 1;
    }
    Ok(total)
}

/// A compiled test program.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    path: PathBuf,
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

/// Builds the program itself, which these tests start, and their test programs.
fn build_programs() -> Result<Vec<Program>> {
    process::run(cargo().args(["build", "--package", "mcptrace"]))?;
    let mut build = cargo();
    build.args(["test", "--package", ROOT_PACKAGE, "--no-run", "--message-format=json-render-diagnostics"]);
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
    fn results_are_read_from_what_libtest_prints() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.11s";
        assert_eq!(Counts::of_line(line), Some(Counts { passed: 3, failed: 1, ignored: 2 }));
        assert_eq!(Counts::of_line("test a ... ok"), None);
    }

    #[test]
    fn a_program_that_crashes_counts_as_failed() {
        let counts = run_tests(
            Command::new("sh").args(["-c", "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 101"]),
        );
        assert_eq!(counts.unwrap(), Counts { passed: 2, failed: 1, ignored: 0 });
        assert!(run_tests(&mut Command::new("no-such-program")).is_err());
    }

    #[test]
    fn a_failure_or_nothing_at_all_is_an_error() {
        let finish = |passed, failed| {
            let counts = Counts { passed, failed, ignored: 0 };
            Checks(vec![Check { name: "x".into(), counts, took: Duration::ZERO }]).finish(Some("filter"))
        };
        assert!(finish(1, 0).is_ok());
        assert!(finish(1, 1).is_err());
        assert!(finish(0, 0).unwrap_err().to_string().contains("filter"));
    }

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
