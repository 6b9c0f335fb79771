//! Prints what is supported here: `text`, or JSON otherwise. A process for tests that take privilege or files away from it.
#![expect(clippy::print_stdout, reason = "what it is for")]

use mcptrace::kernel::support::{Options, info, text};

fn main() {
    let as_text = std::env::args().nth(1).is_some_and(|argument| argument == "text");
    let bpftrace = std::env::args().any(|argument| argument == "bpftrace");
    let info = info(&Options { bpftrace, ..Options::default() });
    if as_text {
        print!("{}", text(&info, 1 << 16));
    } else {
        println!("{}", serde_json::to_string(&info).expect("serializable"));
    }
}
