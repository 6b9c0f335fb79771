//! `bpf_programs` on the real kernel. Needs root; without, it fails.

use mcptrace::{execution::Execution, kernel::filter::Filter, report::Envelope};
use mcptrace_tests::{
    prober,
    probing::{ALL, of_pid, programs_of, rows, start, try_start},
    workload,
};
use serde_json::json;

fn ended(execution: &Execution) -> Envelope {
    assert!(execution.stop_and_wait(), "it does not end");
    execution.envelope(&ALL)
}

#[test]
fn a_program_of_another_process_has_its_runs_place_and_holder_and_statistics_end() {
    const OPENS: u64 = 1009;
    let mut workload = workload!();
    let mut other = prober!("file_opens", 60, json!({}), &of_pid(workload.pid()));
    let held = programs_of(other.pid());
    assert_eq!(held.len(), 2);
    let execution = start("bpf_programs", &json!({}), &Filter::default());
    workload.run(&format!("call {} {OPENS}", libc::SYS_getppid));
    let envelope = ended(&execution);
    let own: Vec<_> =
        rows(&envelope).iter().filter(|row| held.contains(&(row["id"].as_u64().unwrap() as u32))).collect();
    assert_eq!(own.len(), 2, "{:?}", rows(&envelope));
    for row in own {
        let place = format!("tp_btf/sys_{}", row["name"].as_str().unwrap());
        assert_eq!((&row["attached_to"], &row["kind"]), (&json!(place), &json!("tracing")));
        assert_eq!(row["holders"], other.pid().to_string());
        let (runs, time) = (row["runs"].as_u64().unwrap(), row["total_ns"].as_u64().unwrap());
        assert!(runs >= OPENS && time / runs == row["ns_per_run"].as_u64().unwrap() && time > 0, "{row:?}");
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
