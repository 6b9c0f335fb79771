//! The recorder's programs in the kernel, group by group, and what they have added up.

use std::{collections::BTreeMap, io};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, RingBuf},
};
use mcptrace_wire::{
    BlockStats, Control, CpuBank, CpuNow, DeviceKey, IRQS, PROCESS_SLOTS, ProcessEvent, ProcessSlot, SharedBank,
    SpillKey, Tally,
};

use super::{
    kept::{Kept, ProcessTime},
    mapped::{Mapped, store},
    metrics,
    running::Running,
};
use crate::{
    kernel::{
        attached::{self, Plan, Transport, possible_cpus},
        hook::Attach,
        loader::{AttachedProgram, Kernel, LoadError, chain},
    },
    probes::parse,
};

/// Bytes of the buffer for events: 3,000 of them between two reads.
const EVENT_BYTES: u32 = 1 << 18;

const OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/recorder.o");

/// Programs that are attached and shed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Its name, as in [`metrics::GROUPS`].
    pub(super) name: &'static str,
    attach: &'static [Attach],
    needs: &'static [&'static str],
}

/// All groups that have programs in this object. `runq` needs the program of `cpu` as well.
pub(super) const GROUPS: &[Group] = &[
    Group {
        name: metrics::CPU,
        attach: &[Attach::tracepoint("switch", "sched_switch")],
        needs: &["TASK_PID", "TASK_TGID", "TASK_COMM", "TASK_STATE", "TASK_LEADER", "TASK_RUNTIME"],
    },
    Group {
        name: metrics::RUNQ,
        attach: &[Attach::tracepoint("wakeup", "sched_wakeup"), Attach::tracepoint("wakeup_new", "sched_wakeup_new")],
        needs: &["TASK_PID"],
    },
    Group {
        name: metrics::BLOCK,
        attach: &[Attach::tracepoint("issued", "block_rq_issue"), Attach::tracepoint("completed", "block_rq_complete")],
        needs: &[
            "REQUEST_START",
            "REQUEST_FLAGS",
            "REQUEST_BYTES",
            "REQUEST_QUEUE",
            "QUEUE_DISK",
            "DISK_MAJOR",
            "DISK_MINOR",
            "REQUEST_ARGUMENT",
        ],
    },
    Group {
        name: metrics::TCP,
        attach: &[
            Attach::tracepoint("tcp_state", "inet_sock_set_state"),
            Attach::tracepoint("retransmitted", "tcp_retransmit_skb"),
            Attach::tracepoint("answered_again", "tcp_retransmit_synack"),
            Attach::tracepoint("reset_sent", "tcp_send_reset"),
            Attach::tracepoint("reset_received", "tcp_receive_reset"),
        ],
        needs: &["SK_PROTOCOL", "SK_ERROR"],
    },
    Group {
        name: metrics::PROCESSES,
        attach: &[
            Attach::tracepoint("forked", "sched_process_fork"),
            Attach::tracepoint("executed", "sched_process_exec"),
            Attach::tracepoint("ended", "sched_process_exit"),
        ],
        needs: &["TASK_PID", "TASK_TGID", "TASK_SIGNAL", "TASK_LEADER", "SIGNAL_FLAGS", "SIGNAL_EXIT_CODE"],
    },
    Group {
        name: metrics::MEMORY,
        attach: &[
            Attach::tracepoint("direct_begin", "mm_vmscan_direct_reclaim_begin"),
            Attach::tracepoint("direct_end", "mm_vmscan_direct_reclaim_end"),
            Attach::tracepoint("cgroup_begin", "mm_vmscan_memcg_reclaim_begin").optional(),
            Attach::tracepoint("cgroup_end", "mm_vmscan_memcg_reclaim_end").optional(),
            Attach::tracepoint("compaction_begin", "mm_compaction_begin").optional(),
            Attach::tracepoint("compaction_end", "mm_compaction_end").optional(),
            Attach::tracepoint("victim", "mark_victim").optional(),
        ],
        needs: &[],
    },
    Group {
        name: metrics::INTERRUPTS,
        attach: &[
            Attach::tracepoint("hard_entry", "irq_handler_entry"),
            Attach::tracepoint("hard_exit", "irq_handler_exit"),
            Attach::tracepoint("soft_entry", "softirq_entry"),
            Attach::tracepoint("soft_exit", "softirq_exit"),
        ],
        needs: &[],
    },
    Group {
        name: metrics::LOCKS,
        attach: &[
            Attach::tracepoint("lock_wanted", "contention_begin"),
            Attach::tracepoint("lock_taken", "contention_end"),
        ],
        needs: &[],
    },
];

/// A group's row.
fn group(name: &str) -> Option<&'static Group> {
    GROUPS.iter().find(|group| group.name == name)
}

/// The group of a program.
pub(super) fn group_of(program: &str) -> &'static str {
    let has = |group: &&Group| group.attach.iter().any(|attach| attach.program == program);
    GROUPS.iter().find(has).map_or(metrics::SYSCALLS, |group| group.name)
}

/// The plan of the object, for those who check whether this kernel takes it.
pub(super) fn plan() -> Plan {
    let cpus = possible_cpus();
    Plan {
        probe: "recorder",
        object: OBJECT,
        attach: GROUPS.iter().flat_map(|group| group.attach.iter().cloned()).collect(),
        counts: "switch",
        globals: Vec::new(),
        map_entries: vec![("CPUS", cpus), ("BANKS", cpus * 2), ("PROCESSES", cpus * 2 * PROCESS_SLOTS)],
        event_bytes: EVENT_BYTES,
        transport: Transport::Ring,
        follow: None,
        places: false,
        values: Vec::new(),
    }
}

/// The programs and their maps.
pub(super) struct Programs {
    kernel: &'static Kernel,
    attached: Vec<AttachedProgram>,
    on: BTreeMap<&'static str, bool>,
    bank: usize,
    control: Mapped<Control>,
    cpus: Mapped<CpuNow>,
    running: Running,
    banks: Mapped<CpuBank>,
    processes: Mapped<ProcessSlot>,
    shared: Mapped<SharedBank>,
    hard: Mapped<Tally>,
    starts: Mapped<u64>,
    events: RingBuf<MapData>,
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the object; nothing is attached yet.
    pub(super) fn load(kernel: &'static Kernel) -> Result<Self, LoadError> {
        let failed = |reason: String| LoadError::Object { probe: "recorder", reason };
        let plan = plan();
        let image = attached::image(kernel, &plan)?;
        let mut ebpf = kernel.load(image.bytes()).map_err(|error| failed(chain(&error)))?;
        let events = ebpf.take_map("EVENTS").ok_or_else(|| failed("no map EVENTS".to_owned()))?;
        let events = RingBuf::try_from(events).map_err(|error| failed(chain(&error)))?;
        let cpus = possible_cpus() as usize;
        let mapping = |error: io::Error| failed(format!("cannot map its arrays: {error}"));
        Ok(Self {
            kernel,
            attached: Vec::new(),
            on: BTreeMap::new(),
            bank: 0,
            control: Mapped::new(&ebpf, "CONTROL", 1).map_err(mapping)?,
            cpus: Mapped::new(&ebpf, "CPUS", cpus).map_err(mapping)?,
            banks: Mapped::new(&ebpf, "BANKS", cpus * 2).map_err(mapping)?,
            processes: Mapped::new(&ebpf, "PROCESSES", cpus * 2 * PROCESS_SLOTS as usize).map_err(mapping)?,
            shared: Mapped::new(&ebpf, "SHARED", 2).map_err(mapping)?,
            hard: Mapped::new(&ebpf, "HARD", 2 * IRQS as usize).map_err(mapping)?,
            starts: Mapped::new(&ebpf, "STARTS", mcptrace_wire::START_SLOTS as usize).map_err(mapping)?,
            running: Running::default(),
            events,
            ebpf,
        })
    }

    /// The attached programs.
    pub(super) fn attached(&self) -> &[AttachedProgram] {
        &self.attached
    }

    /// Whether a group is attached.
    pub(super) fn is_on(&self, group: &str) -> bool {
        self.on.get(group).copied().unwrap_or(false)
    }

    /// Attaches a group. An error says why this kernel cannot.
    pub(super) fn attach(&mut self, name: &'static str) -> Result<(), String> {
        let Some(group) = group(name) else { return Ok(()) };
        let layout = &self.kernel.layout;
        if let Some(reason) = group.needs.iter().find_map(|need| layout.global(need).err()) {
            return Err(reason);
        }
        if name == metrics::RUNQ {
            // What threads have waited since before says nothing now.
            self.starts.clear();
        }
        if name == metrics::CPU {
            self.cpus.clear();
            self.running.clear();
        }
        let outcome = self.kernel.attach_loaded(&mut self.ebpf, "recorder", group.attach, &mut self.attached);
        if let Err(error) = outcome {
            self.detach(name);
            return Err(error.to_string());
        }
        self.on.insert(name, true);
        self.tell_runq();
        Ok(())
    }

    /// Detaches a group; what it has added up is in the next reading.
    pub(super) fn detach(&mut self, name: &'static str) {
        for program in self.attached.iter_mut().filter(|program| group_of(program.name) == name) {
            program.detach();
        }
        self.on.insert(name, false);
        self.tell_runq();
    }

    fn tell_runq(&self) {
        let wanted = self.is_on(metrics::RUNQ) && self.is_on(metrics::CPU);
        // SAFETY: a word of the value.
        store(unsafe { self.control.word(0, |control| &raw mut (*control).runq) }, u64::from(wanted));
    }

    /// Turns the banks over: from now on the kernel writes the other one. To be followed by [`Self::read`], a moment later.
    pub(super) fn turn(&mut self) {
        self.bank ^= 1;
        // SAFETY: a word of the value.
        store(unsafe { self.control.word(0, |control| &raw mut (*control).epoch) }, self.bank as u64);
    }

    /// Reads and clears what the kernel wrote before the last turn.
    pub(super) fn read(&mut self) -> Kept {
        let old = self.bank ^ 1;
        let mut kept = Kept::default();
        for cpu in 0..self.cpus.len() {
            self.banks.with_cleared(cpu * 2 + old, |bank| kept.add_cpu(bank));
            self.read_processes(cpu * 2 + old, &mut kept);
        }
        self.read_spilled(old as u32, &mut kept);
        if self.is_on(metrics::CPU) {
            self.read_running(&mut kept);
        }
        self.shared.with_cleared(old, |bank| kept.set_shared(bank));
        self.read_hard(old, &mut kept);
        self.read_devices(old as u32, &mut kept);
        kept
    }

    fn read_processes(&mut self, bank: usize, kept: &mut Kept) {
        let first = bank * PROCESS_SLOTS as usize;
        for slot in first..first + PROCESS_SLOTS as usize {
            // Most are free; writing those would touch memory for nothing.
            // SAFETY: within the mapping; the kernel does not write this bank at present.
            if unsafe { (*self.processes.pointer(slot)).tgid } != 0 {
                self.processes.with_cleared(slot, |slot| kept.add_process(slot));
            }
        }
    }

    /// Adds the time of what is running at this moment.
    fn read_running(&mut self, kept: &mut Kept) {
        let cpus = (0..self.cpus.len()).map(|cpu| {
            // SAFETY: a word of the value.
            let word = unsafe { self.cpus.word(cpu, |cpu| &raw mut (*cpu).running) };
            (word.load(std::sync::atomic::Ordering::SeqCst), monotonic_ns())
        });
        self.running.settle(cpus, kept);
    }

    fn read_spilled(&mut self, bank: u32, kept: &mut Kept) {
        let Some(Ok(mut spilled)) = self.ebpf.map_mut("SPILLED").map(HashMap::<_, SpillKey, ProcessSlot>::try_from)
        else {
            return;
        };
        let old: Vec<_> = spilled.iter().flatten().filter(|(key, _)| key.bank == bank).collect();
        for (key, slot) in old {
            kept.add_process(&slot);
            let _ = spilled.remove(&key);
        }
    }

    fn read_hard(&mut self, bank: usize, kept: &mut Kept) {
        for irq in 0..IRQS as usize {
            let index = bank * IRQS as usize + irq;
            // SAFETY: within the mapping; the kernel does not write this bank at present.
            if unsafe { (*self.hard.pointer(index)).count } != 0 {
                self.hard.with_cleared(index, |tally| kept.hard.insert(irq as u32, *tally));
            }
        }
    }

    fn read_devices(&mut self, bank: u32, kept: &mut Kept) {
        let Some(Ok(mut devices)) = self.ebpf.map_mut("DEVICES").map(HashMap::<_, DeviceKey, BlockStats>::try_from)
        else {
            return;
        };
        let old: Vec<_> = devices.keys().flatten().filter(|key| key.bank == bank).collect();
        for key in old {
            if let Ok(stats) = devices.get(&key, 0) {
                kept.devices.push((key, Box::new(stats)));
            }
            let _ = devices.remove(&key);
        }
    }

    /// Takes the events that are there.
    pub(super) fn events(&mut self) -> Vec<ProcessEvent> {
        let mut events = Vec::new();
        while let Some(record) = self.events.next() {
            events.extend(parse::<ProcessEvent>(&record).map(|(event, _)| event));
        }
        events
    }
}

/// `CLOCK_MONOTONIC`, which kernel programs use.
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Time of a process of which only the id is known: it was running all the time.
pub(super) fn named(time: &mut ProcessTime, pid: u32) {
    if time.comm.is_empty() {
        let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        time.comm = crate::text::untrusted(comm.strip_suffix(b"\n").unwrap_or(&comm), 64);
    }
    if time.cgroup_path.is_none() {
        let path = crate::kernel::cgroups::path(time.cgroup);
        time.cgroup_path = path.or_else(|| version_2_group(pid));
    }
}

/// The line of the version 2 hierarchy has no names of controllers (cgroups(7)).
fn version_2_group(pid: u32) -> Option<String> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}
