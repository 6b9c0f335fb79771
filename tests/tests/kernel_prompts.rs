//! Every call that a prompt names, run on the real kernel: a plan that a model cannot follow is worse than none.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeSet, process::Command, sync::Arc};

use mcptrace::executions::{Executions, Limits};
use mcptrace_tests::{mcp::Client, named_group::Named};
use serde_json::{Map, Value, json};

/// A container that nobody has.
const CONTAINER: &str = "4cc1e5a7b0d24f0c9e8d7c6b5a4938271605f4e3d2c1b0a99887766554433221";

/// The calls in a plan: a number, a tool and its arguments on a line of their own.
fn calls(text: &str) -> Vec<(String, Value)> {
    let numbered = text.lines().filter_map(|line| line.split_once(". "));
    let numbered = numbered.filter(|(number, _)| number.parse::<u32>().is_ok());
    numbered
        .map(|(_, call)| {
            let (tool, arguments) = call.split_once(' ').unwrap();
            (tool.to_owned(), serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{call}: {error}")))
        })
        .collect()
}

/// Every way to give a prompt its arguments: all that it needs, with any of the others.
fn ways(prompt: &Value, values: &Value) -> Vec<Map<String, Value>> {
    let mut ways = vec![Map::new()];
    for argument in prompt["arguments"].as_array().unwrap() {
        let name = argument["name"].as_str().unwrap();
        let with = ways.iter().cloned().map(|mut way| {
            way.insert(name.to_owned(), values[name].clone());
            way
        });
        let with: Vec<_> = with.collect();
        if argument["required"] == true {
            ways = with;
        } else {
            ways.extend(with);
        }
    }
    ways
}

async fn plans(client: &mut Client, values: &Value) -> BTreeSet<String> {
    let listed = client.request("prompts/list", json!({})).await;
    let mut all = BTreeSet::new();
    for prompt in listed["result"]["prompts"].as_array().unwrap() {
        for arguments in ways(prompt, values) {
            let got = client.request("prompts/get", json!({ "name": prompt["name"], "arguments": arguments })).await;
            let text = got["result"]["messages"][0]["content"]["text"].as_str().unwrap();
            let calls = calls(text);
            assert!(calls.len() >= 2, "{text}");
            all.extend(calls.iter().map(|call| json!([call.0, call.1]).to_string()));
        }
    }
    all
}

/// What goes wrong when a call is made, shortened in time.
async fn follow(client: &mut Client, tool: &str, mut arguments: Value) -> Option<String> {
    let shown = format!("{tool} {arguments}");
    match tool {
        "run_probe" => arguments["seconds"] = json!(0.3),
        "triage" => arguments["seconds"] = json!(1),
        "exec_program" => arguments["timeout"] = json!(1),
        _ => {}
    }
    let answer = client.tool(tool, arguments).await;
    // The recorder is the operator's choice: without one the answer says how to start it.
    if tool == "query_history" && answer.is_error && answer.text.contains("mcptrace daemon") {
        return None;
    }
    if answer.is_error {
        return Some(format!("{shown}: {}", answer.text));
    }
    if tool != "exec_program" {
        return None;
    }
    let wait = json!({ "execution_id": answer.structured["execution_id"], "wait_seconds": 40 });
    let found = client.tool("get_result", wait).await;
    (found.is_error || found.structured["status"] != "completed").then(|| format!("{shown}: {}", found.text))
}

#[tokio::test]
async fn every_call_of_every_plan_works() {
    let executions = Arc::new(Executions::new(Limits::default()));
    let mut client = Client::in_process(&executions).await;
    let mut subject = Command::new("sh").args(["-c", "while :; do sleep 0.05; done"]).spawn().unwrap();
    let container = Named::new(&format!("docker-{CONTAINER}.scope"));
    let values = json!({ "pid": subject.id().to_string(), "comm": "sh", "container": &CONTAINER[..12] });
    let plans = plans(&mut client, &values).await;
    let mut wrong = Vec::new();
    for call in &plans {
        let (tool, arguments): (String, Value) = serde_json::from_str(call).unwrap();
        wrong.extend(follow(&mut client, &tool, arguments).await);
    }
    subject.kill().unwrap();
    subject.wait().unwrap();
    drop(container);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A fair number of both kinds, so that it cannot pass by finding nothing.
    assert!(plans.iter().filter(|call| call.contains("run_probe")).count() >= 8, "{plans:?}");
    assert!(plans.iter().filter(|call| call.contains("exec_program")).count() >= 20, "{plans:?}");
}
