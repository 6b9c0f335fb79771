//! Subcommands of cargo that others wrote.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use xtask::workspace_root;

use crate::process;

/// A subcommand of cargo, and the version with which what stands in docs/ was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// The name of its program.
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// A command of it: the one in `PATH` of whatever version, else one that is built into `target/tools`.
    pub(crate) fn command(self) -> Result<Command> {
        let Self { name, version } = self;
        let tools = workspace_root().join("target/tools");
        let mut candidates = process::all_in_path(name);
        candidates.push(tools.join("bin").join(name));
        let path = match candidates.into_iter().find(|path| path.is_file()) {
            Some(path) => path,
            None => build(name, version, tools)?,
        };
        let mut command = Command::new(path);
        command.current_dir(workspace_root()).arg(name.trim_start_matches("cargo-"));
        Ok(command)
    }
}

fn build(name: &str, version: &str, tools: PathBuf) -> Result<PathBuf> {
    eprintln!("xtask: building {name} {version} into {} (some minutes, once)", tools.display());
    let mut install = process::cargo();
    process::run(install.args(["install", name, "--version", version, "--locked", "--root"]).arg(&tools))?;
    Ok(tools.join("bin").join(name))
}
