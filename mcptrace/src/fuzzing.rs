//! What reads what others wrote, a function each: for the fuzzer (`fuzz/`, built with the feature `fuzzing`) and for the bounded runs among
//! the tests. Each takes any bytes, and panics if what it promises of them does not hold.

use std::sync::OnceLock;

use crate::{
    bpftrace::{
        self, launcher,
        policy::{Level, Policy},
    },
    clock::Clock,
    kernel::{btf, discovery, stacks::Stacks},
    probes::{PROBES, Probe as _, function_latency::FunctionLatency, usdt_events::UsdtEvents},
    report::Row,
    secrets::Reveals,
    server,
    text::is_deceptive,
};

/// Kinds of records are below this.
const KINDS: u8 = 80;
/// The longest fixed part of a record that is tried, and what is asked of a row, in bytes.
const RECORD_BYTES: usize = 8192;
const ROW_BYTES: usize = 64 << 10;

/// A line of JSON-RPC.
pub fn json_rpc(line: &[u8]) {
    server::check_line(line);
}

/// A bpftrace program: what is admitted calls nothing that is refused, outside of comments and strings.
pub fn policy(program: &[u8]) {
    let text = String::from_utf8_lossy(program);
    let strict = Policy { level: Level::Policy, programs: false, reveals: Reveals::NONE };
    match strict.admit(&text) {
        Ok(_) => {
            let bare = without_comments_and_strings(&text);
            for call in ["system(", "signal(", "override(", "#include", "uprobe:", "buf(", "join("] {
                assert!(!holds(&bare, call), "{call} in {text:?}");
            }
            // What is allowed less of is allowed with more.
            let open = Policy { programs: true, reveals: Reveals::of("all"), ..strict };
            assert!(open.admit(&text).is_ok(), "{text:?}");
        }
        Err(error) => assert!(error.message.len() < 4096, "{error}"),
    }
}

/// Whether a text holds a word that is no part of a longer one. Its comments and strings are gone.
fn holds(bare: &str, word: &str) -> bool {
    // A module of the kernel may be called uprobe.
    let joined: &[u8] = if word.ends_with(':') { b"_@$:" } else { b"_@$" };
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || joined.contains(&byte);
    bare.match_indices(word).any(|(at, _)| at == 0 || !letter(bare.as_bytes()[at - 1]))
}

/// The text outside of comments and strings, as simply as that can be told.
fn without_comments_and_strings(text: &str) -> String {
    let (mut rest, mut bare) = (text, String::new());
    while let Some(letter) = rest.chars().next() {
        let skipped = if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if letter == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|letter| {
                let ends = letter == '"' && !escaped;
                escaped = letter == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else {
            bare.push(letter);
            letter.len_utf8()
        };
        rest = &rest[skipped..];
    }
    bare
}

/// A record of a kernel program, read by every probe and as a stack; how many took it.
pub fn record(record: &[u8]) -> usize {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    let clock = CLOCK.get_or_init(Clock::now);
    let mut taken = 0;
    for entry in PROBES {
        let (accepted, row) = (entry.decodes)(record, clock);
        assert!(accepted || row.is_none(), "{}: a row of a record that is not accepted", entry.name);
        taken += usize::from(accepted);
        row.iter().for_each(bounded);
    }
    let rows = [UsdtEvents::sample().named_row(record, clock), FunctionLatency::default().named_row(record, clock)];
    rows.iter().flatten().for_each(bounded);
    taken + usize::from(Stacks::default().take(record))
}

fn bounded(row: &Row) {
    let text = serde_json::to_string(row).unwrap_or_default();
    assert!(text.len() <= ROW_BYTES, "{} bytes", text.len());
    assert!(!text.chars().any(|letter| letter.is_control() || is_deceptive(letter)), "{text:?}");
}

/// Records of all kinds, each as short as somebody takes it, with zeros for its fields.
pub fn records() -> Vec<Vec<u8>> {
    let of = |kind: u8, size: usize| {
        let mut bytes = vec![0; size];
        bytes[..2].copy_from_slice(&(size as u16).to_ne_bytes());
        (bytes[2], bytes[3]) = (mcptrace_wire::WIRE_VERSION, kind);
        bytes
    };
    let shortest = |kind| (4..RECORD_BYTES).step_by(4).map(|size| of(kind, size)).find(|bytes| record(bytes) > 0);
    (0..KINDS).filter_map(shortest).collect()
}

/// Output of bpftrace.
pub fn bpftrace_output(output: &[u8]) {
    bpftrace::check_output(output);
}

/// Types in the kernel's format.
pub fn btf(bytes: &[u8]) {
    // What is an ELF file is not what the kernel gives.
    if !bytes.starts_with(b"\x7fELF") {
        btf::check(bytes);
    }
}

/// The format of a tracepoint, and the arguments of a USDT probe.
pub fn format(text: &[u8]) {
    discovery::check_format(&String::from_utf8_lossy(text));
}

/// What a server that has been taken over says to the launcher.
pub fn launcher(packet: &[u8]) {
    launcher::check_packet(packet);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::inputs;

    #[test]
    fn no_record_is_a_panic_and_rows_are_bounded() {
        let corpus = records();
        assert!(corpus.len() >= 15, "{} kinds", corpus.len());
        let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        let taken: usize = inputs(&corpus, 20_000).map(|bytes| record(&bytes)).sum();
        assert!(taken > 200, "most are malformed, but not all: {taken}");
    }

    /// The fuzzer begins with a record of each kind.
    #[test]
    fn the_corpus_has_the_records_of_the_wire() {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/records"));
        for record in records() {
            let file = folder.join(format!("kind_{}", record[3]));
            if std::env::var_os("UPDATE").is_some() {
                std::fs::create_dir_all(folder).unwrap();
                std::fs::write(&file, &record).unwrap();
            }
            assert!(std::fs::read(&file).is_ok_and(|kept| kept == record), "UPDATE=1 cargo test -p mcptrace fuzzing");
        }
    }

    #[test]
    fn no_text_is_a_panic_and_none_smuggles_a_refused_call() {
        let corpus: &[&[u8]] = &[
            b"tracepoint:syscalls:sys_enter_openat /pid == 7/ { @[comm, str(args->filename)] = count(); }",
            b"BEGIN { printf(\"%d\", 1); /* system(\"ls\") */ } // cat(\"/etc/shadow\")\nEND { clear(@); }",
            b"kprobe:vfs_*, kretprobe:vfs_read { if (arg0 > 1) { @h = hist(arg2); } else { delete(@h); } }",
            b"config = { max_map_keys=10 } interval:s:1 { $x = (uint64)1; unroll(3) { $x++; } system(\"id\"); signal(9); }",
            b"#include <x.h>\nstruct a { int b; }; uprobe:/bin/sh:main { override(1); }",
            b"t:syscalls:sys_enter_execve { join(args->argv); } k:f { $x = args->filename; print(str($x)); buf(arg1, 8); }",
        ];
        inputs(corpus, 20_000).for_each(|bytes| policy(&bytes));
    }

    /// Types that hold themselves, and such as lie beyond all memory, are among them.
    #[test]
    fn no_types_are_a_panic_or_endless() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/btf");
        let files = std::fs::read_dir(folder).unwrap().flatten().map(|file| std::fs::read(file.path()).unwrap());
        let mut corpus: Vec<Vec<u8>> = files.collect();
        corpus.sort();
        let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        inputs(&corpus, 5_000).for_each(|bytes| btf(&bytes));
    }

    #[test]
    fn no_packet_is_a_panic_for_the_launcher() {
        let corpus: &[&[u8]] = &[b"p", b"v", b"cBEGIN { exit(); }", b"r\0\0\0\0\0\0\0\x01BEGIN { }", b"lkprobe:vfs_*"];
        inputs(corpus, 20_000).for_each(|bytes| launcher(&bytes));
    }
}
