//! Probes of stacks and of waits on the real kernel, against workloads whose functions have known names. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{path::Path, process::Command, sync::Arc};

use mcptrace::{
    execution::Execution,
    kernel::filter::Filter,
    report::{Envelope, Report, Row, Stacks},
};
use mcptrace_tests::{
    probing::{ALL, around, assert_no_loss, of_pid, rows, start, stop, try_start},
    workload,
    workload::{Workload, hex},
};
use serde_json::{Value, json};

const MILLISECOND: u64 = 1_000_000;

fn stacks(envelope: &Envelope) -> &Stacks {
    match envelope.report.as_ref().unwrap() {
        Report::Stacks(stacks) => stacks,
        other => panic!("no stacks: {other:?}"),
    }
}

/// What the stacks with a function weigh.
fn with(envelope: &Envelope, function: &str) -> u64 {
    let has = |frame: &String| frame == function;
    stacks(envelope).stacks.iter().filter(|one| one.frames.iter().any(has)).map(|one| one.value).sum()
}

/// A filter on a process and on durations.
fn at_least(pid: u32, microseconds: u64) -> Filter {
    Filter { min_duration_us: Some(microseconds), ..of_pid(pid) }
}

fn only_row(envelope: &Envelope) -> &Row {
    let rows = rows(envelope);
    assert_eq!(rows.len(), 1, "{rows:?}");
    &rows[0]
}

fn number(row: &Row, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("{field}: {row:?}"))
}

fn assert_between(value: u64, low: u64, high: u64, envelope: &Envelope) {
    assert!((low..=high).contains(&value), "{value} is not between {low} and {high}: {envelope:#?}");
}

/// All that a started probe finds of a workload that has ended before anybody asked for names.
fn after_the_end(execution: &Arc<Execution>, mut workload: Workload) -> Envelope {
    workload.end();
    drop(workload);
    stop(execution)
}

#[test]
fn a_function_that_computes_has_nearly_all_samples_even_after_its_process_has_ended() {
    let mut workload = workload!();
    let execution = start("cpu_profile", &json!({"hertz": 499}), &of_pid(workload.pid()));
    workload.run("burn 1000");
    let envelope = after_the_end(&execution, workload);
    let total = stacks(&envelope).total;
    // Other work shares the CPUs, and the clock of a virtual machine may come late.
    assert_between(total, 60, 700, &envelope);
    assert_eq!(envelope.loss.seen, Some(total));
    let burnt = with(&envelope, "burn_cpu");
    assert!(burnt * 100 >= total * 90, "{burnt} of {total}: {envelope:#?}");
    let heaviest = &stacks(&envelope).frames[0];
    assert_eq!(heaviest.frame, "burn_cpu");
    assert!(heaviest.total >= heaviest.self_weight && heaviest.self_weight * 100 >= total * 80, "{heaviest:?}");
}

#[test]
fn whoever_calls_what_does_not_return_has_its_own_name() {
    let mut workload = workload!();
    let execution = start("cpu_profile", &json!({"hertz": 499}), &of_pid(workload.pid()));
    workload.run("burn_without_return 400");
    let envelope = after_the_end(&execution, workload);
    let burnt = with(&envelope, "burn_cpu");
    assert!(burnt > 20, "{envelope:#?}");
    assert!(with(&envelope, "call_without_return") * 100 >= burnt * 90, "{envelope:#?}");
    assert_eq!(with(&envelope, "innocent_next"), 0, "{envelope:#?}");
}

/// The names of a stripped program are gone, and that is said of the time and not of the frames.
#[test]
fn time_in_code_without_names_is_said_to_be_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("stripped");
    let status = Command::new("strip").arg("-o").arg(&copy).arg(env!("CARGO_BIN_EXE_workload")).status().unwrap();
    assert!(status.success());
    // With the id of the program that it is a copy of, and that its parent runs, its names would be found there.
    give_build_id(&copy, 0xcd);
    let mut parent = workload!();
    let filter = Filter { descendants: true, ..of_pid(parent.pid()) };
    let execution = start("cpu_profile", &json!({"hertz": 499, "side": "user"}), &filter);
    let words = [copy.as_os_str().as_encoded_bytes(), b"burn", b"1200"].map(hex).join(" ");
    parent.run(&format!("spawn 1 {words}"));
    let envelope = after_the_end(&execution, parent);
    assert!(stacks(&envelope).unknown_percent > 60.0, "{envelope:#?}");
    assert!(envelope.notes.iter().any(|note| note.contains("stripped file")), "{:?}", envelope.notes);
}

/// A program that is deleted, as that of a container is with its root, before anybody asks for names.
#[test]
fn time_in_a_file_that_is_gone_with_its_process_is_said_to_be_unknown_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("brief");
    std::fs::copy(env!("CARGO_BIN_EXE_workload"), &copy).unwrap();
    give_build_id(&copy, 0xab);
    let mut parent = workload!();
    let filter = Filter { descendants: true, ..of_pid(parent.pid()) };
    let execution = start("cpu_profile", &json!({"hertz": 499, "side": "user"}), &filter);
    let words = [copy.as_os_str().as_encoded_bytes(), b"burn", b"1200"].map(hex).join(" ");
    parent.run(&format!("spawn 1 {words}"));
    std::fs::remove_file(&copy).unwrap();
    let envelope = after_the_end(&execution, parent);
    let gone: u64 =
        stacks(&envelope).frames.iter().filter(|one| one.frame == "[gone]").map(|one| one.self_weight).sum();
    let total = stacks(&envelope).total;
    assert!(total >= 20 && gone * 2 > total, "{gone} of {total}: {envelope:#?}");
    assert!(stacks(&envelope).unknown_percent > 50.0, "{envelope:#?}");
    assert!(envelope.notes.iter().any(|note| note.contains("no longer found")), "{:?}", envelope.notes);
}

/// Gives a program a build id that nobody else has: `byte`, 20 times.
fn give_build_id(program: &Path, byte: u8) {
    let note = program.with_extension("note");
    // Length of the name, length of the id, its type (NT_GNU_BUILD_ID), the name, the id.
    let words: Vec<u8> =
        [4_u32, 20, 3].iter().flat_map(|word| word.to_ne_bytes()).chain(*b"GNU\0").chain([byte; 20]).collect();
    std::fs::write(&note, words).unwrap();
    let section = format!(".note.gnu.build-id={}", note.display());
    let status = Command::new("objcopy").arg("--update-section").arg(section).arg(program).status();
    assert!(status.unwrap().success());
}

/// A program that nobody else runs: the kernel side says its path, and the file its build id.
#[test]
fn a_program_that_lived_for_a_moment_is_named_by_its_build_id() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("moment");
    std::fs::copy(env!("CARGO_BIN_EXE_workload"), &copy).unwrap();
    let mut parent = workload!();
    let filter = Filter { descendants: true, ..of_pid(parent.pid()) };
    let execution = start("cpu_profile", &json!({"hertz": 997, "side": "user"}), &filter);
    let words = [copy.as_os_str().as_encoded_bytes(), b"burn", b"15"].map(hex).join(" ");
    parent.run(&format!("spawn 5 {words}"));
    let envelope = after_the_end(&execution, parent);
    let total = stacks(&envelope).stacks.iter().filter(|one| one.comm == "moment").map(|one| one.value).sum::<u64>();
    let burnt = with(&envelope, "burn_cpu");
    assert!(total >= 20 && burnt * 2 > total, "{burnt} of {total}: {envelope:#?}");
}

/// As after an upgrade: under its name there is another file.
#[test]
fn a_program_that_was_replaced_while_it_runs_has_its_own_names() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("replaced");
    std::fs::copy(env!("CARGO_BIN_EXE_workload"), &copy).unwrap();
    let mut workload = Workload::start(copy.to_str().unwrap());
    std::fs::remove_file(&copy).unwrap();
    std::fs::copy("/bin/true", &copy).unwrap();
    let envelope = around("cpu_profile", &json!({"hertz": 499, "side": "user"}), &of_pid(workload.pid()), || {
        workload.run("burn 400");
    });
    let (burnt, total) = (with(&envelope, "burn_cpu"), stacks(&envelope).total);
    assert!(total >= 20 && burnt * 2 > total, "{burnt} of {total}: {envelope:#?}");
}

#[test]
fn folded_text_and_flame_graph_have_every_sample() {
    let mut workload = workload!();
    let execution = start("cpu_profile", &json!({"hertz": 499}), &of_pid(workload.pid()));
    workload.run("burn 300");
    let envelope = stop(&execution);
    let folded = execution.folded().unwrap();
    let values = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
    assert_eq!(values.sum::<u64>(), stacks(&envelope).total);
    assert!(folded.lines().any(|line| line.starts_with("workload;") && line.contains("burn_cpu")), "{folded}");
    let picture = execution.flamegraph().unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("<title>burn_cpu ("), "{picture}");
    let uri = format!("mcptrace://executions/{}/folded", envelope.execution_id);
    assert_eq!(stacks(&envelope).folded_uri, uri);
    assert!(stacks(&envelope).stacks_total >= 1);
}

#[test]
fn a_side_that_is_not_asked_for_has_no_frames() {
    let mut workload = workload!();
    let pid = workload.pid();
    let kernel =
        around("cpu_profile", &json!({"hertz": 499, "side": "kernel"}), &of_pid(pid), || _ = workload.run("burn 200"));
    assert_eq!(with(&kernel, "burn_cpu"), 0);
    let user =
        around("cpu_profile", &json!({"hertz": 499, "side": "user"}), &of_pid(pid), || _ = workload.run("burn 200"));
    assert!(stacks(&user).stacks.iter().flat_map(|one| &one.frames).all(|frame| !frame.ends_with("_[k]")));
    assert!(with(&user, "burn_cpu") > 0, "{user:#?}");
}

#[test]
fn a_frequency_out_of_bounds_is_refused() {
    for hertz in [0, 1001] {
        let error = try_start("cpu_profile", &json!({"hertz": hertz}), &Filter::default()).unwrap_err().to_string();
        assert!(error.contains("options.hertz: must be at least 1 and at most 1000"), "{error}");
    }
}

#[test]
fn stacks_come_through_perf_buffers_as_well() {
    let mut workload = workload!();
    let options = json!({"hertz": 499, "transport": "perf"});
    let envelope = around("cpu_profile", &options, &of_pid(workload.pid()), || _ = workload.run("burn 300"));
    let total = stacks(&envelope).total;
    assert!(total > 20 && with(&envelope, "burn_cpu") * 100 >= total * 85, "{envelope:#?}");
}

#[test]
fn naps_are_off_the_cpu_as_long_and_where_they_are_taken() {
    let mut workload = workload!();
    // 23 naps of 7 ms. The 5 ms leave out the waits for a CPU of others, but not the read of the next command.
    let execution = start("offcpu_stacks", &json!({}), &at_least(workload.pid(), 5000));
    workload.run("naps 23 7000");
    let envelope = after_the_end(&execution, workload);
    let napped = with(&envelope, "take_naps");
    // Who is pushed off the CPU on the way to sleep sleeps for less.
    assert_between(napped, 20 * 7 * MILLISECOND, 23 * 7 * MILLISECOND * 2, &envelope);
    let nap = stacks(&envelope).stacks.iter().find(|one| one.frames.iter().any(|frame| frame == "take_naps")).unwrap();
    let kernel: Vec<_> = nap.frames.iter().filter(|frame| frame.ends_with("_[k]")).collect();
    assert!(kernel.iter().any(|frame| frame.contains("nanosleep")), "{kernel:?}");
    assert!(kernel.last().unwrap().contains("schedule"), "no frame of the tracer is left: {kernel:?}");
    assert_eq!((stacks(&envelope).unit.as_str(), nap.comm.as_str()), ("ns", "workload"));
}

#[test]
fn a_state_that_is_not_asked_for_is_not_counted() {
    let mut workload = workload!();
    let nap = |workload: &mut Workload, state: &str| {
        let pid = workload.pid();
        let envelope = around("offcpu_stacks", &json!({"state": state}), &at_least(pid, 5000), || {
            workload.run("naps 5 7000");
        });
        with(&envelope, "take_naps")
    };
    assert!(nap(&mut workload, "interruptible") >= 3 * 7 * MILLISECOND);
    assert_eq!(nap(&mut workload, "uninterruptible"), 0);
}

#[test]
fn whoever_wakes_stands_behind_whoever_waits() {
    let mut workload = workload!();
    let execution = start("wakeup_chains", &json!({}), &at_least(workload.pid(), 4000));
    // The waiter: 17 waits of 5 ms for a byte that the main thread writes. The main thread's own sleeps are ended by a timer.
    workload.run("hand_over 17 5000");
    let envelope = after_the_end(&execution, workload);
    let handed: Vec<_> = stacks(&envelope)
        .stacks
        .iter()
        .filter(|one| one.comm == "baton_waiter" && one.frames.iter().any(|frame| frame == "wait_for_baton"))
        .collect();
    let total: u64 = handed.iter().map(|one| one.value).sum();
    // The first wait may have begun before the first sleep.
    assert_between(total, 16 * 5 * MILLISECOND, 17 * 12 * MILLISECOND, &envelope);
    for one in &handed {
        let place = |name: &str| one.frames.iter().position(|frame| frame == name);
        let (waits, woken, passes) = (place("wait_for_baton"), place("-- woken by workload"), place("pass_baton"));
        assert!(waits < woken && woken < passes && passes.is_some(), "{one:?}");
    }
    let by_timer =
        stacks(&envelope).stacks.iter().any(|one| one.frames.iter().any(|frame| frame == "-- woken by interrupt"));
    assert!(by_timer, "{envelope:#?}");
}

#[test]
fn futex_waits_are_counted_by_how_they_end() {
    let mut workload = workload!();
    let pid = workload.pid();
    let envelope = around("futex_waits", &json!({}), &of_pid(pid), || {
        workload.run("futex_naps 13 3000");
        workload.run("futex_changed 7");
    });
    assert_no_loss(&envelope);
    let row = only_row(&envelope);
    assert_eq!((number(row, "pid"), &row["comm"]), (pid.into(), &Value::from("workload")));
    assert_eq!((number(row, "waits"), number(row, "timed_out"), number(row, "not_needed")), (20, 13, 7));
    assert_between(number(row, "total_ns"), 13 * 3 * MILLISECOND, 13 * 30 * MILLISECOND, &envelope);
    assert!(number(row, "max_ns") >= 3 * MILLISECOND && number(row, "max_ns") <= number(row, "total_ns"));
}

#[test]
fn futex_waits_have_stacks_if_asked_for() {
    let mut workload = workload!();
    let execution = start("futex_waits", &json!({"stacks": true}), &of_pid(workload.pid()));
    workload.run("futex_naps 13 3000");
    let envelope = after_the_end(&execution, workload);
    assert_no_loss(&envelope);
    assert_eq!(envelope.loss.seen, Some(13));
    assert!(with(&envelope, "wait_for_futex") >= 13 * 3 * MILLISECOND, "{envelope:#?}");
    let Some(Report::Stacks(stacks)) = &envelope.report else { panic!("{envelope:?}") };
    assert!(!stacks.folded.contains("_[k]"), "the kernel's part is the same of all waits: {}", stacks.folded);
}

#[test]
fn threads_that_write_to_one_file_wait_for_its_lock() {
    let folder = tempfile::tempdir().unwrap();
    let file = hex(folder.path().join("contended").as_os_str().as_encoded_bytes());
    let mut workload = workload!();
    let pid = workload.pid();
    // Writes that find the lock free leave no trace, and threads wait for other locks as well: that of their memory map is of this kind.
    let mut contend = |options: Value, found: &dyn Fn(&Envelope) -> bool| {
        let execution = start("kernel_locks", &options, &of_pid(pid));
        let mut rounds = 0;
        while rounds < 50 && !found(&execution.envelope(&ALL)) {
            workload.run(&format!("contend {file} 4 61"));
            rounds += 1;
        }
        stop(&execution)
    };
    let is_wanted = |row: &&Row| row["lock"] == "rwsem (write)" && row["function"].as_str().unwrap().contains("write");
    let envelope = contend(json!({}), &|envelope| rows(envelope).iter().any(|row| is_wanted(&row)));
    let waits: u64 = rows(&envelope).iter().filter(is_wanted).map(|row| number(row, "waits")).sum();
    // Nobody waits twice for one write.
    assert_between(waits, 1, 50 * 4 * 61, &envelope);
    for row in rows(&envelope) {
        assert!(number(row, "max_ns") <= number(row, "total_ns"), "{row:?}");
        assert_eq!(number(row, "mean_ns"), number(row, "total_ns") / number(row, "waits"), "{row:?}");
    }
    let has_lock = |envelope: &Envelope| {
        let is_in = |frames: &[String], name| frames.iter().any(|frame| frame.contains(name));
        stacks(envelope).stacks.iter().any(|one| is_in(&one.frames, "down_write") && is_in(&one.frames, "vfs_write"))
    };
    let with_stacks = contend(json!({"stacks": true}), &has_lock);
    assert!(has_lock(&with_stacks), "{with_stacks:#?}");
}

#[test]
fn memory_that_is_not_freed_is_found_to_the_byte() {
    let mut workload = workload!();
    let execution = start("heap_growth", &json!({}), &of_pid(workload.pid()));
    workload.run("leak 23 1009");
    workload.run("churn 31 501");
    workload.run("grow 7 2003");
    workload.run("grow_in_vain 13 701");
    workload.run("shrink 17 601");
    let envelope = after_the_end(&execution, workload);
    assert_no_loss(&envelope);
    assert_eq!(with(&envelope, "leak_memory"), 23 * 1009, "{envelope:#?}");
    assert_eq!(with(&envelope, "grow_memory"), 7 * 2003, "{envelope:#?}");
    assert_eq!(with(&envelope, "churn_memory"), 0, "{envelope:#?}");
    assert_eq!(with(&envelope, "grow_in_vain"), 13 * 701, "what a realloc that fails was given stays: {envelope:#?}");
    assert_eq!(with(&envelope, "shrink_memory"), 0, "a realloc to nothing frees: {envelope:#?}");
    // 23 of leak, 4 times 31 of churn, twice 7 of grow; and what the workload needs to read its commands.
    assert!(envelope.loss.seen.unwrap() >= 23 + 4 * 31 + 2 * 7, "{:?}", envelope.loss);
    assert!(envelope.notes.iter().any(|note| note.contains("were not freed")), "{:?}", envelope.notes);
}

#[test]
fn a_sample_of_allocations_stands_for_all() {
    let mut workload = workload!();
    let execution = start("heap_growth", &json!({"sample": 10}), &of_pid(workload.pid()));
    workload.run("leak 5000 1009");
    let envelope = after_the_end(&execution, workload);
    // 500 of 5,000: a deviation of 4 % is usual, one of 40 % would be ten of them.
    assert_between(with(&envelope, "leak_memory"), 3000 * 1009, 7000 * 1009, &envelope);
}

#[test]
fn a_heap_without_a_process_is_refused_with_the_reason() {
    let error = try_start("heap_growth", &json!({}), &Filter::default()).unwrap_err().to_string();
    assert!(error.contains("needs filter.pid"), "{error}");
    let error = try_start("heap_growth", &json!({"binary": "/bin/true"}), &Filter::default()).unwrap_err().to_string();
    assert!(error.contains("has no function"), "{error}");
}
