//! Those who watch an execution: how soon they are told, in what order, and what a watcher costs that has stopped. Needs root.

use std::time::{Duration, Instant};

use mcptrace_tests::{
    latency::{self, STYLES},
    mcp::ServerProcess,
    program::{own_memory, program},
    workload,
    workload::hex,
};
use serde_json::{Value, json};

/// What is promised, a median of less than 20 ms at 10,000 events a second, is measured and held by `cargo xtask bench latency`: a release build
/// on a machine that does little else. Here it is a debug build on a machine that may be busy, or stand still for a while, so that the least of
/// three medians is bounded: by less than at the next of four looks a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_every_kind_of_watcher_as_they_come() {
    const MOST_MS: f64 = 100.0;
    for style in STYLES {
        let mut medians = Vec::new();
        for _ in 0..3 {
            let measured = latency::measure(program(), style, 500, 4).await;
            println!("{style:?}: median {:.1} ms, p99 {:.1} ms", measured.ms(0.5), measured.ms(0.99));
            assert_eq!(
                (measured.ns.len() as u64, measured.disorder),
                (measured.made, false),
                "{style:?}: each once, in order"
            );
            medians.push(measured.ms(0.5));
            if measured.ms(0.5) < MOST_MS {
                break;
            }
        }
        assert!(medians.iter().any(|median| *median < MOST_MS), "{style:?}: {medians:.1?} ms");
    }
}

#[tokio::test]
async fn a_long_poll_ends_with_the_next_event_and_not_before() {
    let mut process = ServerProcess::start_by(tokio::process::Command::new(program())).await;
    let client = &mut process.client;
    let prefix = format!("/poll-{}/", std::process::id());
    let arguments =
        json!({ "probe": "file_opens", "options": { "path_prefix": prefix }, "seconds": 300, "background": true });
    let id = client.tool("run_probe", arguments).await.success()["execution_id"].clone();
    let nothing =
        client.tool("get_result", json!({ "execution_id": id, "cursor": "e0", "wait_seconds": 0.5 })).await.success();
    assert_eq!(
        (&nothing["report"]["rows"], &nothing["more"]),
        (&json!([]), &json!({ "rows_left": 0, "cursor": "e0" }))
    );
    let opener = tokio::task::spawn_blocking({
        let path = format!("{prefix}x");
        move || {
            std::thread::sleep(Duration::from_millis(300));
            std::fs::File::open(path).unwrap_err();
        }
    });
    let begun = Instant::now();
    let next =
        client.tool("get_result", json!({ "execution_id": id, "cursor": "e0", "wait_seconds": 50 })).await.success();
    assert_eq!(next["report"]["rows"][0]["path"], format!("{prefix}x"));
    assert_eq!(next["more"]["cursor"], "e1");
    assert!(begun.elapsed() < Duration::from_secs(40), "it has waited for the end");
    opener.await.unwrap();
}

#[tokio::test]
async fn a_client_that_has_stopped_costs_bounded_memory_and_counted_loss_and_no_stalled_reader() {
    // Such a flood costs more than a usual execution may.
    let mut command = tokio::process::Command::new(program());
    command.args(["serve", "--execution-budget", "400"]);
    let mut process = ServerProcess::start_by(command).await;
    let pid = process.pid();
    let mut workload = workload!();
    let arguments =
        json!({ "probe": "file_opens", "filter": { "pid": workload.pid() }, "seconds": 300, "background": true });
    let id = process.client.tool("run_probe", arguments).await.success()["execution_id"].clone();
    let uri = format!("mcptrace://executions/{}", id.as_str().unwrap());
    process.client.request("resources/subscribe", json!({ "uri": uri })).await;
    // It asks for far more than a pipe holds, and reads none of it.
    for _ in 0..40 {
        let page = json!({ "execution_id": id, "limit": 10_000, "max_bytes": 1_048_576 });
        process.client.start_tool("get_result", page).await;
    }
    let before = own_memory(pid);
    let mut opens = 0;
    for _ in 0..20 {
        opens += workload.run(&format!("flood 1 20000 {}", hex("/etc/../etc/../etc/../etc/../etc/../etc/passwd")))[0]
            .unsigned_abs();
    }
    let grown = own_memory(pid).saturating_sub(before);
    assert!(grown < 96 << 20, "{} MB more while nobody reads", grown >> 20);
    // Then it reads again: the notices were not heaped up, and what did not fit into the window is counted.
    let stopped = process.client.tool("stop_execution", json!({ "execution_id": id })).await.success();
    let loss = &stopped["loss"];
    let dropped: u64 = loss["dropped"].as_object().map_or(0, |all| all.values().filter_map(Value::as_u64).sum());
    let (seen, delivered) = (loss["seen"].as_u64().unwrap(), loss["delivered"].as_u64().unwrap());
    assert_eq!((seen + loss["missed"].as_u64().unwrap_or(0), seen), (opens, delivered + dropped), "{loss}");
    assert!(delivered > opens / 2, "the reader went on while the client did not: {loss}");
    assert!(stopped["report"]["rows_evicted"].as_u64().unwrap() > 0, "{}", stopped["report"]["rows_evicted"]);
    let notices = process.client.others.iter().filter(|one| one["method"] == "notifications/resources/updated").count();
    assert!(notices < 2000, "{notices} notices were heaped up");
}
