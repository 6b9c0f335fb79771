//! Contention on locks of the kernel.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{LockKey, StackKey, StackWeight, Waits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, WithStacks, plan_of,
    stacks::{self, MOST_STACKS, Unit},
};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
        stacks::{Named, NamedStack, Stacks},
    },
    report::{Field, Report, Row, Table},
};

/// The probe.
#[derive(Debug)]
pub struct KernelLocks {
    stacks: Stacks,
    by_stack: bool,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whole stacks instead of a table
    pub stacks: bool,
}

impl Probe for KernelLocks {
    const NAME: &'static str = "kernel_locks";
    const SUMMARY: &'static str = "Which locks of the kernel are waited for, and where?";
    const CATEGORY: &'static str = "cpu";
    const DETAILS: &'static str = "Waits for mutexes, semaphores, spin locks and read-write locks of the kernel that were taken when somebody \
        wanted them, by the kind of lock and the function that wants it. Locks that are free cost nothing and are not seen. total_ns is the \
        time of all who waited, spinning or asleep. options.stacks shows the whole way to the lock. A wait that began before tracing is \
        dropped as start_missing. Of spin locks only waits that reach the queue are seen.";
    const NEXT: &'static [&'static str] = &[
        "which program runs into it: kernel_locks with options.stacks, or with filter.comm",
        "long waits for semaphores of memory (mmap): page_faults and syscall_latency of mmap and munmap",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"kernel_locks","seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/kernel_locks.o");
    // Came with 5.19 (commit 16edd9b511a1).
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("end", "contention_end"), Attach::tracepoint("begin", "contention_begin")];
    const NEEDS: &'static [&'static str] = &["TASK_COMM"];
    const COUNTS: &'static str = "end";
    const COST_NS: f64 = 6_500.0;
    const STACKS: WithStacks = WithStacks::IfAsked;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        stacks::prepare(&mut plan);
        plan.map_entries.push(("LOCKS", MOST_STACKS));
        let by_stack = u32::from(options.stacks);
        plan.globals.push(("STACK_BY_PROCESS", by_stack.to_ne_bytes().to_vec()));
        if !options.stacks {
            plan.globals.push(super::options::Side::Kernel.global());
        }
        Ok((Self { stacks: Stacks::new(context.filter.pid), by_stack: options.stacks }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let locks = maps.hash("LOCKS")?;
        let named = self.stacks.named();
        Ok(if self.by_stack { stacks::found(&weights(&locks), named, Unit::Ns) } else { found(&locks, named) })
    }

    fn fields() -> Vec<Field> {
        vec![
            Field::new("total_ns", "ns"),
            Field::new("waits", "waits"),
            Field::new("mean_ns", "ns"),
            Field::new("max_ns", "ns"),
        ]
    }

    fn take(&self, record: &[u8]) -> bool {
        self.stacks.take(record)
    }

    fn bytes(&self) -> usize {
        self.stacks.bytes()
    }
}

fn weights(locks: &BTreeMap<LockKey, Waits>) -> BTreeMap<StackKey, StackWeight> {
    let mut weights: BTreeMap<StackKey, StackWeight> = BTreeMap::new();
    for (key, waits) in locks {
        let weight = weights.entry(StackKey { id: key.stack, pid: key.pid, zero: 0 }).or_default();
        weight.count += waits.count;
        weight.sum += waits.total_ns;
    }
    weights
}

fn found(locks: &BTreeMap<LockKey, Waits>, named: Named) -> Found {
    let nameless = NamedStack::default();
    let mut rows: BTreeMap<(&str, &str), Waits> = BTreeMap::new();
    for (key, waits) in locks {
        let stack = named.stacks.get(&StackKey { id: key.stack, pid: key.pid, zero: 0 }).unwrap_or(&nameless);
        let all = rows.entry((kind(key.flags), wanted_by(stack))).or_default();
        all.count += waits.count;
        all.total_ns += waits.total_ns;
        all.max_ns = all.max_ns.max(waits.max_ns);
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by_key(|(_, waits)| std::cmp::Reverse(waits.total_ns));
    let table = Table {
        key: vec!["lock".into(), "function".into()],
        columns: KernelLocks::fields(),
        rows_total: rows.len() as u64,
        rows: rows.iter().map(|((kind, function), waits)| row(kind, function, waits)).collect(),
        others: None,
    };
    let delivered = locks.values().map(|waits| waits.count).sum();
    Found { report: Some(Report::Table(table)), delivered, notes: named.notes }
}

fn row(kind: &str, function: &str, waits: &Waits) -> Row {
    let mean = waits.total_ns.checked_div(waits.count).unwrap_or(0);
    let numbers = [("total_ns", waits.total_ns), ("waits", waits.count), ("mean_ns", mean), ("max_ns", waits.max_ns)];
    let key = [("lock".to_owned(), kind.into()), ("function".to_owned(), function.into())];
    key.into_iter().chain(numbers.map(|(name, number)| (name.to_owned(), number.into()))).collect()
}

/// `LCB_F_*` (include/trace/events/lock.h): spin 1, read 2, write 4, rt 8, percpu 16, mutex 32.
fn kind(flags: u32) -> &'static str {
    match flags {
        _ if flags & 32 != 0 => "mutex",
        _ if flags & 8 != 0 => "rt_mutex",
        _ if flags & 1 != 0 && flags & 2 != 0 => "rwlock (read)",
        _ if flags & 1 != 0 && flags & 4 != 0 => "rwlock (write)",
        _ if flags & 1 != 0 => "spin lock",
        _ if flags & 16 != 0 && flags & 2 != 0 => "percpu_rwsem (read)",
        _ if flags & 16 != 0 => "percpu_rwsem (write)",
        _ if flags & 2 != 0 => "rwsem (read)",
        _ if flags & 4 != 0 => "rwsem (write)",
        _ => "semaphore",
    }
}

/// The innermost function that is not of the locks themselves.
fn wanted_by(stack: &NamedStack) -> &str {
    const LOCKING: &[&str] = &[
        "_raw_",
        "__raw_",
        // Of a run queue and of a list of pages: who calls them wants the lock.
        "raw_spin_rq_lock",
        "folio_lruvec_lock",
        "native_queued_",
        "__pv_queued",
        "queued_",
        "do_raw_",
        "mutex_",
        "__mutex_",
        "down_",
        "__down",
        "rwsem_",
        "rt_mutex_",
        "__rt_",
        "rt_spin",
        "rtlock_",
        "percpu_",
        "__percpu_",
        "lock_",
        "__ww_",
        "ww_mutex",
        "trace_contention",
    ];
    let is_locking = |frame: &str| LOCKING.iter().any(|start| frame.starts_with(start));
    stack.frames.iter().rev().map(AsRef::as_ref).find(|frame| !is_locking(frame)).unwrap_or("[unknown]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_one_lock_from_several_stacks_are_one_row() {
        let stack = |frames: &[&str]| NamedStack {
            frames: frames.iter().map(|frame| (*frame).into()).collect(),
            kernel: frames.len(),
            ..NamedStack::default()
        };
        let key = |stack| StackKey { id: stack, pid: 0, zero: 0 };
        let stacks = [
            (key(20), stack(&["do_syscall_64", "do_renameat2", "lock_rename", "mutex_lock", "__mutex_lock"])),
            (key(21), stack(&["work", "do_renameat2", "down_write", "rwsem_down_write_slowpath"])),
            (key(22), stack(&["do_renameat2", "__mutex_lock_slowpath"])),
            (key(23), stack(&["__schedule", "raw_spin_rq_lock_nested", "_raw_spin_lock_nested"])),
            (key(24), stack(&["folio_batch_move_lru", "folio_lruvec_lock_irqsave", "_raw_spin_lock_irqsave"])),
        ];
        let lock = |stack, flags| LockKey { stack, flags, pid: 0 };
        let waits = |count, total_ns, max_ns| Waits { count, total_ns, max_ns };
        let locks = BTreeMap::from([
            (lock(20, 32), waits(3, 30, 20)),
            (lock(22, 33), waits(2, 20, 11)),
            (lock(21, 4), waits(7, 10, 2)),
            (lock(23, 1), waits(1, 3, 3)),
            (lock(24, 1), waits(1, 2, 2)),
        ]);
        let found = found(&locks, Named { stacks: stacks.into(), notes: Vec::new() });
        assert_eq!(found.delivered, 14);
        let Some(Report::Table(table)) = found.report else { panic!() };
        assert_eq!(
            serde_json::to_value(&table.rows).unwrap(),
            serde_json::json!([
                {"lock": "mutex", "function": "do_renameat2", "total_ns": 50, "waits": 5, "mean_ns": 10, "max_ns": 20},
                {"lock": "rwsem (write)", "function": "do_renameat2", "total_ns": 10, "waits": 7, "mean_ns": 1, "max_ns": 2},
                {"lock": "spin lock", "function": "__schedule", "total_ns": 3, "waits": 1, "mean_ns": 3, "max_ns": 3},
                {"lock": "spin lock", "function": "folio_batch_move_lru", "total_ns": 2, "waits": 1, "mean_ns": 2, "max_ns": 2},
            ])
        );
    }
}
