//! `cargo xtask soak`: mixed use at full tilt for a long time, and whether anything grows.

use std::path::PathBuf;

use anyhow::Result;
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD, TO_TEST};
use crate::process::{self, cargo};

/// Options of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// How long, in minutes
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=10_080))]
    minutes: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let needs: Vec<_> = TO_BUILD.iter().chain(TO_TEST).collect();
    packages::ensure_installed(&needs, &options.packages)?;
    let programs = build()?;
    packages::become_able("attaching programs needs root")?;
    let mut soak = packages::as_root(&programs.join("soak").to_string_lossy());
    soak.arg("--server").arg(programs.join("mcptrace")).args(["--minutes", &options.minutes.to_string()]);
    process::run(&mut soak)
}

/// The folder of the release programs, which are built as the user who runs this.
fn build() -> Result<PathBuf> {
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--target-dir",
        "target",
        "--package",
        "mcptrace",
        "--package",
        "mcptrace-tests",
    ]);
    process::run(build.args(["--bin", "mcptrace", "--bin", "soak"]))?;
    Ok(workspace_root().join("target/release"))
}
