//! How long system calls take.

use aya::maps::MapError;
use mcptrace_wire::{Histogram as Kept, SYSCALLS, SlowSyscall};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    options::{self, Transport},
    parse, places, plain, plan_of,
    syscall_counts::{syscall_globals, words},
};
use crate::{
    clock::Clock,
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        arch::{syscall_name, syscall_pair},
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Histogram, Report, Row},
    text::comm,
};

/// Copies of the histograms, at most: 16 times 1,024 histograms of 2.4 KB are 40 MB on hosts of many CPUs.
const MOST_BANKS: u32 = 16;
/// Buffer for slow calls: 16,384 records.
const EVENT_BYTES: u32 = 1 << 20;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct SyscallLatency {
    banks: u32,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only this system call, by name (openat, i386:open)
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub syscall: Option<String>,
    /// Also list single events that took at least this long, in microseconds
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub slower_than_us: Option<u64>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for SyscallLatency {
    const NAME: &'static str = "syscall_latency";
    const SUMMARY: &'static str = "How long does each system call take, and which single calls were slow?";
    const CATEGORY: &'static str = "syscalls";
    const DETAILS: &'static str = "Time from entry to return as the thread sees it: waiting included, so poll, futex and nanosleep are \
        long by design. Calls are counted when they return; one still under way at the end is not in the histogram, and one that began \
        before is dropped as start_missing, and so is one that seccomp refused. A new process's return from the clone of its parent is no call of its own. With \
        slower_than_us the slow calls are events as well.";
    const NEXT: &'static [&'static str] = &[
        "read, write or fsync slow: block_latency",
        "everything slow while CPUs are busy: runq_latency",
        "opens slow: file_opens with filter.min_duration_us",
    ];
    const EXAMPLE: &'static str =
        r#"{"probe":"syscall_latency","options":{"syscall":"fsync","slower_than_us":10000},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/syscall_latency.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("enter", "sys_enter"), Attach::tracepoint("exit", "sys_exit")];
    const NEEDS: &'static [&'static str] = &["TASK_COMPAT_WORD", "TASK_COMM"];
    const COUNTS: &'static str = "exit";
    const COST_NS: f64 = 220.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        let banks = context.cpus.clamp(1, MOST_BANKS);
        plan.globals.extend(syscall_globals());
        plan.globals.push(("FORKS", forks()));
        plan.globals.push(("BANKS", banks.to_ne_bytes().to_vec()));
        plan.globals.push(("BANK_PER_CPU", u32::from(banks == context.cpus).to_ne_bytes().to_vec()));
        plan.map_entries.push(("HISTOGRAMS", banks * SYSCALLS));
        if let Some(name) = &options.syscall {
            plan.globals.push(("ONLY", options::syscall(name)?.to_ne_bytes().to_vec()));
        }
        if let Some(us) = options.slower_than_us {
            plan.globals.push(("SLOWER_THAN_NS", us.saturating_mul(1000).to_ne_bytes().to_vec()));
            plan.event_bytes = EVENT_BYTES;
        }
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self { banks }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let (histogram, delivered) = histogram(&maps.array("HISTOGRAMS")?, self.banks);
        Ok(Found { report: Some(Report::Histogram(histogram)), delivered, notes: Vec::new() })
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("latency", "ns")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "syscall"]);
        fields.push(Field::new("latency_ns", "ns"));
        fields.extend(plain(&["result", "errno", "pid", "tid", "comm"]));
        fields.extend(plain(&places::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<SlowSyscall>(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (slow, _) = parse::<SlowSyscall>(record)?;
        let mut row = Row::new();
        row.insert("time".into(), clock.utc(slow.time_ns).into());
        row.insert("syscall".into(), syscall_name(slow.syscall).into());
        row.insert("latency_ns".into(), slow.latency_ns.into());
        if (-4095..0).contains(&slow.result) {
            row.insert("errno".into(), crate::errno::name(-slow.result as i32).into());
        } else {
            row.insert("result".into(), slow.result.into());
        }
        row.insert("pid".into(), slow.pid.into());
        row.insert("tid".into(), slow.tid.into());
        row.insert("comm".into(), comm(&slow.comm).into());
        places::insert(&mut row, slow.cgroup, slow.pid);
        Some(row)
    }
}

/// The calls that return a second time, in the child.
pub(crate) fn forks() -> Vec<u8> {
    let calls = ["clone", "clone3", "fork", "vfork"].map(syscall_pair);
    words(calls.as_flattened())
}

fn histogram(kept: &[Kept], banks: u32) -> (Histogram, u64) {
    let of_call = |call: usize| {
        let mut distribution = Distribution::default();
        for bank in 0..banks as usize {
            if let Some(kept) = kept.get(bank * SYSCALLS as usize + call) {
                distribution.add(kept);
            }
        }
        (call, distribution)
    };
    let mut calls: Vec<_> = (0..SYSCALLS as usize).map(of_call).filter(|(_, all)| all.count() > 0).collect();
    calls.sort_by_key(|(_, all)| std::cmp::Reverse(all.count()));
    let delivered = calls.iter().map(|(_, all)| all.count()).sum();
    let key = |call: usize| Row::from_iter([("syscall".to_owned(), syscall_name(call as u32).into())]);
    let series: Vec<_> = calls.iter().map(|(call, all)| all.series(key(*call))).collect();
    let histogram = Histogram {
        unit: "ns".into(),
        key: vec!["syscall".into()],
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    (histogram, delivered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banks_of_one_call_are_one_series() {
        let mut kept = vec![Kept::EMPTY; 2 * SYSCALLS as usize];
        kept[1].buckets[3] = 2;
        kept[SYSCALLS as usize + 1].buckets[5] = 1;
        kept[7].buckets[0] = 1;
        let (histogram, delivered) = histogram(&kept, 2);
        assert_eq!((histogram.series.len(), delivered), (2, 4));
        assert_eq!(histogram.series[0].key["syscall"], syscall_name(1));
        assert_eq!(histogram.series[0].buckets, [(3, 4, 2), (5, 6, 1)]);
    }
}
