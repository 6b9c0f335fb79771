//! System calls, for a part of the time: the tracing of them costs every call of the machine its fast path.

use std::io;

use aya::{Ebpf, maps::Array};
use mcptrace_wire::{Histogram, START_SLOTS, SYSCALLS, SyscallCount};

use super::{
    kept::{Samples, distribution},
    mapped::Mapped,
};
use crate::{
    distribution::Distribution,
    kernel::{
        arch::syscall_name,
        attached::{self, Plan, Transport, possible_cpus},
        hook::Attach,
        loader::{AttachedProgram, Kernel, LoadError, chain},
    },
    probes::{syscall_counts::syscall_globals, syscall_latency::forks},
};

const OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/recorder_syscalls.o");
const NAME: &str = "recorder_syscalls";
const ATTACH: &[Attach] = &[Attach::tracepoint("enter", "sys_enter"), Attach::tracepoint("exit", "sys_exit")];
/// Copies of the histograms, 2.5 MB of kernel memory each: enough that CPUs seldom write the same line at once.
const MOST_COPIES: u32 = 4;

/// The programs and their maps.
pub(super) struct Syscalls {
    kernel: &'static Kernel,
    programs: Vec<AttachedProgram>,
    counts: Mapped<SyscallCount>,
    starts: Mapped<u64>,
    ebpf: Ebpf,
}

/// The plan of the object, for those who check whether this kernel takes it.
pub(super) fn plan() -> Plan {
    let copies = copies();
    let mut globals = syscall_globals();
    globals.push(("FORKS", forks()));
    globals.push(("COPIES", copies.to_ne_bytes().to_vec()));
    Plan {
        probe: NAME,
        object: OBJECT,
        attach: ATTACH.to_vec(),
        counts: "exit",
        globals,
        map_entries: vec![("COUNTS", copies * SYSCALLS), ("TIMES", copies * SYSCALLS)],
        event_bytes: 0,
        transport: Transport::Ring,
        follow: None,
        places: false,
        values: Vec::new(),
    }
}

fn copies() -> u32 {
    possible_cpus().next_power_of_two().min(MOST_COPIES)
}

impl Syscalls {
    /// Loads the object; nothing is attached yet.
    pub(super) fn load(kernel: &'static Kernel) -> Result<Self, LoadError> {
        let failed = |reason: String| LoadError::Object { probe: NAME, reason };
        let image = attached::image(kernel, &plan())?;
        let ebpf = kernel.load(image.bytes()).map_err(|error| failed(chain(&error)))?;
        let mapping = |error: io::Error| failed(format!("cannot map its arrays: {error}"));
        Ok(Self {
            kernel,
            programs: Vec::new(),
            counts: Mapped::new(&ebpf, "COUNTS", (copies() * SYSCALLS) as usize).map_err(mapping)?,
            starts: Mapped::new(&ebpf, "STARTS", START_SLOTS as usize).map_err(mapping)?,
            ebpf,
        })
    }

    /// The programs, attached or not.
    pub(super) fn programs(&self) -> &[AttachedProgram] {
        &self.programs
    }

    /// Begins to look.
    pub(super) fn attach(&mut self) -> Result<(), LoadError> {
        // What threads entered while nobody looked is not known.
        self.starts.clear();
        self.kernel.attach_loaded(&mut self.ebpf, NAME, ATTACH, &mut self.programs)
    }

    /// Stops looking, at returns first: so that none is seen of which the entry was not.
    pub(super) fn detach(&mut self) {
        for program in self.programs.iter_mut().rev() {
            program.detach();
        }
    }

    /// Reads and clears what was seen.
    pub(super) fn read(&mut self, samples: &mut Samples) {
        let Some(Ok(mut times)) = self.ebpf.map_mut("TIMES").map(Array::<_, Histogram>::try_from) else { return };
        let copies = self.counts.len() / SYSCALLS as usize;
        for call in 0..SYSCALLS as usize {
            let mut sum = SyscallCount::default();
            let mut time = Distribution::default();
            for slot in (0..copies).map(|copy| copy * SYSCALLS as usize + call) {
                let count = self.counts.with_cleared(slot, |count| *count);
                if count.calls == 0 {
                    continue;
                }
                sum.calls += count.calls;
                sum.errors += count.errors;
                if let Ok(kept) = times.get(&(slot as u32), 0) {
                    time.merge(&distribution(&kept));
                    let _ = times.set(slot as u32, Histogram::EMPTY, 0);
                }
            }
            if sum.calls > 0 {
                let name = syscall_name(call as u32);
                samples.sum("syscalls", [name.clone()], sum.calls);
                samples.sum("syscall_errors", [name.clone()], sum.errors);
                samples.distribution("syscall_ns", [name], time);
            }
        }
    }
}
