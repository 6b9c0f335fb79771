//! How much memory a server holds.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::{cases::Case, client::Client};

/// The targets, in bytes.
pub(crate) const TARGET_BEFORE: u64 = 15 << 20;
pub(crate) const TARGET_AFTER: u64 = 30 << 20;

/// Resident memory of a server on stdio, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// After `initialize` and `tools/list`.
    pub(crate) before: u64,
    /// After the first native call.
    pub(crate) after_one: u64,
    /// After each probe has run twice.
    pub(crate) after_all: u64,
}

/// Measures a server.
pub(crate) fn measure(server: &Path, cases: &[&'static Case]) -> Result<Memory> {
    eprintln!("bench: memory");
    let state = tempfile::tempdir()?;
    let mut client = Client::start(server, state.path())?;
    let before = client.resident_bytes()?;
    run(&mut client, cases[0])?;
    let after_one = client.resident_bytes()?;
    cases.iter().chain(cases).try_for_each(|case| run(&mut client, case))?;
    Ok(Memory { before, after_one, after_all: client.resident_bytes()? })
}

fn run(client: &mut Client, case: &Case) -> Result<()> {
    let request = case.request(0.3)?;
    let mut arguments = json!({"probe": request.probe, "seconds": request.seconds, "options": request.options});
    if let Some(pid) = request.filter.pid {
        arguments["filter"] = json!({"pid": pid});
    }
    client.tool("run_probe", &arguments)?;
    Ok(())
}
