//! Runs a bpftrace script for a minute: a parent to be killed in a test. Arguments: the program, then the command words.

use std::time::{Duration, Instant};

use mcptrace::bpftrace::{Bpftrace, Limits};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().expect("a program");
    let words: Vec<String> = arguments.collect();
    let bpftrace = Bpftrace::find(Some(&words)).expect("bpftrace");
    let mut session = bpftrace.spawn(&program, Limits::default()).expect("a script that starts");
    session.wait(Instant::now() + Duration::from_mins(1), &|| false);
}
