//! `cargo xtask conformance`: the official conformance suite against the server over HTTP, with the fixtures that the suite asks for.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use xtask::clients::Clients;
use xtask::workspace_root;

use crate::packages::{self, TO_BUILD, TO_RUN_CLIENTS};
use crate::process;

/// The versions of the protocol: the last with `initialize`, and the one without.
const VERSIONS: [&str; 2] = ["2025-11-25", "2026-07-28"];
/// A server that only this computer reaches, for a minute.
const TOKEN: &str = "conformance-0123456789abcdef0123456789";
/// What cannot pass, and why.
const BASELINE: &str = "tests/clients/conformance.yml";

/// Options of `cargo xtask conformance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
    /// Only this version of the protocol
    #[arg(long, value_parser = VERSIONS)]
    version: Option<String>,
    /// Only this scenario, with all that it says
    scenario: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let needs: Vec<_> = TO_BUILD.iter().chain(TO_RUN_CLIENTS).collect();
    packages::ensure_installed(&needs, &options.packages)?;
    let clients = Clients::install()?;
    let server = Server::start()?;
    let versions = VERSIONS.into_iter().filter(|version| options.version.as_ref().is_none_or(|only| only == version));
    let failed: Vec<_> = versions.filter(|version| !passes(&clients, &server, version, options)).collect();
    ensure!(failed.is_empty(), "not as it should be for {}: see above", failed.join(" and "));
    println!("the conformance suite has passed");
    Ok(())
}

/// Runs the suite for a version of the protocol. What is neither a pass nor in the baseline fails, and so does what is there and passes.
fn passes(clients: &Clients, server: &Server, version: &str, options: &Options) -> bool {
    println!("\n=== conformance {version}");
    let root = workspace_root();
    let mut suite = clients.conformance(TOKEN);
    suite.args(["server", "--url", &server.url, "--spec-version", version]);
    match &options.scenario {
        Some(scenario) => suite.args(["--verbose", "--scenario", scenario]),
        None => suite.args(["--suite", "all", "--expected-failures"]).arg(root.join(BASELINE)),
    };
    suite.arg("--output-dir").arg(root.join("target/conformance").join(version));
    match process::run(&mut suite) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("error: {error:#}");
            false
        }
    }
}

/// The server with the fixtures. It is killed when this is dropped.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Result<Self> {
        let (package, binary) = ("mcptrace-tests", "mcptrace-conformance");
        process::run(process::cargo().args([
            "build",
            "--package",
            package,
            "--bin",
            binary,
            "--features",
            "conformance",
        ]))?;
        let program = workspace_root().join("target/debug").join(binary);
        let mut command = Command::new(&program);
        command.args(["serve", "--http", "127.0.0.1:0"]).env("MCPTRACE_HTTP_TOKEN", TOKEN);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let url = lines
            .find_map(|line| url_in(&line.ok()?))
            .context("the server has ended before it said where it listens")?;
        // What it logs must be read, or it waits.
        thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, url })
    }
}

/// The URL in `mcptrace: serving MCP at http://…/mcp`.
fn url_in(line: &str) -> Option<String> {
    let url = line.split_once("serving MCP at ")?.1;
    Some(url.to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended by itself if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_server_listens_is_read() {
        assert_eq!(url_in("mcptrace: serving MCP at http://[::1]:7/mcp").as_deref(), Some("http://[::1]:7/mcp"));
        assert_eq!(url_in("request"), None);
    }
}
