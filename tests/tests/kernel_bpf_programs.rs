//! `bpf_programs` on the real kernel. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{collections::BTreeMap, process::Command};

use mcptrace::{
    execution::Execution,
    kernel::filter::Filter,
    report::{Envelope, Row},
};
use mcptrace_tests::{
    prober,
    probing::{ALL, of_pid, programs_of, rows, start, try_start},
    workload,
};
use serde_json::{Value, json};

fn ended(execution: &Execution) -> Envelope {
    assert!(execution.stop_and_wait(), "it does not end");
    execution.envelope(&ALL)
}

/// Runs of each program and their time in nanoseconds, by its id.
type Statistics = BTreeMap<u64, (u64, u64)>;

/// As `bpftool` reads them. It leaves them out where they are zero.
fn bpftool() -> Statistics {
    let output = Command::new("bpftool").args(["prog", "show", "-j"]).output().expect("bpftool, as xtask installs it");
    let programs: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let number = |program: &Value, name: &str| program.get(name).map_or(0, |value| value.as_u64().unwrap());
    let of = |program: &Value| (number(program, "id"), (number(program, "run_cnt"), number(program, "run_time_ns")));
    programs.iter().map(of).collect()
}

#[test]
fn a_program_of_another_process_has_its_runs_place_and_holder_and_statistics_end() {
    const OPENS: u64 = 1009;
    let mut workload = workload!();
    let mut other = prober!("file_opens", 60, json!({}), &of_pid(workload.pid()));
    let held = programs_of(other.pid());
    let before = bpftool();
    let execution = start("bpf_programs", &json!({}), &Filter::default());
    let within = bpftool();
    workload.run(&format!("call {} {OPENS}", libc::SYS_getppid));
    let still_within = bpftool();
    let envelope = ended(&execution);
    let after = bpftool();
    let is_of_calls = |row: &&Row| row["name"] == "enter" || row["name"] == "exit";
    let is_held = |row: &&Row| held.contains(&(row["id"].as_u64().unwrap() as u32));
    let own: Vec<_> = rows(&envelope).iter().filter(is_held).filter(is_of_calls).collect();
    assert_eq!(own.len(), 2, "{:?}", rows(&envelope));
    for row in own {
        let place = format!("tp_btf/sys_{}", row["name"].as_str().unwrap());
        assert_eq!((&row["attached_to"], &row["kind"]), (&json!(place), &json!("tracing")));
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", other.pid())).unwrap();
        assert_eq!(row["holders"], format!("{} {}", other.pid(), comm.trim_end()));
        let (runs, time) = (row["runs"].as_u64().unwrap(), row["total_ns"].as_u64().unwrap());
        assert!(runs >= OPENS && time / runs == row["ns_per_run"].as_u64().unwrap() && time > 0, "{row:?}");
        // What another reader of the same counters saw in between and around.
        let id = row["id"].as_u64().unwrap();
        let grown = |from: &Statistics, to: &Statistics| (to[&id].0 - from[&id].0, to[&id].1 - from[&id].1);
        let (least, most) = (grown(&within, &still_within), grown(&before, &after));
        assert!(least.0 >= OPENS && (least.0..=most.0).contains(&runs), "{least:?} {most:?} {row:?}");
        assert!((least.1..=most.1).contains(&time), "{least:?} {most:?} {row:?}");
    }
    assert_eq!((envelope.loss.seen, envelope.loss.missed), (None, None));
    other.end();
    let own = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = own.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let open = targets.filter(|target| target.to_string_lossy().contains("bpf-stats")).count();
    assert_eq!(open, 0, "the statistics are still on");
}

#[test]
fn a_filter_on_threads_is_refused() {
    let refusal = try_start("bpf_programs", &json!({}), &of_pid(std::process::id())).unwrap_err();
    assert!(refusal.to_string().contains("takes no filter"), "{refusal}");
}
