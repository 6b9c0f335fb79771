//! `cargo xtask test --kernel`: the tests that trace, on other kernels.

mod catalogue;
mod log;
mod plan;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use xtask::workspace_root;

use crate::checks::Checks;
use crate::packages::{self, TO_EMULATE};
use crate::process;
use crate::test::{self, Program};
use crate::vm::{self, Ended, Job, Kernel};

use catalogue::Column;
use log::Log;
use plan::Plan;

/// A guest that takes longer than this many seconds hangs. All tests of a kernel take some minutes on an idle machine.
const LIMIT_SECONDS: u32 = 3600;

/// A test program that runs longer than this many seconds hangs.
const PROGRAM_SECONDS: u32 = 1200;

/// Other kernels than the one that runs.
#[derive(Debug, clap::Args)]
pub(crate) struct KernelOptions {
    /// Run the tests that trace on this kernel of Debian's, in an emulated machine: the beginning of a release, such as 6.12. May be given
    /// several times
    #[arg(long = "kernel", value_name = "VERSION")]
    versions: Vec<String>,
    /// Run only the test programs that tests/kernels.toml calls quick
    #[arg(long, requires = "versions")]
    quick: bool,
    /// Put what probes do on these kernels into the table of docs/kernels.md
    #[arg(long, requires = "versions", conflicts_with = "filter")]
    write: bool,
}

impl KernelOptions {
    pub(crate) fn any(&self) -> bool {
        !self.versions.is_empty()
    }
}

pub(crate) fn run(options: &KernelOptions, packages: &packages::InstallOptions, filter: Option<&str>) -> Result<()> {
    packages::ensure_installed(&TO_EMULATE.iter().collect::<Vec<_>>(), packages)?;
    let kernels = options.versions.iter().map(|version| Kernel::find(version)).collect::<Result<Vec<_>>>()?;
    let suite = Suite::read(options.quick, filter)?;
    let mut checks = Checks::default();
    let mut columns = Vec::new();
    for (version, kernel) in options.versions.iter().zip(&kernels) {
        let log = suite.run(version, kernel)?;
        log.checks.into_iter().for_each(|check| checks.add(check));
        columns.push(Column { version: version.clone(), release: kernel.release.clone(), probes: log.probes });
    }
    println!("\n=== left out: what cannot hold in an emulated machine (tests/kernels.toml)");
    for left_out in suite.plan.left_out_on_any(&options.versions) {
        println!("{left_out}");
    }
    checks.finish(filter)?;
    if options.write {
        catalogue::write(&workspace_root().join("docs/kernels.md"), &columns)?;
    }
    Ok(())
}

/// What runs in each guest.
struct Suite {
    plan: Plan,
    programs: Vec<Listed>,
}

/// A test program and the tests in it that were asked for.
struct Listed {
    program: Program,
    tests: Vec<String>,
}

impl Suite {
    fn read(quick: bool, filter: Option<&str>) -> Result<Self> {
        let plan = Plan::read(&workspace_root().join("tests/kernels.toml"))?;
        let names: Vec<_> = plan.programs(quick).iter().map(String::as_str).collect();
        let mut built = test::build_programs(&names)?;
        let mut programs = Vec::new();
        for name in names {
            let at = built.iter().position(|program| program.name == name);
            let program = built.swap_remove(at.with_context(|| format!("cargo built no test program {name}"))?);
            let tests = program.tests()?;
            plan.ensure_known(name, &tests)?;
            let wanted = |test: &String| filter.is_none_or(|filter| test.contains(filter) || name.contains(filter));
            programs.push(Listed { program, tests: tests.into_iter().filter(wanted).collect() });
        }
        Ok(Self { plan, programs })
    }

    fn run(&self, version: &str, kernel: &Kernel) -> Result<Log> {
        println!("\n=== Linux {}", kernel.release);
        let runs: Vec<_> = self.programs.iter().filter_map(|listed| self.run_of(listed, version)).collect();
        let scratch = workspace_root().join("target/tmp");
        fs::create_dir_all(&scratch)?;
        let script = script(&runs, &scratch)?;
        let job = Job { script: &script, scratch: &scratch, seconds: LIMIT_SECONDS };
        let mut log = Log::new(version, runs.iter().map(|run| run.name));
        let ended = vm::run(kernel, &job, |line| {
            println!("{line}");
            log.take(line);
        })?;
        if let Ended::Broke(why) = ended {
            eprintln!("error: {}: {why}", kernel.release);
        }
        log.end();
        Ok(log)
    }

    /// What is left of a program once the tests that cannot hold on this kernel are gone; `None` when nothing is.
    fn run_of<'a>(&self, listed: &'a Listed, version: &str) -> Option<Run<'a>> {
        let name = listed.program.name.as_str();
        let holds = |test: &&String| !self.plan.left_out_on(version).any(|left| left.is(name, test));
        let tests: Vec<_> = listed.tests.iter().filter(holds).map(String::as_str).collect();
        (!tests.is_empty()).then_some(Run { name, path: &listed.program.path, tests })
    }
}

/// A test program and the tests of it that run in a guest.
struct Run<'a> {
    name: &'a str,
    path: &'a Path,
    tests: Vec<&'a str>,
}

/// For the guest's shell: each program, with a line before and one after it that [`Log`] reads.
fn script(runs: &[Run<'_>], scratch: &Path) -> Result<String> {
    let folder = workspace_root().join("tests");
    let folder = vm::quoted(folder.to_str().context("the workspace's path is not UTF-8")?)?;
    let scratch = vm::quoted(scratch.to_str().context("the workspace's path is not UTF-8")?)?;
    // Temporary files are on the disk, because there is nothing to see of those in memory.
    let mut script =
        format!("cd {folder} || exit\nexport CARGO_MANIFEST_DIR={folder} TMPDIR={scratch} RUST_BACKTRACE=1\n");
    for Run { name, path, tests } in runs {
        let path = vm::quoted(path.to_str().context("a program's path is not UTF-8")?)?;
        // What the catalogue prints is read.
        let capture = if *name == catalogue::PROGRAM { "--nocapture" } else { "" };
        let tests = tests.join(" ");
        let _ = writeln!(script, "echo '{}{name}'", log::BEGINS);
        let _ = writeln!(
            script,
            "timeout --foreground --kill-after=10 {PROGRAM_SECONDS} {path} --test-threads=1 {capture} --exact {tests}"
        );
        let _ = writeln!(script, "echo \"{}$?\"", log::ENDS);
    }
    Ok(script)
}

impl Program {
    /// The names of its tests.
    fn tests(&self) -> Result<Vec<String>> {
        let folder = workspace_root().join("tests");
        let mut list = std::process::Command::new(&self.path);
        let listed = process::output(list.args(["--list", "--format=terse"]).current_dir(folder))?;
        let tests: Vec<_> = listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        ensure!(!tests.is_empty(), "{} lists no test", self.path.display());
        Ok(tests)
    }
}
