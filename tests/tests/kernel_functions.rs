//! Probes of functions in user space on the real kernel, with a program that calls them so many times. Needs root; without, it fails.

use mcptrace::{kernel::filter::Filter, report::Envelope};
use mcptrace_tests::{
    probing::{around, assert_no_loss, events, find_series, of_pid, one_series, series, start, stop, try_start},
    workload::Workload,
};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_function_workload");

fn workload() -> Workload {
    Workload::start(PROGRAM)
}

fn function(pattern: &str) -> Value {
    json!({ "binary": PROGRAM, "function": pattern })
}

fn count(envelope: &Envelope, name: &str) -> u64 {
    find_series(envelope, "function", name).map_or(0, |one| one.count)
}

mod function_latency {
    use super::*;

    #[test]
    fn counts_each_call_and_times_it() {
        let mut workload = workload();
        let found = around("function_latency", &function("mcptrace_leaf"), &of_pid(workload.pid()), || {
            workload.run("leaf 23 0");
            workload.run("leaf 7 20");
        });
        assert_no_loss(&found);
        let leaf = one_series(&found, "function", "mcptrace_leaf");
        assert_eq!(leaf.count, 30);
        let slow: u64 = leaf.buckets.iter().filter(|(low, _, _)| *low >= 18_000_000).map(|(_, _, count)| count).sum();
        assert_eq!(slow, 7, "{:?}", leaf.buckets);
        assert!(leaf.max >= 20_000_000, "{leaf:?}");
    }

    #[test]
    fn takes_a_glob_over_many_functions_at_once() {
        let mut workload = workload();
        let found = around("function_latency", &function("mcptrace_*"), &of_pid(workload.pid()), || {
            workload.run("outer 13 0");
            workload.run("leaf 5 0");
        });
        assert_no_loss(&found);
        assert_eq!((count(&found, "mcptrace_outer"), count(&found, "mcptrace_leaf")), (13, 3 * 13 + 5));
        assert_eq!(series(&found).len(), 2, "what was not called is not listed");
        assert!(found.notes.iter().any(|note| note.starts_with("2 of 3 functions")), "{:?}", found.notes);
    }

    #[test]
    fn finds_functions_by_the_names_that_stacks_show() {
        let mut workload = workload();
        let wanted = function("*_workload::perform");
        let found = around("function_latency", &wanted, &of_pid(workload.pid()), || {
            (0..7).for_each(|_| drop(workload.run("leaf 1 0")));
        });
        let [perform] = series(&found) else { panic!("{found:?}") };
        assert!(perform.count == 7 && perform.key["function"].as_str().unwrap().contains("perform"), "{perform:?}");
    }

    /// Every frame has a time of its own: the outermost the longest.
    #[test]
    fn a_function_that_calls_itself_counts_each_call() {
        let mut workload = workload();
        let found = around("function_latency", &function("mcptrace_recurse"), &of_pid(workload.pid()), || {
            workload.run("recurse 11 6");
        });
        assert_no_loss(&found);
        let recurse = one_series(&found, "function", "mcptrace_recurse");
        assert_eq!(recurse.count, 77);
        assert!(recurse.min >= 2_000_000, "the innermost sleeps 2 ms: {recurse:?}");
    }

    #[test]
    fn threads_are_not_mixed_up() {
        let mut workload = workload();
        let found = around("function_latency", &function("mcptrace_leaf"), &of_pid(workload.pid()), || {
            workload.run("threads 7 1009");
        });
        assert_no_loss(&found);
        assert_eq!(count(&found, "mcptrace_leaf"), 7 * 1009);
    }

    #[test]
    fn slow_calls_are_events_with_their_result() {
        let mut workload = workload();
        let mut options = function("mcptrace_leaf");
        options["slower_than_us"] = json!(15_000);
        let found = around("function_latency", &options, &of_pid(workload.pid()), || {
            workload.run("leaf 17 0");
            workload.run("leaf 3 20");
        });
        assert_no_loss(&found);
        assert_eq!(count(&found, "mcptrace_leaf"), 20);
        let events = events(&found);
        assert_eq!(events.len(), 3);
        for event in events {
            assert_eq!((&event["function"], &event["result"]), (&json!("mcptrace_leaf"), &json!(20)));
            assert_eq!(event["pid"], workload.pid());
            assert!(event["latency_ns"].as_u64().unwrap() >= 20_000_000);
        }
    }

    #[test]
    fn other_processes_of_the_same_file_are_told_apart() {
        let (mut watched, mut other) = (workload(), workload());
        let found = around("function_latency", &function("mcptrace_leaf"), &of_pid(watched.pid()), || {
            other.run("leaf 19 0");
            watched.run("leaf 11 0");
        });
        assert_eq!(count(&found, "mcptrace_leaf"), 11);
        let found = around("function_latency", &function("mcptrace_leaf"), &Filter::default(), || {
            other.run("leaf 19 0");
            watched.run("leaf 11 0");
        });
        assert!(count(&found, "mcptrace_leaf") >= 30, "without a filter all that run the file");
    }

    #[test]
    fn a_relative_path_is_as_the_process_sees_it() {
        let mut workload = workload();
        let folder = std::env::current_dir().unwrap();
        let up: String = folder.components().skip(1).map(|_| "../").collect();
        let options = json!({ "binary": format!("./{up}{}", &PROGRAM[1..]), "function": "mcptrace_leaf" });
        let found = around("function_latency", &options, &of_pid(workload.pid()), || drop(workload.run("leaf 7 0")));
        assert_eq!(count(&found, "mcptrace_leaf"), 7);
    }

    #[test]
    fn what_cannot_be_timed_is_named() {
        let refused = |options: Value| try_start("function_latency", &options, &Filter::default()).unwrap_err();
        assert!(refused(json!({ "binary": PROGRAM })).to_string().contains("options.function is missing"));
        let unknown = refused(function("mcptrace_laef"));
        assert_eq!(unknown.did_you_mean(), Some("mcptrace_leaf"), "{unknown}");
        let many = refused(json!({ "binary": "libc", "function": "*" })).to_string();
        assert!(many.contains("functions; at most 100 can be timed at once. Give more of the name"), "{many}");
        let none = refused(json!({ "binary": "/no/such/file", "function": "f" })).to_string();
        assert!(none.contains("options.binary: cannot open `/no/such/file`"), "{none}");
    }

    #[test]
    fn many_functions_attach_and_detach_in_a_bounded_time() {
        let mut workload = workload();
        let begun = std::time::Instant::now();
        let execution =
            start("function_latency", &json!({ "binary": "libc", "function": "get*id*" }), &of_pid(workload.pid()));
        workload.run("leaf 1 0");
        stop(&execution);
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}

mod dns_latency {
    use super::*;

    #[test]
    fn counts_look_ups_by_outcome_and_lists_them_masked() {
        let mut workload = workload();
        let found = around("dns_latency", &json!({}), &of_pid(workload.pid()), || {
            workload.run("lookup 13 127.0.0.1");
            workload.run("lookup 5 no-address.example");
        });
        assert_no_loss(&found);
        let by_outcome = |outcome: &str| one_series(&found, "outcome", outcome).count;
        assert_eq!((by_outcome("found"), by_outcome("failed"), series(&found).len()), (13, 5, 2));
        let events = events(&found);
        assert_eq!(events.len(), 18);
        let failed: Vec<_> = events.iter().filter(|event| event.get("error").is_some()).collect();
        assert_eq!(failed.len(), 5);
        assert!(failed.iter().all(|event| event["error"] == "EAI_NONAME" && event["name"] == failed[0]["name"]));
        assert!(failed[0]["name"].as_str().unwrap().starts_with("<18 bytes #"), "{failed:?}");
        assert!(!serde_json::to_string(&found).unwrap().contains("no-address"), "names are masked");
        assert!(found.notes.iter().any(|note| note.contains("MCPTRACE_REVEAL=names")), "{:?}", found.notes);
    }

    /// The C library's functions call each other: one look-up is one event, of the function that the program called.
    #[test]
    fn a_look_up_is_counted_once_whatever_it_calls() {
        let mut workload = workload();
        let found = around("dns_latency", &json!({}), &of_pid(workload.pid()), || {
            workload.run("by_name 7 localhost");
        });
        assert_no_loss(&found);
        assert_eq!((count(&found, "gethostbyname"), series(&found).len()), (7, 1));
    }

    #[test]
    fn threads_look_up_at_the_same_time() {
        let mut workload = workload();
        let found = around("dns_latency", &json!({}), &of_pid(workload.pid()), || {
            workload.run("lookup_in_threads 17 localhost");
        });
        assert_no_loss(&found);
        assert_eq!((count(&found, "getaddrinfo"), events(&found).len()), (17, 17));
    }

    #[test]
    fn only_slow_ones_are_events_when_asked_for() {
        let mut workload = workload();
        let found =
            around("dns_latency", &json!({ "slower_than_us": 3_600_000_000_u64 }), &of_pid(workload.pid()), || {
                workload.run("lookup 11 127.0.0.1");
            });
        assert_no_loss(&found);
        assert_eq!(count(&found, "getaddrinfo"), 11);
        assert!(events(&found).is_empty(), "{:?}", found.events);
    }
}

mod usdt_events {
    use super::*;

    #[test]
    fn a_probe_is_switched_on_and_its_arguments_are_read() {
        let mut workload = workload();
        workload.run("busy 0");
        workload.run("usdt 5 11");
        let options = json!({ "binary": PROGRAM, "usdt": "mcptrace:tick" });
        let found = around("usdt_events", &options, &of_pid(workload.pid()), || {
            workload.run("busy 1");
            workload.run("usdt 23 1009");
        });
        assert_no_loss(&found);
        workload.run("busy 0");
        let events = events(&found);
        assert_eq!(events.len(), 23);
        for event in events {
            assert_eq!((&event["usdt"], &event["pid"]), (&json!("mcptrace:tick"), &json!(workload.pid())));
            let arguments = event["arguments"].as_array().unwrap();
            assert_eq!(arguments[..4], [json!(1009), json!(-1009), json!(3027), json!(-7)]);
            assert!(arguments[4].as_u64().unwrap() > 4096, "a pointer: {event:?}");
        }
    }

    #[test]
    fn texts_are_read_where_asked_for_and_masked() {
        let mut workload = workload();
        // The first argument points nowhere.
        let options = json!({ "binary": PROGRAM, "usdt": "mcptrace:tick", "texts": "4,0" });
        let found = around("usdt_events", &options, &of_pid(workload.pid()), || {
            workload.run("usdt 11 1009");
        });
        assert_no_loss(&found);
        let events = events(&found);
        assert_eq!(events.len(), 11);
        for event in events {
            assert!(event["arguments"][4].as_str().unwrap().starts_with("<7 bytes #"), "{event:?}");
            assert_eq!((&event["arguments"][0], &event["arguments"][1]), (&Value::Null, &json!(-1009)));
        }
        assert!(!serde_json::to_string(&found).unwrap().contains("hunter2"));
        assert!(found.notes.iter().any(|note| note.contains("MCPTRACE_REVEAL=texts")), "{:?}", found.notes);
    }

    #[test]
    fn without_a_binary_it_is_the_processs_own() {
        let mut workload = workload();
        let found = around("usdt_events", &json!({}), &of_pid(workload.pid()), || {
            workload.run("usdt 7 3");
        });
        assert_no_loss(&found);
        assert_eq!(events(&found).len(), 7);
        let refused = try_start("usdt_events", &json!({}), &Filter::default()).unwrap_err().to_string();
        assert!(refused.contains("options.binary is missing"), "{refused}");
    }

    #[test]
    fn a_glob_takes_all_places_and_others_processes_are_left_out() {
        let (mut watched, mut other) = (workload(), workload());
        let found = around("usdt_events", &json!({ "binary": PROGRAM, "usdt": "*:*" }), &of_pid(watched.pid()), || {
            other.run("usdt 7 3");
            watched.run("usdt 13 5");
        });
        assert_no_loss(&found);
        assert_eq!(events(&found).len(), 13);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let refused = |options: Value| try_start("usdt_events", &options, &Filter::default()).unwrap_err();
        let unknown = refused(json!({ "binary": PROGRAM, "usdt": "mcptrace:tik" }));
        assert_eq!(unknown.did_you_mean(), Some("mcptrace:tick"), "{unknown}");
        let none = refused(json!({ "binary": "/bin/true", "usdt": "a:b" })).to_string();
        assert!(none.contains("`/bin/true` has no USDT probes"), "{none}");
    }
}
