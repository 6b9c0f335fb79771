use super::*;
use crate::scripts::{ByPid, library};

const STRICT: Policy = Policy { level: Level::Policy, programs: false };
const WITH_PROGRAMS: Policy = Policy { level: Level::Policy, programs: true };

fn refusal(program: &str) -> ScriptError {
    match STRICT.admit(program) {
        Err(error) => error,
        Ok(_) => panic!("admitted: {program:?}"),
    }
}

#[test]
fn every_script_of_the_library_passes() {
    for script in library() {
        let pids: &[Option<u32>] = match script.pid {
            ByPid::Never => &[None],
            ByPid::Optional => &[None, Some(7)],
            ByPid::Required => &[Some(7)],
        };
        for pid in pids {
            let program = script.program(*pid).unwrap();
            let admitted = STRICT.admit(&program).unwrap_or_else(|error| panic!("{}: {error}", script.name)).unwrap();
            let hooks: Vec<&str> =
                admitted.hooks.iter().map(|hook| hook.text.as_str()).filter(|hook| hook.contains(':')).collect();
            let mut unique = Vec::new();
            for hook in hooks {
                if !unique.contains(&hook) {
                    unique.push(hook);
                }
            }
            assert_eq!(unique, script.hooks(), "{}", script.name);
        }
    }
}

/// Of 0.17 to 0.23.
#[test]
fn the_language_is_understood() {
    for program in [
        "BEGIN { exit(); }",
        "BEGIN{exit()}",
        "#!/usr/bin/env bpftrace\nBEGIN { exit(); }",
        "BEGIN { } END { }",
        "BEGIN, END { }",
        "begin { } end { }",
        "BEGIN { ; ; $x = 1; ; }",
        "// é and \"quotes\" and { braces\nBEGIN { /* } */ printf(\"} /* é \\\" \\x41 \\101 //\"); }",
        "kprobe:vfs_read, kretprobe:vfs_* /pid == 1 && comm == \"x\"/ { @[comm] = count(); }",
        "k:a{} kr:b{} t:c:d{} f:e{} fr:vmlinux:g{} rt:h{} i:s:1{} p:hz:99{} s:faults:100{} h:cycles:1000000{} it:task{} kprobe:a+4{}",
        "interval:1s{} profile:10ms{} fentry:vmlinux:tcp_*{} fexit:x{}",
        "t:a:b / (pid / 2 == 1) / { }",
        "t:a:b / pid / 2 == 1 / /* c */ { }",
        "t:a:b /@x[pid, \"a\"]/ // c\n{ delete(@x[pid, \"a\"]); delete @x[pid, \"a\"]; }",
        "BEGIN { if (1) { } else if (2) { } else { } if 1 { } while (@i < 3) { @i++; break; continue; } unroll (3) { } unroll 3 { } return; }",
        "BEGIN { for ($kv : @m) { print($kv.0); print($kv.1); } for $i : 0..10 { print($i); } { $y = 1; } }",
        "BEGIN { let $x: uint64 = 1; let $y; let $s: struct x *; $a = (1, 2, (\"a\", 3)); $b = $a.0 + $a.2.1; return 1; }",
        "t:a:b { $x = (struct sock *)arg0; $y = ((struct a*)$x)->b->c.d[0]; $z = (uint8)$y; $p = *(uint64*)kaddr(\"x\"); }",
        "t:a:b { @[kstack(perf, 5), ustack(3), ustack(bpftrace)] = sum(args->x ? 1 : -1); print(@, 5, 10); clear(@); zero(@); }",
        "t:a:b { $x = sizeof(struct y); $x = sizeof(uint64); $x = sizeof($x); $x = offsetof(struct y, a.b); $x = nsecs(boot); $x = pid(); }",
        "t:a:b { $x = (int32[4])$y; $x = !~-$x; ++$x; $x--; ++@; @--; $x = 1e6 + 0xFF + 1_000 + 100ms; $x <<= 2; @x[1] |= 0x10; }",
        "t:a:b { $x = (pid) * 2 - (tid) & (cpu); $y = (uint64)(pid); @[(pid)] = count(); if (pid) { } }",
        "struct a { int x; char y[16]; struct { unsigned long z : 3; } w; }; enum e { A, b = 2, C = -1 }; BEGIN { print(A + b); }",
        "union u { int x; } BEGIN { }",
        "config = { stack_mode = perf; max_map_keys = 100 } BEGIN { }",
        "config = { missing_probes = \"warn\"; }; let @x = lruhash(100); BEGIN { print(AF_INET); }",
        "t:a:b { $t = curtask; print($t->signal->flags); print(args.override); }",
        "\r\nBEGIN\r\n{\r\n exit();\r\n}\r\n",
    ] {
        STRICT.admit(program).unwrap_or_else(|error| panic!("{program:?}: {error}"));
    }
    WITH_PROGRAMS.admit("uprobe:/bin/bash:readline, ur:/usr/lib/x-1.so.6:\"a::b(int, c)\" /pid/ { }").unwrap();
    WITH_PROGRAMS.admit("usdt:/usr/bin/python3.11:python:gc__start { } u:libc:malloc { }").unwrap();
}

/// What the policy refuses: program, where, and a word of the reason.
const ATTACKS: &[(&str, (u32, u32), &str)] = &[
    // Functions that act.
    ("BEGIN { system(\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN { cat(\"/etc/shadow\"); }", (1, 9), "reads any file"),
    ("BEGIN{cat(\"/etc/%s\",\"shadow\")}", (1, 7), "reads any file"),
    ("k:f { signal(9); }", (1, 7), "sends signals"),
    ("k:f { signal(\"KILL\"); }", (1, 7), "sends signals"),
    ("k:f { signal_thread(9); }", (1, 7), "sends signals"),
    ("k:f { override(0); }", (1, 7), "changes what"),
    ("k:f { override_return(0); }", (1, 7), "changes what"),
    ("k:f { skboutput(\"x.pcap\", $s, 1, 0); }", (1, 7), "writes files"),
    ("k:f { debugf(\"x\"); }", (1, 7), "trace buffer"),
    ("BEGIN { unwatch(1); }", (1, 9), "watchpoints"),
    // Where they hide.
    ("BEGIN { system  (\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN { system\n\n(\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN { system/**/(\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN { system// x\n(\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN {\n\tif (0) { } else {\n system(\"id\"); } }", (3, 2), "runs commands"),
    ("BEGIN { $x = 1 ? system(\"id\") : 0; }", (1, 18), "runs commands"),
    ("BEGIN { @[1, (2, system(\"id\"))] = 1; }", (1, 18), "runs commands"),
    ("BEGIN { printf(\"%d\", system(\"id\")); }", (1, 22), "runs commands"),
    ("k:f /system(\"id\")/ { }", (1, 6), "runs commands"),
    ("k:f /1/ { unroll (2) { while (1) { system(\"id\"); } } }", (1, 36), "runs commands"),
    ("BEGIN { for ($x : @y) { system(\"id\"); } }", (1, 25), "runs commands"),
    ("BEGIN { printf(\"\\\"\"); system(\"id\"); }", (1, 23), "runs commands"),
    ("BEGIN { printf(\"\\\\\"); system(\"id\"); } //\"); }", (1, 23), "runs commands"),
    ("BEGIN { printf(\"/*\"); system(\"id\"); printf(\"*/\"); }", (1, 23), "runs commands"),
    ("BEGIN { printf(\"//\"); system(\"id\"); }", (1, 23), "runs commands"),
    ("/* \" */ BEGIN { system(\"id\"); } /* \" */", (1, 17), "runs commands"),
    ("// \"\nBEGIN { system(\"id\"); } // \"", (2, 9), "runs commands"),
    ("//\\\\ /*\nBEGIN { system(\"id\"); } //*/", (2, 9), "runs commands"),
    ("#! x\nBEGIN { system(\"id\"); }", (2, 9), "runs commands"),
    ("BEGIN { } interval:s:1 { system(\"id\"); }", (1, 26), "runs commands"),
    ("BEGIN { System(\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN { SYSTEM(\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN { $x = system; }", (1, 14), "runs commands"),
    ("BEGIN { $x = (uint64)system(\"id\"); }", (1, 22), "runs commands"),
    ("BEGIN { (system)(\"id\"); system(\"id\"); }", (1, 25), "runs commands"),
    // A brace in a comment ends a struct for bpftrace 0.17; the rest is code.
    (
        "struct x { int a; /* }; BEGIN { system(\"id\") } struct y { */ int b; }; BEGIN { }",
        (1, 19),
        "inside of a struct",
    ),
    (
        "struct x { int a; // }; BEGIN { system(\"id\") } struct y {\n int b; }; BEGIN { }",
        (1, 19),
        "inside of a struct",
    ),
    ("enum x { A /* } BEGIN { system(\"id\") } enum y { */ }; BEGIN { }", (1, 12), "inside of a struct"),
    // The preprocessor.
    ("#include \"/etc/shadow\"\nBEGIN { }", (1, 1), "preprocessor"),
    ("#include <linux/sched.h>\nBEGIN { }", (1, 1), "preprocessor"),
    ("  #  include </etc/shadow>\nBEGIN { }", (1, 3), "preprocessor"),
    ("#define x system\nBEGIN { x(\"id\"); }", (1, 1), "preprocessor"),
    ("BEGIN { }\n#define x(y) system(y)\n", (2, 1), "preprocessor"),
    ("#!/usr/bin/bpftrace\n#if 1\nBEGIN { }\n#endif", (2, 1), "preprocessor"),
    ("#pragma once\nBEGIN { }", (1, 1), "preprocessor"),
    ("/**/#define x system\nBEGIN { }", (1, 5), "preprocessor"),
    ("BEGIN { #undef x\n }", (1, 9), "preprocessor"),
    ("BEGIN { }\n#!/bin/sh", (2, 1), "preprocessor"),
    // What brings code in from elsewhere.
    ("import \"/tmp/x.bt\"; BEGIN { }", (1, 1), "import"),
    ("macro x() { system(\"id\") } BEGIN { x(); }", (1, 1), "macro"),
    ("fn x(): int64 { return 1; } BEGIN { }", (1, 1), "fn"),
    // Positional parameters.
    ("BEGIN { print($1); }", (1, 15), "positional"),
    ("BEGIN { print(str($#)); }", (1, 19), "positional"),
    ("k:$1 { }", (1, 3), "positional"),
    // Probes that act or read others' memory.
    ("u:/bin/bash:readline { }", (1, 1), "memory of other users"),
    ("BEGIN { } uretprobe:/bin/bash:readline { }", (1, 11), "memory of other users"),
    ("usdt:/usr/bin/mysqld:query__start { }", (1, 1), "memory of other users"),
    ("U:x:y { }", (1, 1), "memory of other users"),
    ("k:f, uprobe:libc:malloc { }", (1, 6), "memory of other users"),
    ("watchpoint:0x1234:8:rw { }", (1, 1), "stop threads"),
    ("aw:f+arg1:8:w { }", (1, 1), "stop threads"),
    ("self:signal:SIGUSR1 { }", (1, 1), "bpftrace itself"),
    // Too much.
    ("profile:hz:100000 { }", (1, 1), "times a second"),
    ("profile:us:1 { }", (1, 1), "times a second"),
    ("interval:us:10 { }", (1, 1), "times a second"),
    ("i:1us { }", (1, 1), "times a second"),
    ("software:cpu-clock:100 { }", (1, 1), "too often"),
    ("hardware:instructions:1 { }", (1, 1), "too often"),
    ("BEGIN { unroll (101) { } }", (1, 17), "unrolled"),
    ("BEGIN { unroll (99999999999999999999999) { } }", (1, 17), "unrolled"),
    ("let @x = hash(1000000); BEGIN { }", (1, 15), "keys"),
    // Settings that lift limits.
    ("config = { max_map_keys = 100000000 } BEGIN { }", (1, 27), "max_map_keys"),
    ("config = { max_probes = 100000 } BEGIN { }", (1, 25), "max_probes"),
    ("config = { unsafe = true } BEGIN { }", (1, 12), "unsafe"),
    ("config = { max_cat_bytes = 1 } BEGIN { }", (1, 12), "max_cat_bytes"),
    ("config = { BPFTRACE_MAX_STRLEN = 1000000 } BEGIN { }", (1, 34), "max_strlen"),
    ("config = { perf_rb_pages = 65536; } BEGIN { }", (1, 12), "perf_rb_pages"),
    // What does not look like what it is.
    ("BEGIN { exit(); } //\u{202e} x", (1, 21), "U+202E"),
    ("BEGIN { sys\u{200b}tem(\"id\"); }", (1, 12), "U+200B"),
    ("BEGIN { printf(\"\u{2066}\"); }", (1, 17), "U+2066"),
    ("\u{feff}BEGIN { }", (1, 1), "U+FEFF"),
    ("BEGIN { \u{1} }", (1, 9), "U+0001"),
    ("BEGIN { // x\rsystem(\"id\"); }", (1, 13), "U+000D"),
    ("BEGIN { \u{c} }", (1, 9), "U+000C"),
    ("BEGIN { printf(\"\u{1b}[2J\"); }", (1, 17), "U+001B"),
    ("BEGIN { \u{85} }", (1, 9), "U+0085"),
];

#[test]
fn attacks_are_refused_at_their_place() {
    for (program, place, word) in ATTACKS {
        let error = refusal(program);
        let found = (error.line.unwrap(), error.column.unwrap());
        assert_eq!((error.category, found), (Category::Policy, *place), "{program:?}: {error}");
        assert!(error.message.contains(word), "{program:?}: {error}");
        assert!(error.remedy.is_some(), "{program:?}");
    }
    assert!(ATTACKS.len() >= 60);
}

#[test]
fn what_is_not_understood_is_refused_at_its_place() {
    for (program, place) in [
        ("--unsafe", (1, 1)),
        ("-c 'sh'", (1, 1)),
        ("BEGIN", (1, 6)),
        ("BEGIN {", (1, 8)),
        ("BEGIN { exit() ", (1, 16)),
        ("BEGIN { exit(); }}", (1, 18)),
        ("BEGIN { $x = 1 $y = 2; }", (1, 16)),
        ("BEGIN { printf(\"a }", (1, 16)),
        ("BEGIN { printf(\"a\n\"); }", (1, 16)),
        ("BEGIN { printf(\"\\q\"); }", (1, 17)),
        ("BEGIN { /* exit(); }", (1, 9)),
        ("BEGIN { /* /* */ system(\"id\"); */ }", (1, 12)),
        ("BEGIN { /*/ system(\"id\"); /*/ }", (1, 9)),
        ("BEGIN { // x \\\nsystem(\"id\"); }", (1, 14)),
        ("BEGIN { exit\\\n(); }", (1, 13)),
        ("BEGIN { 'id' }", (1, 9)),
        ("BEGIN { `id` }", (1, 9)),
        ("BEGIN { \u{ff53}ystem(\"id\"); }", (1, 9)),
        ("BEGIN { 0x; }", (1, 9)),
        ("BEGIN { 12abc; }", (1, 9)),
        ("BEGIN { $ = 1; }", (1, 9)),
        ("BEGIN { @x->system(\"id\"); }", (1, 19)),
        ("BEGIN { $x = { system(\"id\") }; }", (1, 14)),
        ("k:f /BEGIN { system(\"id\") }/ { }", (1, 12)),
        ("k:f/* { system(\"id\") } i:s:1 /*/ { }", (1, 4)),
        ("k:f// { system(\"id\") }\n{ }", (1, 4)),
        ("k:f/pid == 1/ { }", (1, 4)),
        ("iter:task:/pin/ { }", (1, 11)),
        ("iter:task:pin { }", (1, 1)),
        ("iter: { }", (1, 1)),
        ("kprobe: { }", (1, 1)),
        ("kprobe:a:b:c { }", (1, 1)),
        ("tracepoint:a { }", (1, 1)),
        ("tracepoint:a: { }", (1, 1)),
        ("kprobe:\"f\" { }", (1, 1)),
        ("kprobe:\"f { }", (1, 8)),
        ("kprobe:[a-z] { }", (1, 1)),
        ("BEGIN:x { }", (1, 1)),
        ("profile { }", (1, 1)),
        ("interval:s:0 { }", (1, 1)),
        ("interval:s:1:2 { }", (1, 1)),
        ("struct x { int a = system(\"id\"); }; BEGIN { }", (1, 18)),
        ("struct x { __attribute__((packed)) int a; }; BEGIN { }", (1, 25)),
        ("enum x { A = sizeof(int) }; BEGIN { }", (1, 14)),
        ("struct x; BEGIN { }", (1, 9)),
        ("config = { a = ; } BEGIN { }", (1, 16)),
        ("let @x = hash(system); BEGIN { }", (1, 15)),
        ("BEGIN { if 1 system(\"id\"); }", (1, 14)),
    ] {
        let error = refusal(program);
        let found = (error.line.unwrap(), error.column.unwrap());
        assert_eq!((error.category, found), (Category::Syntax, place), "{program:?}: {error}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    for (program, category, near) in [
        ("BEGIN { @ = cuont(); }", Category::UnknownFunction, "count"),
        ("BEGIN { print(com); }", Category::UnknownName, "comm"),
        ("Kprobe:f { }", Category::UnknownProbe, "kprobe"),
        ("tracepont:a:b { }", Category::UnknownProbe, "tracepoint"),
        ("Begin { }", Category::UnknownProbe, "begin"),
    ] {
        let error = refusal(program);
        assert_eq!((error.category, error.did_you_mean[0].as_str()), (category, near), "{program}: {error}");
    }
}

#[test]
fn size_and_nesting_are_bounded() {
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        format!("BEGIN {{ {}{inner}{} }}", open.repeat(times), close.repeat(times))
    };
    for (open, inner, close) in [
        ("{ ", "", " }"),
        ("if (1) { ", "", " }"),
        ("$x = (", "1", ");"),
        ("(", "1", ")"),
        ("@x[", "1", "]"),
        ("!", "1", ""),
        ("-", "1", ""),
        ("(uint8)", "1", ""),
        ("1 ? ", "1", " : 1"),
        ("print(", "1", ")"),
        ("1+", "1", ""),
        ("if 1 { } else ", "{ }", ""),
    ] {
        let error = refusal(&nested(open, inner, close, 3000));
        assert!(error.line.is_some() && error.message.len() < 200, "{open}: {error}");
    }
    for program in ["", "BEGIN { \0 }", &format!("BEGIN {{ }} {}", " ".repeat(1 << 16))] {
        assert_eq!(refusal(program).category, Category::BadInput);
    }
    assert!(STRICT.admit(&nested("(", "1", ")", 20)).is_ok());
    assert_eq!(refusal(&format!("struct x {}", "{".repeat(30_000))).category, Category::Policy);
    let hooks = |count: usize| format!("{} {{ }}", vec!["k:f"; count].join(","));
    assert!(STRICT.admit(&hooks(rules::PROBES)).is_ok());
    assert!(refusal(&hooks(rules::PROBES + 1)).message.contains("at most 512"));
}

#[test]
fn levels_are_what_they_say() {
    let program = "BEGIN { system(\"id\"); }";
    let at = |level| Policy { level, programs: false }.admit(program);
    assert_eq!(at(Level::Any), Ok(None));
    let never = Policy { level: Level::Never, programs: true }.admit("BEGIN { exit(); }").unwrap_err();
    assert_eq!((never.category, never.line), (Category::Policy, None));
    assert_eq!(at(Level::default()).unwrap_err().category, Category::Policy);
    for (name, level) in Level::ALL {
        assert_eq!((level.to_string().as_str(), name.parse()), (name, Ok(level)));
    }
    assert!("ANY".parse::<Level>().is_err());
}

#[test]
fn what_prints_at_each_event_is_told_from_what_does_not() {
    let output = |program: &str| {
        let hook = STRICT.admit(program).unwrap().unwrap().hooks.remove(0);
        hook.output.map(|output| (output.function, output.conditional))
    };
    assert_eq!(output("t:a:b { @ = count(); $x = strftime(\"%H\", nsecs); }"), None);
    assert_eq!(output("t:a:b { printf(\"x\"); }"), Some(("printf".into(), false)));
    assert_eq!(output("t:a:b /pid/ { time(); }"), Some(("time".into(), true)));
    assert_eq!(output("t:a:b { if (pid) { print(1); } else { join(args->argv); } }"), Some(("print".into(), true)));
    assert_eq!(output("t:a:b { if (pid) { print(1); } clear(@); }"), Some(("clear".into(), false)));
    assert_eq!(output("t:a:b { @ = count(); } interval:s:1 { print(@); }"), None);
}

/// Nothing that is made of scripts makes the policy panic, or take long, or point outside of the program.
#[test]
fn mutations_of_scripts_are_read_without_harm() {
    const PIECES: &[&str] = &[
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "/",
        "/*",
        "*/",
        "//",
        "\"",
        "\\",
        "#",
        "$1",
        "@",
        "é",
        "\u{202e}",
        "\n",
        "system(\"x\")",
        "if (",
        "else",
        "?",
        ":",
        "struct x {",
        "config = {",
        "kprobe:",
        ",",
        ";",
        "0x",
        "->",
        "unroll (",
        "for (",
        "-",
        "!",
        "BEGIN",
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below.max(1) as u64) as usize
    };
    let began = std::time::Instant::now();
    let mut refused = 0;
    for round in 0..5000 {
        let mut letters: Vec<char> = library()[round % library().len()].text.replace("$1", "1").chars().collect();
        for _ in 0..=next(4) {
            let (at, length) = (next(letters.len()), next(30));
            let end = (at + length).min(letters.len());
            match next(3) {
                0 => drop(letters.drain(at..end)),
                1 => drop(letters.splice(at..at, PIECES[next(PIECES.len())].chars())),
                _ => {
                    let copy: Vec<char> = letters[at..end].to_vec();
                    let to = next(letters.len());
                    drop(letters.splice(to..to, copy));
                }
            }
        }
        let program: String = letters.into_iter().collect();
        if let Err(error) = STRICT.admit(&program) {
            refused += 1;
            let (line, column) = (error.line.unwrap() as usize, error.column.unwrap() as usize);
            let text = program.split('\n').nth(line - 1).unwrap_or_else(|| panic!("{program:?}: {error}"));
            assert!(column <= text.len() + 1, "{program:?}: {error}");
        }
    }
    assert!(refused > 1000, "{refused}");
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
}

/// What is admitted is what a program without what is always refused looks like, whatever the text.
#[test]
fn no_text_is_a_panic_and_none_smuggles_a_refused_call() {
    let corpus: &[&[u8]] = &[
        b"tracepoint:syscalls:sys_enter_openat /pid == 7/ { @[comm, str(args->filename)] = count(); }",
        b"BEGIN { printf(\"%d\", 1); /* system(\"ls\") */ } // cat(\"/etc/shadow\")\nEND { clear(@); }",
        b"kprobe:vfs_*, kretprobe:vfs_read { if (arg0 > 1) { @h = hist(arg2); } else { delete(@h); } }",
        b"config = { max_map_keys=10 } interval:s:1 { $x = (uint64)1; unroll(3) { $x++; } system(\"id\"); signal(9); }",
        b"#include <x.h>\nstruct a { int b; }; uprobe:/bin/sh:main { override(1); }",
    ];
    let policy = Policy { level: Level::Policy, programs: false };
    for bytes in crate::fuzz::inputs(corpus, 20_000) {
        let text = String::from_utf8_lossy(&bytes);
        if policy.admit(&text).is_ok() {
            let bare = without_comments_and_strings(&text);
            for call in ["system(", "signal(", "override(", "#include", "uprobe:"] {
                assert!(!bare.contains(call), "{call} in {text:?}");
            }
        }
    }
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
