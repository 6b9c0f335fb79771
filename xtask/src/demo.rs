//! `cargo xtask demo`: drives the MCP server as a client would, through native probes on the running kernel.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::workspace_root;

use crate::mcp_client::{McpClient, Reply};
use crate::packages::{self, TO_BUILD};
use crate::process;

/// How long a call may take beyond the seconds that it traces.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long each probe traces.
const SECONDS: u64 = 3;

/// How long a workload waits for its probe to be attached.
const HEAD_START: Duration = Duration::from_secs(1);

/// Prime numbers, so that they are not found by chance.
const GOOD_OPENS: usize = 23;
const FAILED_OPENS: usize = 7;

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    packages: packages::InstallOptions,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let needs: Vec<_> = TO_BUILD.iter().collect();
    packages::ensure_installed(&needs, &options.packages)?;
    let server = build_server()?;
    let (client, hello) = McpClient::start(&mut server_command(&server)?, PATIENCE)?;
    let mut demo = Demo { client, failures: 0 };
    demo.introduce(&hello)?;
    demo.tool("bpf_info", &json!({}))?;
    demo.syscall_counts()?;
    demo.file_opens()?;
    demo.runq_latency()?;
    demo.finish()
}

fn build_server() -> Result<PathBuf> {
    eprintln!("xtask: building mcptrace (a few minutes the first time)");
    process::run(process::cargo().args(["build", "--package", "mcptrace", "--target-dir", "target"]))?;
    Ok(workspace_root().join("target/debug/mcptrace"))
}

fn server_command(server: &Path) -> Result<Command> {
    packages::become_able("attaching probes needs CAP_BPF and CAP_PERFMON")?;
    Ok(packages::as_root(&server.to_string_lossy()))
}

/// The client's side of the demonstration.
struct Demo {
    client: McpClient,
    failures: u32,
}

impl Demo {
    /// Prints who answers and which tools there are.
    fn introduce(&mut self, hello: &Reply) -> Result<()> {
        let Value::String(version) = &hello.result["protocolVersion"] else {
            anyhow::bail!("the server's answer to initialize names no protocolVersion: {}", hello.result)
        };
        let server = &hello.result["serverInfo"];
        title("initialize", hello);
        println!("{} {}, MCP {version}", text_of(&server["name"]), text_of(&server["version"]));

        let list = self.client.call("tools/list", &json!({}), PATIENCE)?;
        title("tools/list", &list);
        let tools = list.result["tools"].as_array().context("the answer to tools/list has no tools")?;
        ensure!(!tools.is_empty(), "the server has no tools");
        println!("{}", tools.iter().map(|tool| text_of(&tool["name"])).collect::<Vec<_>>().join(", "));
        Ok(())
    }

    /// The whole machine for a few seconds.
    fn syscall_counts(&mut self) -> Result<()> {
        say("Which system calls does this machine make?");
        self.probe(&json!({"probe": "syscall_counts", "seconds": SECONDS, "top": 10}), list_folders)
    }

    /// A workload of known size, so that anyone can check the result.
    fn file_opens(&mut self) -> Result<()> {
        say(&format!(
            "Who opens files? This program opens its own source {GOOD_OPENS} times and a file that is not there {FAILED_OPENS} times."
        ));
        let filter = json!({"pid": std::process::id()});
        self.probe(&json!({"probe": "file_opens", "seconds": SECONDS, "filter": filter}), |_| open_files())
    }

    /// More threads than CPUs, so that they wait for each other.
    fn runq_latency(&mut self) -> Result<()> {
        say("How long do threads wait for a CPU? This program keeps twice as many threads busy as there are CPUs.");
        self.probe(&json!({"probe": "runq_latency", "seconds": SECONDS}), busy_cpus)
    }

    /// Runs a probe while a workload works.
    fn probe(&mut self, arguments: &Value, workload: impl FnOnce(&AtomicBool) + Send) -> Result<()> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(HEAD_START);
                workload(&stop);
            });
            let result = self.tool("run_probe", arguments);
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    /// Calls a tool and prints what it says. A tool that fails is counted; a broken protocol ends the demonstration.
    fn tool(&mut self, name: &str, arguments: &Value) -> Result<()> {
        let timeout = PATIENCE + Duration::from_secs(SECONDS);
        let reply = self.client.call("tools/call", &json!({"name": name, "arguments": arguments}), timeout)?;
        title(&format!("{name} {arguments}"), &reply);
        println!("{}", content(&reply.result));
        if reply.result["isError"] == true {
            self.failures += 1;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.client.close()?;
        ensure!(self.failures == 0, "{} calls failed; their text above says why", self.failures);
        println!("\nThe server has ended.");
        Ok(())
    }
}

fn say(text: &str) {
    println!("\n{text}");
}

fn title(call: &str, reply: &Reply) {
    let Reply { took, bytes, .. } = reply;
    println!("\n>>> {call}\n<<< {bytes} bytes after {:.3} s", took.as_secs_f64());
}

/// The text of a tool's result.
fn content(result: &Value) -> String {
    let blocks = result["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
    if texts.is_empty() { format!("(no text in {result})") } else { texts.join("\n") }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn open_files() {
    let source = workspace_root().join("xtask/src/demo.rs");
    for _ in 0..GOOD_OPENS {
        let _ = File::open(&source);
    }
    for _ in 0..FAILED_OPENS {
        let _ = File::open("/no/such/file");
    }
}

/// Reads folders, so that even an idle machine has something to show.
fn list_folders(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let _ = std::fs::read_dir("/proc").map(Iterator::count);
        thread::sleep(Duration::from_millis(1));
    }
}

fn busy_cpus(stop: &AtomicBool) {
    let threads = 2 * thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_result_is_all_its_text_blocks() {
        let result =
            json!({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]});
        assert_eq!(content(&result), "a\nb");
        assert_eq!(content(&json!({})), "(no text in {})");
    }
}
