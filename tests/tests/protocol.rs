//! What the server says to its clients: tools, results, errors, resources. One process, in-memory streams.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeSet, process::Command, sync::Arc, time::Duration};

use mcptrace::{
    executions::{Executions, Limits},
    principal::Principal,
    probes::PROBES,
    scripts::{self, library},
    server::{self, Hub},
};
use mcptrace_tests::mcp::{Answer, Client};
use serde_json::{Map, Value, json};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/tools.json");
/// What every client pays on every turn, at most.
const TOOLS_BYTES: usize = 18 << 10;
/// How many tools there are.
const TOOLS: usize = 10;

fn executions() -> Arc<Executions> {
    Arc::new(Executions::new(Limits::default()))
}

async fn client() -> Client {
    Client::in_process(&executions()).await
}

async fn tools(client: &mut Client) -> Vec<Value> {
    let listed = client.request("tools/list", json!({})).await;
    listed["result"]["tools"].as_array().unwrap().clone()
}

/// The category of a tool error.
fn category(answer: &Answer) -> &str {
    assert!(answer.is_error, "{}", answer.text);
    answer.structured["category"].as_str().unwrap()
}

mod tools_list {
    use super::*;

    #[tokio::test]
    async fn is_as_recorded() {
        let found = serde_json::to_string_pretty(&tools(&mut client().await).await).unwrap() + "\n";
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(SNAPSHOT, &found).unwrap();
        }
        let recorded = std::fs::read_to_string(SNAPSHOT).unwrap_or_default();
        assert!(found == recorded, "tools/list has changed: look at it with UPDATE=1 and git diff {SNAPSHOT}");
    }

    #[tokio::test]
    async fn is_small() {
        let bytes = client().await.request("tools/list", json!({})).await["result"].to_string().len();
        assert!(bytes < TOOLS_BYTES, "{bytes}");
    }

    /// A field without a type takes anything, which strict clients warn of.
    #[tokio::test]
    async fn every_field_says_what_it_is() {
        fn check(schema: &Value, path: &str) {
            let says = ["type", "enum", "anyOf"].iter().any(|key| schema.get(key).is_some());
            assert!(says && !schema["type"].is_array(), "{path}: {schema}");
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                check(field, &format!("{path}.{name}"));
            }
            schema.get("items").into_iter().for_each(|item| check(item, &format!("{path}[]")));
        }
        for tool in tools(&mut client().await).await {
            for key in ["inputSchema", "outputSchema"] {
                check(&tool[key], &format!("{}.{key}", tool["name"]));
            }
        }
    }

    #[tokio::test]
    async fn annotations_are_honest() {
        let tools = tools(&mut client().await).await;
        let hint = |name: &str, hint: &str| {
            tools.iter().find(|tool| tool["name"] == name).unwrap()["annotations"][hint].clone()
        };
        for name in ["get_result", "list_executions"] {
            assert_eq!(hint(name, "readOnlyHint"), true, "{name}");
        }
        // Listing and describing mount tracefs where it is not; running attaches programs.
        for name in ["run_probe", "exec_program", "stop_execution", "list_probes", "describe_probe", "bpf_info"] {
            assert_eq!(
                (hint(name, "readOnlyHint"), hint(name, "destructiveHint")),
                (json!(false), json!(false)),
                "{name}"
            );
        }
        assert_eq!(
            (hint("run_probe", "idempotentHint"), hint("stop_execution", "idempotentHint")),
            (json!(false), json!(true))
        );
        assert!(tools.iter().all(|tool| tool["annotations"]["openWorldHint"] == false));
    }

    #[tokio::test]
    async fn the_originals_tools_have_the_originals_arguments() {
        let tools = tools(&mut client().await).await;
        for (name, arguments) in [
            ("list_probes", &["filter"][..]),
            ("bpf_info", &[]),
            ("exec_program", &["program", "timeout"]),
            ("get_result", &["execution_id", "offset", "limit"]),
        ] {
            let tool = tools.iter().find(|tool| tool["name"] == name).unwrap();
            for argument in arguments {
                assert!(tool["inputSchema"]["properties"][argument].is_object(), "{name}: {argument}");
            }
        }
    }
}

mod versions {
    use super::*;

    #[tokio::test]
    async fn each_with_initialize_is_spoken() {
        for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
            let mut client = Client::connect(&executions(), "tester");
            let begun = client.initialize(version).await;
            assert_eq!(begun["protocolVersion"], version);
            assert!(begun["instructions"].as_str().unwrap().contains("run_probe"));
            assert!(begun["capabilities"]["prompts"].is_object());
            assert_eq!(tools(&mut client).await.len(), TOOLS);
            assert!(!client.tool("list_executions", json!({})).await.is_error);
        }
    }

    fn stateless(extra: Value) -> Value {
        let mut params = json!({ "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": { "name": "tests", "version": "1" },
        } });
        params.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        params
    }

    #[tokio::test]
    async fn the_stateless_one_needs_no_beginning() {
        let executions = executions();
        let mut client = Client::connect(&executions, "tester");
        let found = client.request("server/discover", stateless(json!({}))).await;
        let versions = found["result"]["supportedVersions"].as_array().unwrap();
        assert!(versions.contains(&json!("2026-07-28")), "{found}");
        let arguments = json!({ "probe": "syscall_counts", "seconds": 100, "background": true });
        let call = stateless(json!({ "name": "run_probe", "arguments": arguments }));
        let begun = Answer::of(&client.request("tools/call", call).await).success();
        // Another connection of the same principal: what lives longer than a call has an id.
        let mut other = Client::connect(&executions, "tester");
        let arguments = json!({ "execution_id": begun["execution_id"] });
        let call = stateless(json!({ "name": "stop_execution", "arguments": arguments }));
        assert_eq!(Answer::of(&other.request("tools/call", call).await).success()["status"], "stopped");
        let missing = other.request("resources/read", stateless(json!({ "uri": "mcptrace://nothing" }))).await;
        assert_eq!(missing["error"]["code"], -32602);
    }

    #[tokio::test]
    async fn neither_kind_has_methods_of_the_other() {
        let mut client = Client::connect(&executions(), "tester");
        client.request("server/discover", stateless(json!({}))).await;
        for method in ["initialize", "resources/subscribe", "resources/unsubscribe", "ping", "logging/setLevel"] {
            let answer = client.request(method, stateless(json!({}))).await;
            assert_eq!(answer["error"]["code"], -32601, "{method}: {answer}");
        }
        let listen = client.request("subscriptions/listen", stateless(json!({}))).await;
        assert_eq!(listen["error"]["code"], -32602, "it is there, without the parameters that it wants: {listen}");
        let mut old = super::client().await;
        for (method, code) in [("subscriptions/listen", -32601), ("resources/subscribe", -32602)] {
            let answer = old.request(method, json!({})).await;
            assert_eq!(answer["error"]["code"], code, "{method}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_batch_is_answered_message_by_message() {
        let mut client = Client::connect(&executions(), "tester");
        client.initialize("2025-03-26").await;
        let ping = |id: &str| json!({ "jsonrpc": "2.0", "id": id, "method": "ping" });
        client.send(&json!([ping("a"), ping("b")])).await;
        let ids: BTreeSet<String> =
            [client.next().await, client.next().await].map(|answer| answer["id"].to_string()).into();
        assert_eq!(ids.len(), 2);
    }

    #[tokio::test]
    async fn the_sdks_own_client_runs_a_probe() {
        use rmcp::{ServiceExt as _, model::CallToolRequestParams};
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let end = tokio_util::sync::CancellationToken::new();
        tokio::spawn(async move {
            let (streams, hub) = (tokio::io::split(theirs), Hub::new(executions()));
            server::serve(streams, &hub, Principal::stdio(), end).await
        });
        let client = ().serve(ours).await.unwrap();
        assert_eq!(client.list_all_tools().await.unwrap().len(), TOOLS);
        let arguments = json!({ "probe": "syscall_counts", "seconds": 0.2 }).as_object().unwrap().clone();
        let answer = client.call_tool(CallToolRequestParams::new("run_probe").with_arguments(arguments)).await.unwrap();
        assert_eq!(answer.is_error, Some(false));
        client.cancel().await.unwrap();
    }
}

mod results {
    use super::*;

    /// Calls a tool and checks its answer, success or error, against the schema that it has published.
    async fn checked(client: &mut Client, tools: &[Value], name: &str, arguments: Value) -> Answer {
        let tool = tools.iter().find(|tool| tool["name"] == name).unwrap();
        let answer = client.tool(name, arguments).await;
        jsonschema::validate(&tool["outputSchema"], &answer.structured)
            .unwrap_or_else(|error| panic!("{name}: {error}: {}", answer.structured));
        answer
    }

    #[tokio::test]
    async fn fit_their_schemas_and_so_do_errors() {
        let mut client = client().await;
        let tools = tools(&mut client).await;
        let mut call = async |name, arguments| checked(&mut client, &tools, name, arguments).await;
        for probe in ["syscall_counts", "syscall_latency", "file_opens", "block_latency", "runq_latency"] {
            call("run_probe", json!({ "probe": probe, "seconds": 0.2 })).await.success();
            call("describe_probe", json!({ "name": probe })).await.success();
        }
        let id = call("exec_program", json!({ "program": "BEGIN { printf(\"x\\n\"); exit(); }" })).await.success();
        call("get_result", json!({ "execution_id": id["execution_id"], "wait_seconds": 30 })).await.success();
        call("stop_execution", json!({ "execution_id": id["execution_id"] })).await.success();
        call("describe_probe", json!({ "name": "tracepoint:sched:sched_switch" })).await.success();
        for arguments in [json!({}), json!({ "filter": "sched:*", "limit": 3 }), json!({ "source": "scripts" })] {
            call("list_probes", arguments).await.success();
        }
        call("list_executions", json!({})).await.success();
        call("bpf_info", json!({})).await.success();
        for tool in &tools {
            let answer = call(tool["name"].as_str().unwrap(), json!({ "no_such_argument": 1 })).await;
            assert_eq!(category(&answer), "unknown_argument");
        }
    }

    #[tokio::test]
    async fn a_schema_of_results_refuses_what_is_neither_result_nor_error() {
        let tools = tools(&mut client().await).await;
        for tool in &tools {
            assert!(!jsonschema::is_valid(&tool["outputSchema"], &json!({ "message": "x" })), "{}", tool["name"]);
        }
    }

    #[tokio::test]
    async fn a_probe_finds_exactly_what_happened_and_pages_cover_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("mcptrace-paged-").display().to_string();
        let mut client = client().await;
        let arguments = json!({ "probe": "file_opens", "options": { "path_prefix": prefix }, "seconds": 600, "background": "true" });
        let begun = client.tool("run_probe", arguments).await.success();
        let id = begun["execution_id"].clone();
        for number in 0..23 {
            let made = std::fs::File::open(format!("{prefix}{number}"));
            assert!(made.is_err(), "there is none");
        }
        let stopped = client.tool("stop_execution", json!({ "execution_id": id })).await.success();
        assert_eq!((&stopped["loss"]["seen"], &stopped["loss"]["delivered"]), (&json!(23), &json!(23)));
        let mut paths = Vec::new();
        let mut arguments = json!({ "execution_id": id, "limit": 7 });
        loop {
            let page = client.tool("get_result", arguments.clone()).await.success();
            let rows = page["report"]["rows"].as_array().unwrap();
            paths.extend(rows.iter().map(|row| row["path"].as_str().unwrap().to_owned()));
            let Some(cursor) = page["more"].get("cursor") else { break };
            arguments["cursor"] = cursor.clone();
        }
        let want: Vec<String> = (0..23).map(|number| format!("{prefix}{number}")).collect();
        assert_eq!(paths, want);
        // Where not even one row has room, it is not skipped.
        let small = json!({ "execution_id": id, "limit": 3, "max_bytes": 1024, "cursor": "e5" });
        let small = client.tool("get_result", small).await.success();
        let shown = small["report"]["rows"].as_array().map_or(0, Vec::len);
        assert_eq!(small["more"], json!({ "rows_left": 18 - shown, "cursor": format!("e{}", 5 + shown) }));
        let past = client.tool("get_result", json!({ "execution_id": id, "offset": 1_000_000 })).await.success();
        assert_eq!(past["report"]["rows"], json!([]), "past the end is an empty page");
        let foreign = client.tool("get_result", json!({ "execution_id": id, "cursor": "r3" })).await;
        assert_eq!(category(&foreign), "invalid_cursor");
    }

    #[tokio::test]
    async fn an_answer_is_no_larger_than_asked_for() {
        let mut client = client().await;
        let begun = client.tool("run_probe", json!({ "probe": "syscall_latency", "seconds": 0.3 })).await.success();
        let id = begun["execution_id"].clone();
        for most in [1024, 2048, 5000, 24_576] {
            let answer = client.tool("get_result", json!({ "execution_id": id, "max_bytes": most })).await;
            assert!(!answer.is_error && answer.bytes() <= most, "{} of {most}: {}", answer.bytes(), answer.text);
            assert!(answer.text.len() <= 4096);
        }
        let program = "BEGIN { @long[1] = count(); unroll(20) { @n = @n + 1; printf(\"%s %d\\n\", \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", @n); } exit(); }";
        let begun = client.tool("exec_program", json!({ "program": program })).await.success();
        let id = begun["execution_id"].clone();
        client.tool("get_result", json!({ "execution_id": id, "wait_seconds": 30 })).await.success();
        let mut lines = Vec::new();
        loop {
            let arguments = json!({ "execution_id": id, "offset": lines.len(), "max_bytes": 2048 });
            let answer = client.tool("get_result", arguments).await;
            assert!(answer.bytes() <= 2048, "{}", answer.bytes());
            let found = answer.success();
            lines.extend(found["output"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()));
            if found["has_more"] == false {
                assert_eq!(found["lines_total"], lines.len());
                break;
            }
        }
        let numbered = lines.iter().filter(|line| line.starts_with("aaa")).count();
        assert_eq!(numbered, 20, "every line comes once: {lines:?}");
    }

    /// More than is kept: the number is of what came, and `has_more` tells where what is kept ends.
    #[tokio::test]
    async fn lines_that_are_not_kept_are_counted() {
        let mut client = client().await;
        let many = "$i = 0; while ($i < 5500) { printf(\"x\\n\"); $i++; }";
        let program = format!("BEGIN {{ {many} }} interval:s:1 {{ {many} @n++; if (@n == 3) {{ exit(); }} }}");
        let begun = client.tool("exec_program", json!({ "program": program })).await.success();
        let arguments =
            json!({ "execution_id": begun["execution_id"], "wait_seconds": 30, "offset": 9990, "limit": 100 });
        let found = client.tool("get_result", arguments).await.success();
        assert_eq!((&found["status"], &found["lines_returned"]), (&json!("completed"), &json!(10)), "{found}");
        assert_eq!(found["has_more"], false);
        assert!(found["lines_total"].as_u64().unwrap() > 10_000, "{}", found["lines_total"]);
    }

    #[tokio::test]
    async fn options_that_nothing_matches_are_a_result_that_says_so() {
        let arguments = json!({ "probe": "syscall_latency", "options": { "syscall": "acct" }, "seconds": 0.2 });
        let found = client().await.tool("run_probe", arguments).await.success();
        assert_eq!((&found["report"]["series"], &found["loss"]["seen"]), (&json!([]), &json!(0)));
        assert!(
            found["notes"].to_string().contains("nothing matched the options while this ran"),
            "{}",
            found["notes"]
        );
    }

    #[tokio::test]
    async fn a_filter_that_nothing_matches_is_a_result_that_says_so() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let arguments = json!({ "probe": "file_opens", "filter": { "pid": sleeper.id().to_string() }, "seconds": 0.2 });
        let answer = client().await.tool("run_probe", arguments).await;
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(!answer.is_error, "{}", answer.text);
        assert_eq!((&answer.structured["report"]["rows"], &answer.structured["loss"]["seen"]), (&json!([]), &json!(0)));
        let notes = answer.structured["notes"].to_string();
        assert!(notes.contains("filter"), "{notes}");
    }

    #[tokio::test]
    async fn numbers_booleans_and_objects_may_come_as_strings() {
        let arguments = json!({ "probe": "syscall_latency", "seconds": "0.2", "top": "3", "background": "false",
            "options": "{\"slower_than_us\": \"100000\"}", "filter": "{\"uid\": \"0\"}" });
        let found = client().await.tool("run_probe", arguments).await.success();
        assert_eq!((&found["options"]["slower_than_us"], &found["filter"]["uid"]), (&json!(100_000), &json!(0)));
    }
}

mod library_scripts {
    use super::*;

    #[tokio::test]
    async fn are_listed_with_what_they_answer_and_the_hosts_tools_beside_them() {
        let mut client = client().await;
        let listed = client.tool("list_probes", json!({ "source": "scripts" })).await.success();
        let scripts = listed["scripts"].as_array().unwrap();
        let own = scripts.iter().filter(|script| script.get("path").is_none()).count();
        assert_eq!((own, listed["total"].as_u64().unwrap()), (library().len(), scripts.len() as u64));
        assert!(scripts.iter().all(|script| !script["question"].as_str().unwrap().is_empty()));
        let found = client.tool("list_probes", json!({ "source": "scripts", "filter": "inotify" })).await.success();
        assert!(found.get("scripts").is_none(), "it is not in a question: {found}");
        let found = client.tool("list_probes", json!({ "source": "scripts", "filter": "round trip" })).await.success();
        assert_eq!(found["scripts"][0]["name"], "tcp_round_trip");
        assert!(client.tool("list_probes", json!({})).await.success().get("scripts").is_none(), "only when asked for");
    }

    #[tokio::test]
    async fn are_described_with_how_to_read_them() {
        let described = client().await.tool("describe_probe", json!({ "name": "syscall_stacks" })).await;
        assert!(described.text.contains("example: exec_program {\"script\":\"syscall_stacks\""), "{}", described.text);
        let described = described.success();
        assert_eq!((&described["kind"], &described["pid"]), (&json!("script"), &json!("required")));
        assert_eq!(described["hooks"], json!(["tracepoint:raw_syscalls:sys_enter"]));
    }

    #[tokio::test]
    async fn run_by_name_for_one_process() {
        let mut client = client().await;
        let mut sleeper = Command::new("sh").args(["-c", "while :; do sleep 0.05; done"]).spawn().unwrap();
        let arguments = json!({ "script": "thread_starts", "pid": sleeper.id(), "timeout": 2 });
        let begun = client.tool("exec_program", arguments).await.success();
        assert!(begun["read"].as_str().unwrap().contains("@threads"), "{begun}");
        let wait = json!({ "execution_id": begun["execution_id"], "wait_seconds": 40 });
        let found = client.tool("get_result", wait).await.success();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let rows = &found["reports"][0]["rows"];
        assert_eq!((&rows[0]["key2"], rows.as_array().unwrap().len()), (&json!(sleeper.id()), 1), "{found}");
        assert_eq!(found["options"], json!({ "script": "thread_starts", "pid": sleeper.id() }), "{found}");
    }
}

mod prompts {
    use super::*;

    #[tokio::test]
    async fn are_listed_with_their_arguments() {
        let listed = client().await.request("prompts/list", json!({})).await;
        let prompts = listed["result"]["prompts"].as_array().unwrap();
        assert_eq!(prompts.len(), 10);
        assert!(prompts.iter().all(|prompt| prompt["description"].is_string() && prompt["title"].is_string()));
        let requests = prompts.iter().find(|prompt| prompt["name"] == "slow_requests").unwrap();
        assert_eq!(
            (&requests["arguments"][0]["name"], &requests["arguments"][0]["required"]),
            (&json!("pid"), &json!(true))
        );
    }

    #[tokio::test]
    async fn are_filled_in_or_refused() {
        let mut client = client().await;
        let ask = |name: &str, arguments: Value| json!({ "name": name, "arguments": arguments });
        let got = client.request("prompts/get", ask("what_does_it_do", json!({ "pid": "4242" }))).await;
        let text = got["result"]["messages"][0]["content"]["text"].as_str().unwrap();
        assert!(text.contains(r#"run_probe {"probe":"syscall_counts","filter":{"pid":4242}}"#), "{text}");
        for (name, arguments) in
            [("what_does_it_do", json!({})), ("high_cpu", json!({ "pid": "x" })), ("none", json!({}))]
        {
            let refused = client.request("prompts/get", ask(name, arguments)).await;
            assert_eq!(refused["error"]["code"], -32602, "{name}");
        }
    }

    #[tokio::test]
    async fn complete_processes_and_commands() {
        let mut client = client().await;
        let ask = |argument: &str, value: &str| {
            let reference = json!({ "type": "ref/prompt", "name": "high_cpu" });
            json!({ "ref": reference, "argument": { "name": argument, "value": value } })
        };
        let own = std::process::id().to_string();
        let found = client.request("completion/complete", ask("pid", &own)).await;
        assert_eq!(found["result"]["completion"]["values"][0], own.as_str());
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let found = client.request("completion/complete", ask("comm", &comm[..4])).await;
        assert!(found["result"]["completion"]["values"].as_array().unwrap().contains(&json!(comm.trim())), "{found}");
        assert_eq!(client.request("completion/complete", ask("device", "")).await["error"]["code"], -32602);
    }
}

mod bad_input {
    use super::*;

    /// Tool, arguments, category, words of the message, and the nearest name.
    type Case = (&'static str, Value, &'static str, &'static str, Option<&'static str>);

    async fn check(cases: impl IntoIterator<Item = Case>) {
        let mut client = client().await;
        for (tool, arguments, want, words, near) in cases {
            let answer = client.tool(tool, arguments.clone()).await;
            assert_eq!(category(&answer), want, "{arguments}: {}", answer.text);
            assert!(answer.text.contains(words), "{arguments}: {}", answer.text);
            if let Some(near) = near {
                assert_eq!(answer.structured["did_you_mean"][0], near, "{arguments}");
            }
        }
        let listed = client.tool("list_executions", json!({})).await.success();
        assert_eq!(listed["executions"], json!([]), "nothing was started");
    }

    #[tokio::test]
    async fn unknown_names_get_the_nearest() {
        check([
            ("run_probe", json!({ "probe": "file_open" }), "unknown_probe", "file_open", Some("file_opens")),
            ("describe_probe", json!({ "name": "runq" }), "unknown_probe", "runq", Some("runq_latency")),
            (
                "describe_probe",
                json!({ "name": "tracepoint:sched:sched_swich" }),
                "unknown_probe",
                "sched_swich",
                Some("tracepoint:sched:sched_switch"),
            ),
            (
                "run_probe",
                json!({ "probe": "file_opens", "options": { "failed_onyl": true } }),
                "unknown_option",
                "it takes failed_only",
                Some("failed_only"),
            ),
            (
                "run_probe",
                json!({ "probe": "file_opens", "options": { "by": "pid" } }),
                "unknown_option",
                "takes no option `by`",
                None,
            ),
            (
                "run_probe",
                json!({ "probe": "file_opens", "filter": { "pidd": 5 } }),
                "unknown_argument",
                "filter.pidd",
                Some("filter.pid"),
            ),
            ("run_probe", json!({ "probe": "file_opens", "second": 5 }), "unknown_argument", "second", Some("seconds")),
            (
                "run_probe",
                json!({ "probe": "runq_latency", "options": { "by": "process" } }),
                "invalid_argument",
                "options.by",
                None,
            ),
            (
                "run_probe",
                json!({ "probe": "syscall_latency", "options": { "syscall": "opneat" } }),
                "invalid_option",
                "options.syscall",
                Some("openat"),
            ),
            ("get_result", json!({ "execution_id": "exec_0" }), "unknown_execution", "exec_0", None),
            ("stop_execution", json!({ "execution_id": "" }), "unknown_execution", "list_executions", None),
            (
                "exec_program",
                json!({ "script": "tcp_rount_trip" }),
                "unknown_script",
                "tcp_rount",
                Some("tcp_round_trip"),
            ),
            ("exec_program", json!({ "script": "slab_growth", "pid": 1 }), "invalid_argument", "leave `pid` out", None),
            ("exec_program", json!({ "script": "syscall_stacks" }), "invalid_argument", "give its `pid`", None),
            ("exec_program", json!({ "program": "BEGIN{}", "pid": 1 }), "invalid_argument", "goes with `script`", None),
        ])
        .await;
    }

    #[tokio::test]
    async fn seconds_must_be_a_time() {
        let run = |seconds: Value| json!({ "probe": "file_opens", "seconds": seconds });
        let bad = [
            json!(0),
            json!(-1),
            json!(1e12),
            json!("soon"),
            json!("NaN"),
            json!("inf"),
            json!([5]),
            json!(true),
            json!(50.1),
        ];
        check(bad.map(|seconds| ("run_probe", run(seconds), "invalid_seconds", "seconds", None))).await;
    }

    #[tokio::test]
    async fn what_does_not_fit_is_named() {
        let file_opens = |filter: Value| json!({ "probe": "file_opens", "filter": filter });
        check([
            ("run_probe", json!({}), "missing_argument", "`probe` is missing", None),
            ("run_probe", json!({ "probe": 5 }), "invalid_argument", "`probe` must be a string", None),
            (
                "run_probe",
                file_opens(json!({ "pid": 2_147_483_600 })),
                "invalid_filter",
                "there is no process 2147483600",
                None,
            ),
            ("run_probe", file_opens(json!({ "pid": -5 })), "invalid_argument", "filter.pid", None),
            ("run_probe", file_opens(json!({ "pid": "init" })), "invalid_argument", "filter.pid", None),
            ("run_probe", file_opens(json!({ "comm": "a_name_longer_than_15" })), "invalid_filter", "15 bytes", None),
            ("run_probe", file_opens(json!(["pid", 5])), "invalid_argument", "`filter` must be an object", None),
            ("run_probe", json!({ "probe": "file_opens", "top": 0 }), "invalid_argument", "at least 1", None),
            ("run_probe", json!({ "probe": "file_opens", "max_bytes": 10 }), "invalid_argument", "1024", None),
            ("get_result", json!({ "execution_id": "x", "offset": -1 }), "invalid_argument", "offset", None),
            ("exec_program", json!({}), "missing_argument", "program", None),
            (
                "exec_program",
                json!({ "program": "BEGIN{}", "script": "a" }),
                "invalid_argument",
                "exclude each other",
                None,
            ),
            ("list_probes", json!({ "source": "kernal" }), "invalid_argument", "source", Some("kernel")),
            ("list_probes", json!({ "filter": "sched:*", "cursor": "nonsense" }), "invalid_cursor", "cursor", None),
            ("list_probes", json!({ "cursor": "nonsense" }), "invalid_cursor", "cursor", None),
        ])
        .await;
    }

    #[tokio::test]
    async fn scripts_are_refused_with_their_place() {
        check([
            ("exec_program", json!({ "program": "BEGIN { printf(\"hi\\n\" }" }), "syntax", "line 1, column 23", None),
            (
                "exec_program",
                json!({ "program": "tracepoint:sched:sched_swich { @ = count(); }" }),
                "unknown_probe",
                "sched_swich",
                None,
            ),
            ("exec_program", json!({ "program": "BEGIN { system(\"id\"); }" }), "policy", "system", None),
            ("exec_program", json!({ "program": "   " }), "missing_argument", "program", None),
            ("exec_program", json!({ "program": "BEGIN {}\0" }), "invalid_program", "", None),
        ])
        .await;
    }

    #[tokio::test]
    async fn a_script_of_ten_megabytes_is_refused() {
        let program = format!("BEGIN {{ {} }}", "@a = 1; ".repeat(10 << 17));
        check([("exec_program", json!({ "program": program }), "invalid_program", "bytes", None)]).await;
    }

    #[tokio::test]
    async fn cursors_are_checked() {
        let mut client = client().await;
        let run = json!({ "probe": "syscall_counts", "seconds": 0.2 });
        let id = client.tool("run_probe", run).await.success()["execution_id"].clone();
        for cursor in ["nonsense", "e", "r-5", "e5", "r99999999999999999999"] {
            let answer = client.tool("get_result", json!({ "execution_id": id, "cursor": cursor })).await;
            assert_eq!(category(&answer), "invalid_cursor", "{cursor}");
            assert!(answer.structured["remedy"].is_string());
        }
        let both = client.tool("get_result", json!({ "execution_id": id, "cursor": "r1", "offset": 1 })).await;
        assert_eq!(category(&both), "invalid_cursor");
        let past = client.tool("get_result", json!({ "execution_id": id, "cursor": "r99999" })).await.success();
        assert_eq!(past["report"]["rows"], json!([]));
    }

    #[tokio::test]
    async fn an_expired_execution_says_that_it_has_expired() {
        let limits = Limits { keep: Duration::ZERO, ..Limits::default() };
        let mut client = Client::in_process(&Arc::new(Executions::new(limits))).await;
        let run = json!({ "probe": "syscall_counts", "seconds": 0.1 });
        let id = client.tool("run_probe", run).await.success()["execution_id"].clone();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let answer = client.tool("get_result", json!({ "execution_id": id })).await;
        assert_eq!(category(&answer), "expired_execution");
    }

    #[tokio::test]
    async fn no_more_run_than_may() {
        let limits = Limits { running: 1, ..Limits::default() };
        let mut client = Client::in_process(&Arc::new(Executions::new(limits))).await;
        let run = json!({ "probe": "syscall_counts", "seconds": 60, "background": true });
        let id = client.tool("run_probe", run.clone()).await.success()["execution_id"].clone();
        assert_eq!(category(&client.tool("run_probe", run.clone()).await), "busy");
        client.tool("stop_execution", json!({ "execution_id": id })).await.success();
        let again = client.tool("run_probe", run).await.success()["execution_id"].clone();
        client.tool("stop_execution", json!({ "execution_id": again })).await.success();
    }

    #[tokio::test]
    async fn broken_protocol_is_a_protocol_error() {
        let mut client = client().await;
        for (method, params, code) in [
            ("tools/call", json!({ "name": "run_prob" }), -32602),
            ("tools/call", json!({ "name": 5 }), -32602),
            ("tools/call", json!({ "name": "run_probe", "arguments": [] }), -32602),
            ("tools/list", json!({ "cursor": "x" }), -32602),
            ("tools/cal", json!({}), -32601),
            ("prompts/lists", json!({}), -32601),
            ("resources/read", json!({ "uri": "mcptrace://probes/nothing" }), -32002),
            ("resources/read", json!({ "uri": "file:///etc/passwd" }), -32002),
            ("resources/read", json!({}), -32602),
        ] {
            let answer = client.request(method, params.clone()).await;
            assert_eq!(answer["error"]["code"], code, "{method} {params}: {answer}");
        }
        let near = client.request("tools/call", json!({ "name": "run_prob" })).await;
        assert_eq!(near["error"]["data"]["did_you_mean"], "run_probe");
    }

    #[tokio::test]
    async fn a_script_that_this_kernel_cannot_attach_is_refused_at_once() {
        let mut client = client().await;
        let program = "kprobe:vfs_read, tracepoint:sched:sched_switch { @ = count(); }";
        let kprobes = std::path::Path::new("/sys/kernel/tracing/kprobe_events").exists();
        let answer = client.tool("exec_program", json!({ "program": program, "timeout": 1 })).await;
        assert_eq!(answer.is_error, !kprobes, "{}", answer.text);
        assert!(
            kprobes || answer.text.contains("`kprobe:vfs_read` cannot attach here: needs kprobes"),
            "{}",
            answer.text
        );
    }

    #[tokio::test]
    async fn many_who_look_keep_nobody_from_running() {
        let mut client = client().await;
        for number in 0..200 {
            let tool = ["bpf_info", "list_probes"][number % 2];
            let arguments = if number % 2 == 0 { json!({}) } else { json!({ "filter": "*vfs*" }) };
            client.start_tool(tool, arguments).await;
        }
        let started = std::time::Instant::now();
        let found = client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.1 })).await.success();
        assert_eq!(found["status"], "completed");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

mod executions_of_others {
    use super::*;

    #[tokio::test]
    async fn are_as_unknown_as_those_that_never_were() {
        let executions = executions();
        let mut mine = Client::in_process_as(&executions, "me").await;
        let mut theirs = Client::in_process_as(&executions, "them").await;
        let run = json!({ "probe": "syscall_counts", "seconds": 60, "background": true });
        let id = mine.tool("run_probe", run).await.success()["execution_id"].clone();
        for tool in ["get_result", "stop_execution"] {
            let answer = theirs.tool(tool, json!({ "execution_id": id })).await;
            assert_eq!(category(&answer), "unknown_execution");
        }
        assert_eq!(theirs.tool("list_executions", json!({})).await.success()["executions"], json!([]));
        let uri = format!("mcptrace://executions/{}", id.as_str().unwrap());
        assert_eq!(theirs.request("resources/read", json!({ "uri": uri })).await["error"]["code"], -32002);
        let stopped = mine.tool("stop_execution", json!({ "execution_id": id })).await.success();
        assert_eq!(stopped["status"], "stopped", "nobody else could stop it");
    }
}

mod progress {
    use super::*;

    #[tokio::test]
    async fn is_told_while_a_call_waits_and_rises() {
        let mut client = client().await;
        client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 2.5 })).await.success();
        let told: Vec<&Value> =
            client.others.iter().filter(|message| message["method"] == "notifications/progress").collect();
        assert!(!told.is_empty(), "{:?}", client.others);
        let progress: Vec<f64> = told.iter().map(|message| message["params"]["progress"].as_f64().unwrap()).collect();
        assert!(progress.is_sorted_by(|a, b| a < b), "{progress:?}");
        assert_eq!(told[0]["params"]["total"], 2.5);
        assert!(told[0]["params"]["message"].as_str().unwrap().contains("seen"), "{}", told[0]);
    }

    #[tokio::test]
    async fn is_not_told_to_those_who_did_not_ask() {
        let mut client = client().await;
        let params = json!({ "name": "run_probe", "arguments": { "probe": "syscall_counts", "seconds": 1.5 } });
        client.request("tools/call", params).await;
        assert!(client.others.is_empty(), "{:?}", client.others);
    }

    #[tokio::test]
    async fn waiting_for_a_result_ends_with_the_execution() {
        let mut client = client().await;
        let run = json!({ "probe": "syscall_counts", "seconds": 1, "background": true });
        let id = client.tool("run_probe", run).await.success()["execution_id"].clone();
        let wait = json!({ "execution_id": id, "wait_seconds": 50 });
        assert_eq!(client.tool("get_result", wait).await.success()["status"], "completed");
    }

    #[tokio::test]
    async fn cancelling_a_wait_leaves_the_execution_alone() {
        let mut client = client().await;
        let run = json!({ "probe": "syscall_counts", "seconds": 60, "background": true });
        let id = client.tool("run_probe", run).await.success()["execution_id"].clone();
        let wait = client.start_tool("get_result", json!({ "execution_id": id, "wait_seconds": 50 })).await;
        let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": wait } });
        client.send(&cancel).await;
        let found = client.tool("get_result", json!({ "execution_id": id })).await.success();
        assert_eq!(found["status"], "running");
        client.tool("stop_execution", json!({ "execution_id": id })).await.success();
    }
}

mod resources {
    use super::*;

    async fn read(client: &mut Client, uri: &str) -> Value {
        serde_json::from_str(&read_text(client, uri, "application/json").await).unwrap()
    }

    async fn read_text(client: &mut Client, uri: &str, kind: &str) -> String {
        let answer = client.request("resources/read", json!({ "uri": uri })).await;
        let content = &answer["result"]["contents"][0];
        assert_eq!((&content["uri"], &content["mimeType"]), (&json!(uri), &json!(kind)), "{answer}");
        content["text"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn all_that_are_listed_can_be_read() {
        let mut client = client().await;
        client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.2 })).await.success();
        let listed = client.request("resources/list", json!({})).await;
        let uris: Vec<String> = listed["result"]["resources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["uri"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(uris.len(), 1 + PROBES.len() + library().len() + 1, "{uris:?}");
        for uri in &uris {
            if uri.starts_with(scripts::URI) {
                assert!(read_text(&mut client, uri, "text/plain").await.starts_with("// question: "), "{uri}");
            } else {
                assert!(read(&mut client, uri).await.is_object(), "{uri}");
            }
        }
    }

    #[tokio::test]
    async fn every_report_fits_the_schema_that_is_a_resource() {
        let mut client = client().await;
        let schema = read(&mut client, "mcptrace://schema/report").await;
        for probe in ["syscall_counts", "syscall_latency", "file_opens", "runq_latency"] {
            let found = client.tool("run_probe", json!({ "probe": probe, "seconds": 0.2 })).await.success();
            jsonschema::validate(&schema, &found["report"]).unwrap_or_else(|error| panic!("{probe}: {error}"));
        }
        assert!(!jsonschema::is_valid(&schema, &json!({ "shape": "cloud" })));
    }

    #[tokio::test]
    async fn an_execution_is_its_envelope() {
        let mut client = client().await;
        let found = client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.2 })).await.success();
        let id = found["execution_id"].as_str().unwrap();
        let read = read(&mut client, &format!("mcptrace://executions/{id}")).await;
        assert_eq!((&read["window"], &read["loss"]), (&found["window"], &found["loss"]));
    }

    #[tokio::test]
    async fn templates_have_arguments_that_complete() {
        let mut client = client().await;
        let templates = client.request("resources/templates/list", json!({})).await;
        assert_eq!(templates["result"]["resourceTemplates"].as_array().unwrap().len(), 5);
        let ask = |uri: &str, name: &str, value: &str| json!({ "ref": { "type": "ref/resource", "uri": uri }, "argument": { "name": name, "value": value } });
        let found = client.request("completion/complete", ask("mcptrace://probes/{name}", "name", "syscall_l")).await;
        assert_eq!(found["result"]["completion"]["values"], json!(["syscall_latency"]));
        let found = client.request("completion/complete", ask("mcptrace://scripts/{name}", "name", "tcp_r")).await;
        assert_eq!(found["result"]["completion"]["values"][0], "tcp_round_trip");
        let other = client.request("completion/complete", ask("mcptrace://nothing/{name}", "name", "")).await;
        assert_eq!(other["error"]["code"], -32602);
    }
}

/// One test for each fault of the original that its clients could see. Those that need a process of its own are in `stdio.rs`.
mod faults_of_the_original {
    use super::*;

    async fn run_script(client: &mut Client, program: &str, timeout: u64) -> Value {
        let begun = client.tool("exec_program", json!({ "program": program, "timeout": timeout })).await;
        let structured = begun.clone().success();
        assert_eq!(serde_json::from_str::<Value>(&begun.text).unwrap(), structured, "text is the same JSON");
        assert_eq!(structured["status"], "started");
        let keys: Vec<&String> = structured.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["execution_id", "status", "message"]);
        let wait = json!({ "execution_id": structured["execution_id"], "wait_seconds": 40 });
        let answer = client.tool("get_result", wait).await;
        let text: Map<String, Value> = serde_json::from_str(&answer.text).unwrap();
        let want = [
            "execution_id",
            "status",
            "lines_total",
            "lines_returned",
            "output",
            "has_more",
            "error_message",
            "duration",
        ];
        let own = ["loss", "notes"];
        let (beside, original): (Vec<_>, Vec<_>) = text.keys().partition(|name| own.contains(&name.as_str()));
        assert_eq!(original, want, "the original's fields");
        for (name, value) in &text {
            assert_eq!(&answer.structured[name], value, "{name}");
        }
        for name in own {
            let said = &answer.structured[name];
            let worth_it = if name == "loss" {
                !said["dropped"].is_null() && said["dropped"] != json!({})
            } else {
                *said != json!([]) && !said.is_null()
            };
            assert!(!worth_it || beside.iter().any(|one| *one == name), "the text hides {name}: {said}");
        }
        answer.success()
    }

    #[tokio::test]
    async fn the_timeout_ends_a_chatty_program_and_its_maps_are_kept() {
        let program = "interval:ms:1 { printf(\"tick\\n\"); @ticks = count(); }";
        let found = run_script(&mut client().await, program, 1).await;
        assert_eq!((&found["status"], &found["error_message"]), (&json!("completed"), &Value::Null));
        assert!(found["duration"].as_f64().unwrap() < 20.0);
        let maps = found["reports"].as_array().unwrap();
        assert!(maps.iter().any(|report| report["name"] == "@ticks"), "{maps:?}");
    }

    #[tokio::test]
    async fn the_timeout_is_brought_into_its_bounds() {
        let mut client = client().await;
        for (timeout, said) in [(json!(0), "1s"), (json!(100_000), "60s"), (json!("7"), "7s")] {
            let arguments = json!({ "program": "BEGIN { exit(); }", "timeout": timeout });
            let begun = client.tool("exec_program", arguments).await.success();
            assert_eq!(begun["message"], format!("Program execution started with timeout of {said}"));
        }
    }

    #[tokio::test]
    async fn a_syntax_error_is_refused_at_once() {
        let answer = client().await.tool("exec_program", json!({ "program": "BEGIN { printf( }" })).await;
        assert_eq!(category(&answer), "syntax");
        assert!(answer.structured["line"].is_u64() && answer.structured["column"].is_u64());
    }

    #[tokio::test]
    async fn an_offset_past_the_end_is_an_empty_page() {
        let mut client = client().await;
        let found = run_script(&mut client, "BEGIN { printf(\"one\\n\"); exit(); }", 5).await;
        for offset in [3, 1000, u64::MAX] {
            let arguments = json!({ "execution_id": found["execution_id"], "offset": offset });
            let page = client.tool("get_result", arguments).await.success();
            assert_eq!((&page["output"], &page["has_more"]), (&json!([]), &json!(false)));
            assert_eq!(page["lines_total"], found["lines_total"]);
        }
        let arguments = json!({ "execution_id": found["execution_id"], "offset": 1, "limit": 1 });
        assert_eq!(client.tool("get_result", arguments).await.success()["output"], json!(["one"]));
    }

    #[tokio::test]
    async fn bpf_info_is_not_empty() {
        let answer = client().await.tool("bpf_info", json!({})).await;
        assert!(answer.text.contains("kernel"), "{}", answer.text);
        let info = answer.success();
        assert_eq!(info["probes"].as_array().unwrap().len(), PROBES.len());
        assert!(
            info["bpftrace"]["info"].as_str().unwrap().len() > 100,
            "what bpftrace says of itself, though on stderr"
        );
    }

    #[tokio::test]
    async fn a_filter_is_no_option_of_bpftrace() {
        let answer = client().await.tool("list_probes", json!({ "filter": "--version" })).await;
        let listed = answer.clone().success();
        assert_eq!((&listed["probes"], &listed["count"]), (&json!([]), &json!(0)));
        assert_eq!(serde_json::from_str::<Value>(&answer.text).unwrap(), listed, "text is the same JSON");
    }

    #[tokio::test]
    async fn lists_come_in_pages() {
        let mut client = client().await;
        let mut names = BTreeSet::new();
        let mut arguments = json!({ "filter": "syscalls:*read*", "limit": 5 });
        let mut listed = client.tool("list_probes", arguments.clone()).await.success();
        let total = listed["total"].as_u64().unwrap() as usize;
        assert!(total > 5, "{total}");
        loop {
            let page = listed["probes"].as_array().unwrap();
            assert!(page.len() <= 5 && listed["count"] == page.len());
            for name in page {
                assert!(names.insert(name.as_str().unwrap().to_owned()), "{name} came twice");
            }
            let Some(cursor) = listed.get("next_cursor") else { break };
            arguments["cursor"] = cursor.clone();
            listed = client.tool("list_probes", arguments.clone()).await.success();
        }
        assert_eq!(names.len(), total);
        assert!(names.contains("tracepoint:syscalls:sys_enter_read"));
    }

    #[tokio::test]
    async fn an_unfiltered_list_is_short() {
        let answer = client().await.tool("list_probes", json!({})).await;
        assert!(answer.text.len() < 8192);
        let listed = answer.success();
        assert_eq!(listed["count"], PROBES.len());
        assert!(listed["tracepoints"].as_u64().unwrap() > 100);
        assert!(listed["native"].as_array().unwrap().iter().all(|probe| probe["available"] == true), "{listed}");
    }
}

mod watching {
    use super::*;
    use std::time::{Duration, Instant};

    const UPDATED: &str = "notifications/resources/updated";

    /// Something that changes all the time, in the background.
    async fn running(client: &mut Client) -> (String, String) {
        let arguments = json!({ "probe": "syscall_counts", "seconds": 100, "background": true });
        let begun = client.tool("run_probe", arguments).await.success();
        let id = begun["execution_id"].as_str().unwrap().to_owned();
        let uri = format!("mcptrace://executions/{id}");
        (id, uri)
    }

    async fn updated(client: &mut Client) -> Value {
        loop {
            let message = client.next().await;
            if message["method"] == UPDATED {
                return message;
            }
        }
    }

    #[tokio::test]
    async fn a_subscriber_is_told_of_changes_and_of_the_end() {
        let mut client = client().await;
        let (id, uri) = running(&mut client).await;
        let answer = client.request("resources/subscribe", json!({ "uri": uri })).await;
        assert_eq!(answer["result"], json!({}), "{answer}");
        let started = Instant::now();
        for _ in 0..5 {
            assert_eq!(updated(&mut client).await["params"]["uri"], *uri);
        }
        assert!(started.elapsed() >= Duration::from_millis(750), "changes are told together: {:?}", started.elapsed());
        client.tool("stop_execution", json!({ "execution_id": id })).await.success();
        // The one of the end may have come before the answer; after it there is none.
        let quiet = tokio::time::timeout(Duration::from_secs(2), async {
            let mut notices = 0;
            loop {
                updated(&mut client).await;
                notices += 1;
                assert!(notices <= 2, "notices after the end");
            }
        });
        assert!(quiet.await.is_err());
    }

    #[tokio::test]
    async fn nobody_is_told_who_has_unsubscribed() {
        let mut client = client().await;
        let (_, uri) = running(&mut client).await;
        client.request("resources/subscribe", json!({ "uri": uri })).await;
        updated(&mut client).await;
        let answer = client.request("resources/unsubscribe", json!({ "uri": uri })).await;
        assert_eq!(answer["result"], json!({}), "{answer}");
        let more = tokio::time::timeout(Duration::from_secs(1), async {
            // One may have been on its way.
            updated(&mut client).await;
            updated(&mut client).await
        });
        assert!(more.await.is_err());
    }

    #[tokio::test]
    async fn what_does_not_change_or_is_not_ones_own_cannot_be_watched() {
        let executions = executions();
        let mut owner = Client::in_process_as(&executions, "owner").await;
        let (_, uri) = running(&mut owner).await;
        let mut other = Client::in_process_as(&executions, "other").await;
        for uri in [uri.as_str(), "mcptrace://probes/file_opens", "mcptrace://executions/exec_0", "nonsense"] {
            let answer = other.request("resources/subscribe", json!({ "uri": uri })).await;
            assert!(answer["error"]["message"].as_str().unwrap().contains("no execution of yours"), "{answer}");
        }
    }

    #[tokio::test]
    async fn the_stateless_protocol_listens_with_one_request_until_all_have_ended() {
        let executions = executions();
        let mut client = Client::in_process(&executions).await;
        let (id, uri) = running(&mut client).await;
        let mut listener = Client::connect(&executions, "tester");
        let wanted = json!({ "resourceSubscriptions": [uri, "mcptrace://executions/exec_0"] });
        let params = json!({ "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": { "name": "tests", "version": "1" },
        }, "notifications": wanted });
        let request = listener.start("subscriptions/listen", params).await;
        let acknowledged = listener.next().await;
        assert_eq!(acknowledged["params"]["notifications"]["resourceSubscriptions"], json!([uri]), "{acknowledged}");
        for _ in 0..3 {
            assert_eq!(updated(&mut listener).await["params"]["uri"], *uri);
        }
        client.tool("stop_execution", json!({ "execution_id": id })).await.success();
        let ended = listener.answer(request).await;
        assert!(ended["result"].is_object(), "{ended}");
    }
}

mod principals {
    use super::*;

    async fn background(client: &mut Client) -> String {
        let arguments = json!({ "probe": "syscall_counts", "seconds": 300, "background": true });
        client.tool("run_probe", arguments).await.success()["execution_id"].as_str().unwrap().to_owned()
    }

    async fn connected(executions: &Arc<Executions>, principal: Principal) -> Client {
        let mut client = Client::connect_as(executions, principal);
        client.initialize("2025-11-25").await;
        client
    }

    /// What is answered about an id, everywhere where one can be given, with the id left out.
    async fn answers(client: &mut Client, id: &str) -> Vec<String> {
        let mut all = Vec::new();
        for tool in ["get_result", "stop_execution"] {
            let answer = client.tool(tool, json!({ "execution_id": id })).await;
            assert!(answer.is_error, "{}", answer.text);
            all.push(format!("{} {}", answer.text, answer.structured));
        }
        for what in ["", "/folded", "/flamegraph.svg"] {
            let uri = format!("mcptrace://executions/{id}{what}");
            for method in ["resources/read", "resources/subscribe"] {
                all.push(client.request(method, json!({ "uri": uri })).await["error"].to_string());
            }
        }
        all.into_iter().map(|answer| answer.replace(id, "ID")).collect()
    }

    #[tokio::test]
    async fn what_belongs_to_others_is_as_if_it_was_not() {
        let executions = executions();
        let mut owner = connected(&executions, Principal::user(70_001)).await;
        let id = background(&mut owner).await;
        for principal in [Principal::user(70_002), Principal::token("uid:70001")] {
            let mut other = connected(&executions, principal).await;
            let unknown = answers(&mut other, "exec_0123456789abcdef").await;
            assert_eq!(answers(&mut other, &id).await, unknown);
            assert!(unknown.iter().all(|answer| answer.contains("ID")), "{unknown:?}");
            let listed = other.tool("list_executions", json!({})).await.success();
            assert_eq!((&listed["executions"], &listed["running"]), (&json!([]), &json!(0)));
            let resources = other.request("resources/list", json!({})).await.to_string();
            assert!(!resources.contains("mcptrace://executions/"), "{resources}");
            let reference = json!({ "type": "ref/resource", "uri": "mcptrace://executions/{id}" });
            let argument = json!({ "name": "id", "value": "" });
            let completed =
                other.request("completion/complete", json!({ "ref": reference, "argument": argument })).await;
            assert_eq!(completed["result"]["completion"]["values"], json!([]), "{completed}");
        }
        assert_eq!(owner.tool("get_result", json!({ "execution_id": id })).await.success()["status"], "running");
    }

    #[tokio::test]
    async fn what_others_had_is_as_if_it_had_not_been() {
        let executions = Arc::new(Executions::new(Limits { kept: 0, ..Limits::default() }));
        let mut owner = connected(&executions, Principal::user(70_001)).await;
        let short = json!({ "probe": "syscall_counts", "seconds": 0.01, "background": true });
        let id = owner.tool("run_probe", short).await.success()["execution_id"].as_str().unwrap().to_owned();
        let expired = loop {
            let answer = owner.tool("get_result", json!({ "execution_id": id, "wait_seconds": 5 })).await;
            if answer.is_error {
                break answer;
            }
        };
        assert_eq!(expired.structured["category"], "expired_execution");
        let mut other = connected(&executions, Principal::user(70_002)).await;
        let unknown = answers(&mut other, "exec_0123456789abcdef").await;
        assert_eq!(answers(&mut other, &id).await, unknown);
    }

    #[tokio::test]
    async fn root_sees_stops_and_reads_what_belongs_to_all() {
        let executions = executions();
        let mut owner = connected(&executions, Principal::user(70_001)).await;
        let id = background(&mut owner).await;
        let mut root = connected(&executions, Principal::user(0)).await;
        assert_eq!(root.tool("list_executions", json!({})).await.success()["executions"][0]["execution_id"], *id);
        assert_eq!(root.tool("stop_execution", json!({ "execution_id": id })).await.success()["status"], "stopped");
        assert_eq!(owner.tool("get_result", json!({ "execution_id": id })).await.success()["status"], "stopped");
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_what_it_started_and_nothing_else() {
        let executions = executions();
        let mut stays = connected(&executions, Principal::user(70_001)).await;
        let stays_id = background(&mut stays).await;
        let mut leaves = connected(&executions, Principal::user(70_001)).await;
        let leaves_id = background(&mut leaves).await;
        leaves.close().await;
        let ended = stays.tool("get_result", json!({ "execution_id": leaves_id, "wait_seconds": 20 })).await.success();
        assert_eq!(ended["status"], "stopped");
        assert_eq!(stays.tool("get_result", json!({ "execution_id": stays_id })).await.success()["status"], "running");
    }

    #[tokio::test]
    async fn one_principal_cannot_take_all_places() {
        let executions = Arc::new(Executions::new(Limits { running: 3, running_each: 2, ..Limits::default() }));
        let mut greedy = connected(&executions, Principal::user(70_001)).await;
        background(&mut greedy).await;
        background(&mut greedy).await;
        let mut again = connected(&executions, Principal::user(70_001)).await;
        let wanted = json!({ "probe": "syscall_counts", "seconds": 0.1 });
        let refused = again.tool("run_probe", wanted.clone()).await;
        assert_eq!(refused.structured["category"], "busy", "{}", refused.text);
        let mut modest = connected(&executions, Principal::user(70_002)).await;
        modest.tool("run_probe", wanted).await.success();
    }

    /// As the settings are: of eight places six, root too; whoever has the server for itself has all.
    #[tokio::test]
    async fn two_of_eight_places_are_left_to_others_unless_there_are_none() {
        for (principal, places) in [
            (Principal::user(70_001), 6),
            (Principal::user(0), 6),
            (Principal::token("ci"), 6),
            (Principal::stdio(), 8),
        ] {
            let executions = Arc::new(Executions::new(Limits::default()));
            let mut greedy = connected(&executions, principal.clone()).await;
            for _ in 0..places {
                background(&mut greedy).await;
            }
            let wanted = json!({ "probe": "syscall_counts", "seconds": 0.1 });
            let refused = greedy.tool("run_probe", wanted.clone()).await;
            assert_eq!(refused.structured["category"], "busy", "{principal}: {}", refused.text);
            if places < 8 {
                let mut modest = connected(&executions, Principal::user(70_002)).await;
                modest.tool("run_probe", wanted).await.success();
            }
        }
    }

    #[tokio::test]
    async fn triages_of_one_principal_are_bounded_over_its_connections() {
        let executions = executions();
        let hub = Hub::new(Arc::clone(&executions));
        let (mut one, mut two) =
            (Client::of_hub(&hub, Principal::user(70_001)), Client::of_hub(&hub, Principal::user(70_001)));
        let mut other = Client::of_hub(&hub, Principal::user(70_002));
        for client in [&mut one, &mut two, &mut other] {
            client.initialize("2025-11-25").await;
        }
        let wanted = json!({ "seconds": 3, "focus": "disk" });
        one.start_tool("triage", wanted.clone()).await;
        one.start_tool("triage", wanted.clone()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let refused = two.tool("triage", wanted.clone()).await;
        assert_eq!(refused.structured["category"], "busy", "{}", refused.text);
        other.tool("triage", json!({ "seconds": 1, "focus": "disk" })).await.success();
    }
}

mod audit {
    use mcptrace::audit::{Audit, Destination, Settings};

    use super::*;

    /// Executions that are recorded, and where.
    fn audited(folder: &std::path::Path) -> (Arc<Executions>, std::path::PathBuf) {
        let path = folder.join("audit.jsonl");
        let audit = Audit::new(&Settings { to: Destination::File(path.clone()), ..Settings::default() });
        (Arc::new(Executions::audited(Limits::default(), audit)), path)
    }

    fn lines(path: &std::path::Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn told(lines: &[Value], fields: [&str; 2]) -> Vec<[String; 2]> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        lines.iter().map(|line| fields.map(|field| text(&line[field]))).collect()
    }

    #[tokio::test]
    async fn starts_stops_ends_and_refusals_are_recorded_with_who_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (executions, path) = audited(folder.path());
        let mut client = Client::connect_as(&executions, Principal::user(70_001));
        client.initialize("2025-11-25").await;
        let background = json!({ "probe": "syscall_counts", "seconds": 300, "background": true });
        let id = client.tool("run_probe", background.clone()).await.success()["execution_id"].clone();
        client.tool("stop_execution", json!({ "execution_id": id })).await.success();
        client.tool("run_probe", json!({ "probe": "syscall_counts", "seconds": 0.5 })).await.success();
        let refused = client.tool("exec_program", json!({ "program": "BEGIN { system(\"id\"); }" })).await;
        assert!(refused.is_error);
        client.tool("run_probe", background).await.success();
        client.close().await;
        let all = loop {
            let all = lines(&path);
            if all.len() == 9 {
                break all;
            }
            assert!(all.len() < 9, "{all:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let expected = [
            ["start", "null"],
            ["stop", "null"],
            ["end", "stopped"],
            ["start", "null"],
            ["end", "completed"],
            ["refused", "policy"],
            ["start", "null"],
            ["stop", "null"],
            ["end", "stopped"],
        ];
        assert_eq!(told(&all, ["event", "outcome"]), expected.map(|row| row.map(str::to_owned)));
        assert!(all.iter().all(|line| line["principal"] == "uid:70001" && line["transport"] == "unix"), "{all:?}");
        assert_eq!((&all[0]["execution_id"], &all[2]["execution_id"]), (&id, &id));
        assert_eq!(all[4]["cost"]["method"], "measured", "{}", all[4]);
        assert_eq!(all[5]["what"]["text"], "BEGIN { system(\"id\"); }");
        assert_eq!(all[7]["reason"], "its client has left");
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_is_not_started() {
        let (executions, _) = audited(std::path::Path::new("/proc/nowhere"));
        let mut client = Client::in_process(&executions).await;
        let triage = ("triage", json!({ "seconds": 1 }));
        let script = ("exec_program", json!({ "program": "BEGIN { exit(); }" }));
        for (tool, arguments) in [("run_probe", json!({ "probe": "syscall_counts" })), script, triage] {
            let refused = client.tool(tool, arguments).await;
            assert_eq!(refused.structured["category"], "audit", "{tool}: {}", refused.text);
        }
        assert_eq!(client.tool("list_executions", json!({})).await.success()["executions"], json!([]));
    }
}
