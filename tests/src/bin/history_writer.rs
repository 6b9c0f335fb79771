//! Writes a history as fast as it can until it is killed, and says what it has handed over: `history_writer FOLDER FIRST`.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::{env, path::PathBuf, time::Duration};

use mcptrace::recorder::{
    place,
    store::{Keeper, Limits},
};
use mcptrace_tests::simulated::{calls, latencies, tick};

fn main() {
    let mut arguments = env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("FOLDER"));
    let first: i64 = arguments.next().and_then(|first| first.parse().ok()).expect("FIRST");
    let limits = Limits { spare_bytes: 0, retry: Duration::ZERO, ..Limits::default() };
    let mut keeper = Keeper::open(&place::file(&folder), limits).expect("the history opens");
    for second in first.. {
        keeper.keep(&tick(second, vec![calls("a", "user", 1), latencies("sda", &[second as u64])]));
        println!("{second}");
    }
}
