//! `cargo xtask package`: the crates as they would be published, and a package for Debian, each tried out.

mod crates;
mod debian;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result};
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD};
use crate::process::{self, cargo};

/// Options of `cargo xtask package`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// Only the crates: their files, and whether they build from those alone
    #[arg(long, conflicts_with = "deb")]
    crates: bool,
    /// Only the package for Debian
    #[arg(long)]
    deb: bool,
    /// Pack the debug program, which builds sooner: to try out what is around it
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure_installed(&TO_BUILD.iter().collect::<Vec<_>>(), &options.packages)?;
    if !options.deb {
        crates::check()?;
    }
    if !options.crates {
        debian::build_and_try(options.debug)?;
    }
    Ok(())
}

/// What this writes that cargo does not.
fn folder() -> PathBuf {
    workspace_root().join("target/package")
}

/// The program, as users have it or as it builds sooner.
fn build(debug: bool) -> Result<PathBuf> {
    let (profile, folder) = if debug { ("dev", "debug") } else { ("release", "release") };
    let mut build = cargo();
    build.args(["build", "--profile", profile, "--locked", "--target-dir", "target", "--package", "mcptrace"]);
    process::run(&mut build)?;
    Ok(workspace_root().join("target").join(folder).join("mcptrace"))
}

/// A program of cargo's, from `PATH` or from target/tools, where it is built at first.
fn tool(name: &str) -> Result<PathBuf> {
    let tools = workspace_root().join("target/tools");
    let built = tools.join("bin").join(name);
    if let Some(found) = process::all_in_path(name).into_iter().next() {
        return Ok(found);
    }
    if !built.is_file() {
        eprintln!("xtask: building {name} into {} (minutes, once)", tools.display());
        let mut install = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        install.args(["install", "--locked", name, "--root"]).arg(&tools);
        process::run(&mut install).with_context(|| format!("{name} does not build"))?;
    }
    Ok(built)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
