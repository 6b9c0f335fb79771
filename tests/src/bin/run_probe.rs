//! Runs a native probe: a process to be stopped or killed in a test. Arguments: probe, seconds, options and filter as JSON. Says
//! `running` when it is attached, ends at a line on its standard input or when the time is up, and prints the envelope.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: it talks by stdout and ends on a failure"
)]

use std::{io::BufRead as _, sync::Arc, time::Duration};

use mcptrace::{
    execution::Page,
    executions::{Executions, Limits, ProbeRequest},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [probe, seconds, options, filter] = arguments.as_slice() else { panic!("probe seconds options filter") };
    let request = ProbeRequest {
        probe: probe.clone(),
        seconds: seconds.parse().unwrap(),
        options: serde_json::from_str(options).unwrap(),
        filter: serde_json::from_str(filter).unwrap(),
        ..ProbeRequest::default()
    };
    let executions = Executions::new(Limits::default());
    let execution = executions.start_probe(&request).unwrap();
    println!("running");
    let stopper = Arc::clone(&execution);
    std::thread::spawn(move || {
        std::io::stdin().lock().read_line(&mut String::new()).unwrap();
        stopper.stop();
    });
    assert!(execution.wait(Duration::from_mins(10)));
    let envelope = execution.envelope(&Page { from: 0, event: 0, limit: 7, max_bytes: usize::MAX });
    println!("{}", serde_json::to_string(&envelope).unwrap());
}
