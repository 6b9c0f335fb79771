//! What a workload runs under.

use std::{any::Any, sync::Arc};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, programs::BtfTracePoint};
use mcptrace::{
    execution::Execution,
    executions::{Executions, Limits, ProbeRequest},
    kernel::{hook, loader::Kernel},
    probes::Entry,
};

use crate::{cases::Case, peer::Peer};

/// Programs that do nothing, as the catalogue's own check loads them.
const EMPTY: &[u8] = aya::include_bytes_aligned!("../../../../mcptrace/bpf/attach_types.o");

/// Who traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    /// Nobody.
    None,
    /// Programs that do nothing, on the hooks of the probe: what nobody can go below.
    Empty,
    /// The probe.
    Mcptrace,
    /// bpftrace with a script.
    Bpftrace,
    /// A program of libbpf-tools.
    Tool,
}

impl Variant {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 5] = [Self::None, Self::Empty, Self::Mcptrace, Self::Bpftrace, Self::Tool];

    /// What it is called for a case.
    pub(crate) fn name(self, case: &Case) -> String {
        match self {
            Self::None => "no tracing".to_owned(),
            Self::Empty => "empty programs".to_owned(),
            Self::Mcptrace => "mcptrace".to_owned(),
            Self::Bpftrace => "bpftrace".to_owned(),
            Self::Tool => case.tool_name(),
        }
    }

    /// Starts it; everything is attached when this returns, and until what it gives is dropped.
    pub(crate) fn start(self, case: &Case) -> Result<Running> {
        Ok(match self {
            Self::None => Running::Nothing,
            Self::Empty => Running::other(attach_empty(case.probe)?),
            Self::Mcptrace => Running::Probe(Box::new(start_probe(case, LONGEST_SECONDS)?)),
            Self::Bpftrace | Self::Tool => Running::other(Peer::start(&self.command(case)?.context("no such tool")?)?),
        })
    }

    /// Whether there is such a thing for a case.
    pub(crate) fn is_there(self, case: &Case) -> bool {
        match self {
            Self::None | Self::Mcptrace => true,
            Self::Empty => mcptrace::probes::find(case.probe).is_some_and(only_tracepoints),
            Self::Bpftrace | Self::Tool => self.command(case).is_ok_and(|words| words.is_some()),
        }
    }

    /// The words by which a tool is started; `None` if this is no tool or there is none for the case.
    pub(crate) fn command(self, case: &Case) -> Result<Option<Vec<String>>> {
        match self {
            Self::Bpftrace => case.bpftrace(),
            Self::Tool => case.tool(),
            Self::None | Self::Empty | Self::Mcptrace => Ok(None),
        }
    }
}

/// No measurement lasts so long.
const LONGEST_SECONDS: f64 = 60.0;

/// What is attached while a workload runs.
pub(crate) enum Running {
    Nothing,
    Probe(Box<Probe>),
    /// What detaches when it is dropped, and does not tell what it saw.
    Other {
        _guard: Box<dyn Any>,
    },
}

/// A probe with the collection that it stands in.
pub(crate) struct Probe {
    pub(crate) execution: Arc<Execution>,
    _executions: Executions,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.execution.stop_and_wait();
    }
}

impl Running {
    fn other(guard: impl Any) -> Self {
        Self::Other { _guard: Box::new(guard) }
    }

    /// How many events the probe has seen; `None` if this is not the probe.
    pub(crate) fn seen(&self) -> Option<u64> {
        match self {
            Self::Probe(probe) => probe.execution.loss().seen,
            Self::Nothing | Self::Other { .. } => None,
        }
    }
}

/// Starts the probe of a case, as the server would.
pub(crate) fn start_probe(case: &Case, seconds: f64) -> Result<Probe> {
    start(&case.request(seconds)?)
}

fn only_tracepoints(entry: &Entry) -> bool {
    entry.hooks.iter().all(|one| one.hook.tracepoint().is_some())
}

/// Starts a probe as the server would.
pub(crate) fn start(request: &ProbeRequest) -> Result<Probe> {
    let executions = Executions::new(Limits::default());
    let execution = executions.start_probe(request).with_context(|| request.probe.clone())?;
    Ok(Probe { execution, _executions: executions })
}

fn attach_empty(probe: &str) -> Result<Vec<Ebpf>> {
    let entry = mcptrace::probes::find(probe).context("no such probe")?;
    let hooks = hook::resolve(entry.hooks, &Kernel::get()?.layout).map_err(anyhow::Error::msg)?;
    hooks.iter().filter_map(|one| one.hook.tracepoint()).map(attach_empty_to).collect()
}

/// Each in an object of its own: a program is loaded for one tracepoint.
fn attach_empty_to(tracepoint: &str) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().btf(None).load(EMPTY)?;
    let program: &mut BtfTracePoint = ebpf.program_mut("empty_tp_btf").context("no empty_tp_btf")?.try_into()?;
    program.load(tracepoint, Kernel::get()?.btf())?;
    program.attach()?;
    Ok(ebpf)
}
