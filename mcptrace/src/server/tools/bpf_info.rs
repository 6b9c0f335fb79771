//! `bpf_info`: what this kernel, this process and this bpftrace can do.

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use super::{Effect, Outcome, Row};
use crate::{
    executions::supported,
    kernel::loader::Kernel,
    probes::PROBES,
    server::call::{Call, Reply},
};

pub(super) const ROW: Row = Row {
    name: "bpf_info",
    title: "What can be traced here",
    description: "Tells what this kernel, this process and its bpftrace can do, and for each thing missing how to get it. Use it when a \
        probe or script is refused, or before promising what can be traced. Not needed before run_probe.",
    input: || schema_for!(Arguments),
    output: || schema_for!(Info),
    effect: Effect::Settles,
    call: |call| Box::pin(run(call)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {}

#[derive(Serialize, JsonSchema)]
struct Info {
    kernel: String,
    arch: &'static str,
    probes: Vec<Ability>,
}

#[derive(Serialize, JsonSchema)]
struct Ability {
    name: &'static str,
    available: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

async fn run(mut call: Call) -> Outcome {
    let Arguments {} = call.arguments()?;
    let info = call.blocking(|_| info()).await?;
    Reply::with_text(format!("Linux {} on {}", info.kernel, info.arch), &info)
}

fn info() -> Info {
    let ability = |entry: &crate::probes::Entry| {
        let reason = match Kernel::get() {
            Ok(kernel) => supported(entry, kernel).err().map(|refusal| refusal.to_string()).unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        Ability { name: entry.name, available: reason.is_empty(), reason }
    };
    Info {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        arch: std::env::consts::ARCH,
        probes: PROBES.iter().map(ability).collect(),
    }
}
