//! How long an event takes from the kernel to each kind of watcher; `cargo xtask bench latency` runs this.
#![expect(clippy::print_stdout, reason = "it is a program for a terminal")]

use std::path::PathBuf;

use clap::Parser;
use mcptrace_tests::latency::{STYLES, measure};

/// Prints a table in Markdown.
#[derive(Debug, Parser)]
struct Arguments {
    /// The mcptrace program
    program: PathBuf,
    /// Events a second
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// For how many seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// What a median may be at most, in ms: what is promised of a release build on a machine that does little else
    #[arg(long, default_value_t = 20.0)]
    most_ms: f64,
}

#[tokio::main]
async fn main() {
    let Arguments { program, rate, seconds, most_ms } = Arguments::parse();
    println!(
        "| watcher, at {rate} events a second | median, ms | p90, ms | p99, ms | events | of |\n|---|---:|---:|---:|---:|---:|"
    );
    for style in STYLES {
        let found = measure(&program, style, rate, seconds).await;
        let [median, p90, p99] = [0.5, 0.9, 0.99].map(|share| found.ms(share));
        println!("| {style:?} | {median:.1} | {p90:.1} | {p99:.1} | {} | {} |", found.ns.len(), found.made);
        assert!(!found.disorder, "{style:?}: an event came twice or out of its order");
        assert!(median < most_ms, "{style:?}: a median of {median:.1} ms");
    }
}
