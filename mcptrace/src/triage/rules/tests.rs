use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    report::{
        Envelope, Events, Histogram, Kind as Source, Loss, Report, Row, Series, Stack, Stacks, Status, Table, Window,
    },
    triage::system::{Cgroup, CpuTimes, Disk, Pressure, Process, System},
};

/// Seconds between the readings.
const SECONDS: u64 = 10;
/// This process, which no rule may blame.
const OWN: u32 = 999;

#[test]
fn impact_rises_by_orders_of_magnitude() {
    assert_eq!(over(9.9, 10.0, 1000.0), None);
    for (value, impact) in [(10.0, 0.2), (100.0, 0.6), (1000.0, 1.0), (5000.0, 1.0)] {
        assert!((over(value, 10.0, 1000.0).unwrap() - impact).abs() < 1e-9);
    }
}

#[test]
fn every_kind_has_one_rule() {
    let kinds: std::collections::BTreeSet<_> = RULES.iter().map(|rule| rule.kind).collect();
    assert_eq!(kinds.len(), RULES.len());
    for probe in RULES.iter().flat_map(|rule| rule.probes) {
        assert!(crate::probes::find(probe).is_some(), "{probe}");
    }
}

fn reading(at: Instant) -> System {
    System {
        at,
        cpu: CpuTimes::default(),
        forks: 0,
        switches: 0,
        pressure: Some(Pressure::default()),
        memory: None,
        vm: HashMap::new(),
        disks: HashMap::new(),
        tcp_segments_sent: 0,
        processes: HashMap::new(),
        cgroups: HashMap::new(),
    }
}

/// A machine of two CPUs that did nothing for [`SECONDS`].
fn idle() -> Evidence {
    let before = reading(Instant::now());
    let mut after = reading(before.at + Duration::from_secs(SECONDS));
    after.cpu.all = 20.0;
    Evidence { before, after, cpus: 2, found: BTreeMap::new(), focus: None, own: OWN, notes: Vec::new() }
}

fn with(change: impl FnOnce(&mut Evidence)) -> Evidence {
    let mut evidence = idle();
    change(&mut evidence);
    evidence
}

fn found(kind: Kind, evidence: &Evidence) -> Option<Finding> {
    let found = RULES.iter().find(|rule| rule.kind == kind).unwrap().judge(evidence);
    let next = found.as_ref().map(|found| found.next.at_a_shell());
    let taken = next.as_ref().map(|next| crate::cli::command().try_get_matches_from(next.split(' ')));
    assert!(taken.is_none_or(|taken| taken.is_ok()), "no command: {next:?}");
    found
}

fn envelope(report: Report, seen: u64) -> Envelope {
    Envelope {
        execution_id: "exec_1".into(),
        kind: Source::Probe,
        probe: String::new(),
        status: Status::Completed,
        error: None,
        window: Window::default(),
        filter: Row::new(),
        options: Row::new(),
        report: Some(report),
        events: None,
        reports: Vec::new(),
        loss: Loss { seen: Some(seen), ..Loss::default() },
        overhead: None,
        notes: Vec::new(),
        more: None,
    }
}

fn row(value: Value) -> Row {
    serde_json::from_value(value).unwrap()
}

fn table(rows: Vec<Value>) -> Envelope {
    envelope(Report::Table(Table { rows: rows.into_iter().map(row).collect(), ..Table::default() }), 0)
}

/// So many events were seen; some of them are there.
fn events(seen: u64, rows: Vec<Value>) -> Envelope {
    envelope(Report::Events(Events { rows: rows.into_iter().map(row).collect(), ..Events::default() }), seen)
}

fn histogram(series: Vec<Series>) -> Envelope {
    envelope(Report::Histogram(Histogram { series, ..Histogram::default() }), 0)
}

fn series(key: Value, count: u64, mean: f64, p99: u64) -> Series {
    Series { key: row(key), count, mean, p99, max: p99, ..Series::default() }
}

fn process(pid: u32, comm: &str, cpu: f64) -> ((u32, u64), Process) {
    ((pid, 1), Process { comm: comm.into(), cpu, ..Process::default() })
}

fn pids(finding: &Finding) -> Vec<u32> {
    finding.who.iter().filter_map(|who| who.pid).collect()
}

/// A number that a finding shows.
fn shown(finding: &Finding, name: &str) -> String {
    finding.evidence.iter().find(|number| number.name == name).unwrap().value.to_string()
}

#[test]
fn nothing_is_found_where_nothing_happened() {
    for rule in RULES {
        assert_eq!(rule.judge(&idle()), None, "{:?}", rule.kind);
    }
}

#[test]
fn cpus_are_short_when_they_are_used_up_and_somebody_waits() {
    let case = |busy: f64, stalled_us: u64| {
        with(|evidence| {
            evidence.after.cpu.busy = busy;
            evidence.after.pressure = Some(Pressure { cpu_us: stalled_us, ..Pressure::default() });
            evidence.after.processes.extend([
                process(7, "hog", 9.0),
                process(8, "hog", 10.0),
                process(OWN, "me", 10.0),
            ]);
        })
    };
    let kind = Kind::CpuSaturation;
    assert_eq!(found(kind, &case(17.9, 9_000_000)), None, "below 90 % of the CPUs are not used up");
    assert_eq!(found(kind, &case(20.0, 1_900_000)), None, "nobody waits");
    assert!(found(kind, &case(18.0, 9_000_000)).is_some(), "and from 90 % on they are");
    let worst = found(kind, &case(20.0, 9_000_000)).unwrap();
    assert!((worst.impact - 1.0).abs() < 1e-9, "{worst:?}");
    assert_eq!(pids(&worst), [8, 7], "most first, and not this process");
    assert_eq!(worst.next.arguments["filter"], json!({"pid": 8}));

    // A kernel that does not tell: what was waited for stands for it.
    let mut untold = case(20.0, 0);
    (untold.before.pressure, untold.after.pressure) = (None, None);
    untold.found.insert("runq_latency", histogram(vec![series(json!({}), 1000, 9e6, 0)]));
    let finding = found(kind, &untold).unwrap();
    assert!((finding.impact - 1.0).abs() < 1e-9, "9 s of 10: {finding:?}");
    assert_eq!(shown(&finding, "threads_waiting"), "0.9");
}

#[test]
fn one_thread_that_waits_long_is_no_trouble_and_many_are() {
    let case = |count, mean, p99| {
        with(|evidence| {
            let waits = series(json!({"pid": 7, "comm": "late"}), count, mean, p99);
            evidence.found.insert("runq_latency", histogram(vec![waits]));
        })
    };
    let kind = Kind::RunqDelay;
    assert_eq!(found(kind, &case(19, 2e9, 300_000_000)), None, "19 values have no 99th percentile to speak of");
    assert_eq!(found(kind, &case(20, 1e6, 300_000_000)), None, "20 ms in all");
    assert_eq!(found(kind, &case(2000, 1e7, 9_000_000)), None, "9 ms is not long");
    let worst = found(kind, &case(2000, 1e7, 200_000_000)).unwrap();
    assert_eq!((worst.impact.to_string(), pids(&worst)), ("1".to_owned(), vec![7]));
    assert_eq!((worst.who[0].comm.as_str(), worst.who[0].value.to_string()), ("late", "200".to_owned()));
    let mut unknown = case(2000, 1e7, 200_000_000);
    unknown.found.insert("runq_latency", histogram(vec![series(json!({}), 2000, 1e7, 200_000_000)]));
    assert_eq!(found(kind, &unknown).unwrap().who[0].pid, None, "there is no process 0");
}

#[test]
fn who_computes_without_pause_is_named() {
    let case = |cpu| with(|evidence| evidence.after.processes.extend([process(7, "spin", cpu)]));
    assert_eq!(found(Kind::RunawayProcess, &case(8.4)), None);
    let finding = found(Kind::RunawayProcess, &case(10.0)).unwrap();
    assert_eq!(pids(&finding), [7]);
    assert!((finding.impact - 0.45).abs() < 1e-9 && (finding.confidence - 0.65).abs() < 1e-9, "half of the machine");
}

#[test]
fn time_that_others_take_is_found() {
    let steal = |share: f64| with(|evidence| evidence.after.cpu.steal = share * 20.0);
    assert_eq!(found(Kind::CpuSteal, &steal(0.09)), None);
    assert!((found(Kind::CpuSteal, &steal(0.5)).unwrap().impact - 1.0).abs() < 1e-9);

    let interrupts = |seconds| with(|evidence| evidence.after.cpu.interrupts = seconds);
    assert_eq!(found(Kind::IrqLoad, &interrupts(1.9)), None);
    assert!((found(Kind::IrqLoad, &interrupts(12.0)).unwrap().impact - 1.0).abs() < 1e-9);
    let vectors = with(|evidence| {
        let vector = |name, percent: f64| Series {
            also: row(json!({"cpu_percent": percent})),
            ..series(json!({"kind": "soft", "name": name}), 1, 1.0, 1)
        };
        evidence.found.insert("irq_time", histogram(vec![vector("TIMER", 5.0), vector("NET_RX", 120.0)]));
    });
    let finding = found(Kind::IrqLoad, &vectors).unwrap();
    assert!((finding.impact - 1.0).abs() < 1e-9, "{finding:?}");
    assert_eq!((finding.who[0].device.as_str(), shown(&finding, "interrupts")), ("soft NET_RX", "125".to_owned()));
}

#[test]
fn a_group_that_is_held_is_found_with_its_members() {
    let case = |throttled, throttled_us| {
        with(|evidence| {
            let group = Cgroup { periods: 100, throttled, throttled_us, ..Cgroup::default() };
            evidence.after.cgroups.extend([("/a".to_owned(), group), ("/b".to_owned(), Cgroup::default())]);
            let (key, mut inside) = process(7, "held", 1.0);
            inside.cgroups = vec!["/a".into()];
            evidence.after.processes.extend([(key, inside), process(8, "free", 9.0)]);
        })
    };
    assert_eq!(found(Kind::CgroupThrottling, &case(4, 3_000_000)), None, "4 of 100 periods");
    assert_eq!(found(Kind::CgroupThrottling, &case(50, 190_000)), None, "0.019 CPUs");
    let finding = found(Kind::CgroupThrottling, &case(50, 3_000_000)).unwrap();
    assert!((finding.impact - 1.0).abs() < 1e-9, "{finding:?}");
    assert_eq!((finding.who[0].cgroup.as_str(), pids(&finding)), ("/a", vec![7]));
    assert_eq!(finding.who[1].value.to_string(), "10", "% of one CPU");
}

#[test]
fn want_of_memory_is_the_machines_or_a_groups() {
    let stalls = |kind: &str| {
        with(|evidence| {
            let stalls = series(json!({"stall": kind}), 5000, 1e6, 0);
            let mut found = histogram(vec![stalls]);
            let of = |pid: u32, kind: &str| row(json!({"pid": pid, "comm": "eater", "stall": kind}));
            found.events = Some(Report::Events(Events { rows: vec![of(7, kind), of(OWN, kind)], ..Events::default() }));
            evidence.found.insert("memory_reclaim", found);
        })
    };
    let finding = found(Kind::MemoryReclaim, &stalls("direct")).unwrap();
    assert_eq!((finding.impact.to_string(), pids(&finding)), ("1".to_owned(), vec![7]));
    assert_eq!(shown(&finding, "stalled_in_reclaim"), "50");
    assert_eq!(found(Kind::MemoryReclaim, &stalls("cgroup")), None, "a group's stalls are its own");

    assert_eq!(found(Kind::MemoryReclaim, &stalls("compaction")), None, "memory in pieces is no want of memory");

    let pressed = |available: u64, swapped: i64| {
        with(|evidence| {
            evidence.after.pressure = Some(Pressure { memory_us: 5_000_000, ..Pressure::default() });
            evidence.after.memory = Some((available, 100));
            evidence.after.vm.insert("pswpout".into(), swapped);
        })
    };
    assert_eq!(found(Kind::MemoryReclaim, &pressed(67, 0)), None, "pressure inside of a group is not the machine's");
    for short in [pressed(14, 0), pressed(67, 1000)] {
        assert!((found(Kind::MemoryReclaim, &short).unwrap().impact - 1.0).abs() < 1e-9);
    }

    let mut large = pressed(14, 0);
    for pid in 1..=4 {
        let (key, process) = process(pid, "big", 0.0);
        large.after.processes.insert(key, Process { resident: u64::from(pid) << 20, ..process });
    }
    let finding = found(Kind::MemoryReclaim, &large).unwrap();
    assert_eq!(pids(&finding), [4, 3, 2], "where nobody was seen to stall, the largest");
    assert_eq!((finding.who[0].value.to_string(), finding.who[0].unit.as_str()), ("4".to_owned(), "MiB resident"));

    let at_limit = |memory, limit_hits| {
        let mut evidence = stalls("cgroup");
        let group = Cgroup { memory, memory_limit: 1000, limit_hits, ..Cgroup::default() };
        evidence.after.cgroups.insert("/full".into(), group);
        evidence
    };
    assert_eq!(found(Kind::MemoryLimit, &at_limit(899, 10_000)), None);
    let mut rare = at_limit(900, 9);
    rare.found.clear();
    assert_eq!(found(Kind::MemoryLimit, &rare), None, "less than once a second, and nobody stalls");
    let finding = found(Kind::MemoryLimit, &at_limit(900, 9)).unwrap();
    assert!((finding.impact - 1.0).abs() < 1e-9, "the stalls say how bad it is: {finding:?}");
    assert_eq!((finding.who[0].cgroup.as_str(), pids(&finding)), ("/full", vec![7]));
    assert_eq!(finding.who[0].value.to_string(), "90", "% of its limit");
    let never = found(Kind::MemoryLimit, &at_limit(950, 0)).unwrap();
    assert!(never.summary.contains("is near its memory limit"), "it has not hit it: {}", never.summary);
}

#[test]
fn a_kill_for_want_of_memory_is_found_by_either_count() {
    let counted = with(|evidence| {
        evidence.after.vm.insert("oom_kill".into(), 1);
    });
    assert!(found(Kind::Oom, &counted).unwrap().who.is_empty());
    let victim = json!({"pid": 7, "comm": "big", "unit": "a.service", "anon_bytes": 3 << 20, "file_bytes": 1 << 20, "shmem_bytes": 2 << 20});
    let seen = with(|evidence| {
        evidence.found.insert("oom_kills", events(2, vec![victim, json!({"comm": "gone"})]));
    });
    let who = found(Kind::Oom, &seen).unwrap().who;
    assert_eq!((who[0].pid, who[0].cgroup.as_str(), who[0].value.to_string()), (Some(7), "a.service", "6".to_owned()));
    assert_eq!((who[0].comm.as_str(), who[1].comm.as_str(), who[1].pid), ("big", "gone", None));
}

#[test]
fn disks_are_full_slow_or_asked_for_durability() {
    let synced = |count, mean| {
        with(|evidence| {
            let mut found = histogram(vec![series(json!({"call": "fsync"}), count, mean, 5_000_000)]);
            let of = |pid: u32| row(json!({"pid": pid, "comm": "db"}));
            found.events = Some(Report::Events(Events { rows: vec![of(8), of(7), of(7)], ..Events::default() }));
            evidence.found.insert("fs_sync", found);
        })
    };
    assert_eq!(found(Kind::FsyncStorm, &synced(199, 1e8)), None, "19.9 a second");
    assert_eq!(found(Kind::FsyncStorm, &synced(10_000, 9e4)), None, "0.9 s waited");
    let finding = found(Kind::FsyncStorm, &synced(10_000, 1e6)).unwrap();
    assert_eq!((finding.impact.to_string(), pids(&finding)), ("1".to_owned(), vec![7, 8]));

    let busy = |busy_ms, io_us| {
        with(|evidence| {
            let disk = Disk { requests: 10, bytes: 10, busy_ms, queued_ms: busy_ms };
            evidence.after.disks.extend([("sda".to_owned(), disk), ("sdb".to_owned(), Disk::default())]);
            evidence.after.pressure = Some(Pressure { io_us, ..Pressure::default() });
            let (key, mut mover) = process(7, "copy", 0.0);
            mover.disk_bytes = Some(10 << 20);
            evidence.after.processes.extend([(key, mover), process(8, "idle", 1.0)]);
        })
    };
    assert_eq!(found(Kind::DiskSaturation, &busy(7_900, 9_000_000)), None);
    assert_eq!(found(Kind::DiskSaturation, &busy(9_900, 1_900_000)), None, "nobody is held up");
    let finding = found(Kind::DiskSaturation, &busy(9_900, 9_000_000)).unwrap();
    assert!((finding.impact - 1.0).abs() < 1e-9, "{finding:?}");
    assert_eq!((finding.who[0].device.as_str(), pids(&finding)), ("sda", vec![7]));
    assert_eq!((finding.who[1].value.to_string(), finding.who[1].unit.as_str()), ("1".to_owned(), "MiB/s of disk"));
    assert_eq!(shown(&finding, "under_way"), "0.99");

    let slow = |phase: &str, count, p99| {
        with(|evidence| {
            let key = json!({"phase": phase, "device": "sda"});
            evidence.found.insert("block_latency", histogram(vec![series(key, count, 1.0, p99)]));
            evidence.after.pressure = Some(Pressure { io_us: 10_000_000, ..Pressure::default() });
        })
    };
    assert_eq!(
        found(Kind::DiskLatency, &slow("queue", 99, 1_000_000_000)),
        None,
        "waiting for a full disk is not its latency"
    );
    assert_eq!(found(Kind::DiskLatency, &slow("service", 19, 1_000_000_000)), None);
    assert_eq!(found(Kind::DiskLatency, &slow("service", 20, 29_000_000)), None);
    let finding = found(Kind::DiskLatency, &slow("service", 20, 1_000_000_000)).unwrap();
    assert!((finding.impact - 1.0).abs() < 1e-9 && finding.who[0].device == "sda", "{finding:?}");
}

#[test]
fn threads_that_fight_for_a_lock_are_told_from_those_that_idle() {
    let case = |pid: u32, waits: u64, timed_out: u64, total_ns: u64| {
        with(|evidence| {
            let row = json!({"pid": pid, "comm": "p", "waits": waits, "timed_out": timed_out, "total_ns": total_ns});
            evidence.found.insert("futex_waits", table(vec![row]));
        })
    };
    let kind = Kind::UserLockContention;
    assert_eq!(found(kind, &case(7, 499, 0, 20_000_000_000)), None, "49.9 a second");
    assert_eq!(found(kind, &case(7, 1000, 501, 20_000_000_000)), None, "most gave up at a time of their own");
    assert_eq!(found(kind, &case(7, 1000, 0, 51_000_000_000)), None, "51 ms each: idle");
    assert_eq!(found(kind, &case(7, 20_000, 0, 6_900_000_000)), None, "0.69 threads");
    assert_eq!(found(kind, &case(OWN, 20_000, 0, 80_000_000_000)), None);
    let finding = found(kind, &case(7, 20_000, 0, 80_000_000_000)).unwrap();
    assert_eq!((finding.impact.to_string(), pids(&finding)), ("1".to_owned(), vec![7]));
    assert_eq!(finding.who[0].comm, "p");
}

#[test]
fn locks_of_the_kernel_are_blamed_on_the_function_that_takes_them() {
    let stack = |value, comm: &str| Stack {
        frames: ["do_writes_[k]", "rwsem_down_write_slowpath_[k]", "schedule_[k]"].map(str::to_owned).into(),
        value,
        comm: comm.into(),
    };
    let case = |value| {
        with(|evidence| {
            let stacks = vec![stack(value, "many"), stack(1, "few")];
            evidence.found.insert("kernel_locks", envelope(Report::Stacks(Stacks { stacks, ..Stacks::default() }), 0));
            evidence.after.processes.extend([process(7, "many", 2.0), process(8, "many", 5.0)]);
        })
    };
    assert_eq!(found(Kind::KernelLockContention, &case(2_900_000_000)), None);
    let finding = found(Kind::KernelLockContention, &case(40_000_000_000)).unwrap();
    assert!((finding.impact - 1.0).abs() < 1e-9);
    let (who, lock) = (&finding.who[0], &finding.who[1]);
    assert_eq!((who.pid, who.comm.as_str(), who.value.to_string()), (Some(8), "many", "4".to_owned()));
    assert_eq!((lock.device.as_str(), lock.value.to_string()), ("do_writes_[k]", "4".to_owned()));
    assert_eq!(pids(&finding), [8], "nobody is there by the other name");
}

#[test]
fn packets_sent_again_and_dropped_are_found_unless_that_is_usual() {
    let again = |event: &str, count: u64| {
        with(|evidence| {
            let row = json!({"event": event, "count": 1, "segments": count, "remote": "192.0.2.1"});
            evidence.found.insert("tcp_retransmits", table(vec![row]));
            evidence.after.tcp_segments_sent = 10_000;
        })
    };
    assert_eq!(found(Kind::TcpRetransmits, &again("retransmit", 19)), None);
    assert_eq!(found(Kind::TcpRetransmits, &again("reset", 1000)), None, "a reset is nothing sent again");
    let finding = found(Kind::TcpRetransmits, &again("synack_retransmit", 1000)).unwrap();
    assert_eq!((finding.impact.to_string(), finding.who[0].peer.as_str()), ("1".to_owned(), "192.0.2.1"));
    assert!((finding.confidence - 0.9).abs() < 1e-9, "a tenth of all");
    assert!((found(Kind::TcpRetransmits, &again("retransmit", 100)).unwrap().confidence - 0.75).abs() < 1e-9);
    let mut unknown = again("retransmit", 1000);
    unknown.after.tcp_segments_sent = 0;
    let finding = found(Kind::TcpRetransmits, &unknown).unwrap();
    assert!((finding.confidence - 0.75).abs() < 1e-9, "of how many nobody knows");

    let dropped = |reason: &str, packets: u64| {
        with(|evidence| {
            let row = json!({"reason": reason, "location": "f", "packets": packets});
            evidence.found.insert("packet_drops", table(vec![row]));
        })
    };
    assert_eq!(found(Kind::PacketDrops, &dropped("NO_SOCKET", 100_000)), None);
    assert_eq!(found(Kind::PacketDrops, &dropped("NETFILTER_DROP", 49)), None);
    let finding = found(Kind::PacketDrops, &dropped("NETFILTER_DROP", 20_000)).unwrap();
    assert_eq!((finding.impact.to_string(), finding.who[0].device.as_str()), ("1".to_owned(), "NETFILTER_DROP in f"));
}

#[test]
fn connects_and_names_that_fail_are_found_and_scaled_to_all_that_were_seen() {
    let connects = |seen| {
        with(|evidence| {
            let row = |pid: u32, errno: &str| json!({"pid": pid, "comm": "c", "errno": errno, "remote": "::1", "remote_port": 81});
            let rows = vec![row(7, "ECONNREFUSED"), row(7, "ETIMEDOUT")];
            evidence.found.insert("tcp_connections", events(seen, rows));
        })
    };
    assert_eq!(found(Kind::ConnectionRefused, &connects(19)), None);
    let finding = found(Kind::ConnectionRefused, &connects(2000)).unwrap();
    assert_eq!((finding.impact.to_string(), pids(&finding)), ("1".to_owned(), vec![7]));
    assert_eq!(finding.evidence[1].value.to_string(), "50", "% of those looked at were refused");
    let refused = with(|evidence| {
        evidence.found.insert("tcp_connections", events(2000, vec![json!({"pid": 7, "errno": "ECONNREFUSED"})]));
    });
    assert_eq!(shown(&found(Kind::ConnectionRefused, &refused).unwrap(), "refused"), "100");
    let values: Vec<_> = finding.who.iter().map(|who| (who.peer.as_str(), who.value.to_string())).collect();
    assert_eq!(values, [("", "200".to_owned()), ("::1:81", "200".to_owned())], "two events stand for 2,000");

    let names = |mean| {
        with(|evidence| {
            evidence.found.insert("dns_latency", histogram(vec![series(json!({}), 3, mean, 9_000_000_000)]));
        })
    };
    assert_eq!(found(Kind::DnsSlow, &names(1.9e8)), None);
    assert!((found(Kind::DnsSlow, &names(5e9)).unwrap().impact - 1.0).abs() < 1e-9);
}

#[test]
fn starts_signals_and_failures_are_found_by_their_rates() {
    let started = |execs, forks| {
        with(|evidence| {
            let row = json!({"pid": 70, "ppid": 7, "parent_comm": "sh"});
            evidence.found.insert("process_exec", events(execs, vec![row]));
            evidence.after.forks = forks;
        })
    };
    assert_eq!(found(Kind::ExecStorm, &started(199, 599)), None);
    let finding = found(Kind::ExecStorm, &started(4000, 0)).unwrap();
    assert_eq!(
        (finding.impact.to_string(), pids(&finding), finding.who[0].comm.as_str()),
        ("1".to_owned(), vec![7], "sh")
    );
    assert_eq!(found(Kind::ExecStorm, &started(73, 15_000)), None, "what the kernel counts as forks are threads too");

    let signals = |signal: &str, origin: &str| {
        with(|evidence| {
            let row = json!({"sender_pid": 7, "sender_comm": "s", "signal": signal, "origin": origin});
            evidence.found.insert("signals", events(50_000, vec![row]));
        })
    };
    assert_eq!(found(Kind::SignalStorm, &signals("SIGCHLD", "user")), None);
    assert_eq!(found(Kind::SignalStorm, &signals("SIGALRM", "kernel")), None);
    let finding = found(Kind::SignalStorm, &signals("SIGUSR1", "user")).unwrap();
    assert_eq!((finding.impact.to_string(), pids(&finding)), ("1".to_owned(), vec![7]));
    let half = with(|evidence| {
        let of = |signal: &str| json!({"sender_pid": 7, "signal": signal, "origin": "user"});
        evidence.found.insert("signals", events(50_000, vec![of("SIGUSR1"), of("SIGCHLD")]));
    });
    assert_eq!(shown(&found(Kind::SignalStorm, &half).unwrap(), "signals"), "2500");

    let failed = |pid: u32, errno: &str, errors: u64| {
        with(|evidence| {
            let row =
                |pid, errors| json!({"pid": pid, "comm": "f", "syscall": "openat", "errno": errno, "errors": errors});
            evidence.found.insert("syscall_errors", table(vec![row(8, 1), row(pid, errors)]));
        })
    };
    assert_eq!(
        found(Kind::SyscallFailures, &failed(7, "EAGAIN", 900_000)),
        None,
        "that is how it is told to come again"
    );
    assert_eq!(found(Kind::SyscallFailures, &failed(OWN, "ENOENT", 900_000)), None);
    assert_eq!(found(Kind::SyscallFailures, &failed(7, "ENOENT", 999)), None);
    assert_eq!(found(Kind::SyscallFailures, &failed(0, "ENOENT", 900_000)), None, "of nobody");
    let finding = found(Kind::SyscallFailures, &failed(7, "ENOENT", 200_000)).unwrap();
    assert_eq!((finding.impact.to_string(), pids(&finding)), ("1".to_owned(), vec![7, 8]));
    assert_eq!(finding.who[0].comm, "f");
    assert!(finding.summary.contains("openat with ENOENT"), "{}", finding.summary);
}
