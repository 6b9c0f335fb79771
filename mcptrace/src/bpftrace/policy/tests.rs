use super::*;
use crate::scripts::{ByPid, library};

pub(super) const STRICT: Policy = Policy { level: Level::Policy, programs: false, reveals: Reveals::NONE };
const WITH_PROGRAMS: Policy = Policy { programs: true, ..STRICT };

/// With functions of programs, and some secrets shown.
fn revealing(words: &str) -> Policy {
    Policy { reveals: Reveals::of(words), ..WITH_PROGRAMS }
}

pub(super) fn refusal(program: &str) -> ScriptError {
    match STRICT.admit(program) {
        Err(error) => error,
        Ok(_) => panic!("admitted: {program:?}"),
    }
}

/// The category and the place of a refusal.
pub(super) fn place(error: &ScriptError) -> (Category, (u32, u32)) {
    (error.category, (error.line.unwrap_or(0), error.column.unwrap_or(0)))
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
        let open = Policy { programs: false, ..revealing("memory") };
        open.admit(program).unwrap_or_else(|error| panic!("{program:?}: {error}"));
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
    // More places for calls, and names that look like others.
    ("BEGIN { (system)(\"id\"); }", (1, 10), "runs commands"),
    ("BEGIN { $x = (signal *)9; }", (1, 15), "sends signals"),
    ("BEGIN { while (system(\"id\")) { } }", (1, 16), "runs commands"),
    ("BEGIN { if (1) { } else if (system(\"id\")) { } }", (1, 29), "runs commands"),
    ("BEGIN { return system(\"id\"); }", (1, 16), "runs commands"),
    ("BEGIN { let $x = system(\"id\"); }", (1, 18), "runs commands"),
    ("BEGIN { for $i : 0..system(\"id\") { } }", (1, 21), "runs commands"),
    ("BEGIN { delete(@x[system(\"id\")]); }", (1, 19), "runs commands"),
    ("BEGIN { @ = hist(cat(\"/etc/shadow\")); }", (1, 18), "reads any file"),
    ("BEGIN { !system(\"id\"); }", (1, 10), "runs commands"),
    ("BEGIN { 1 || system(\"id\"); }", (1, 14), "runs commands"),
    ("BEGIN { system(\"%s\", str($1)); }", (1, 26), "positional"),
    ("BEGIN { {{{ system(\"id\"); }}} }", (1, 13), "runs commands"),
    ("END { system(\"id\") }", (1, 7), "runs commands"),
    ("interval:s:1, BEGIN { system(\"id\") }", (1, 23), "runs commands"),
    ("BEGIN { sYsTeM(\"id\"); }", (1, 9), "runs commands"),
    ("BEGIN { CAT(\"/etc/shadow\"); }", (1, 9), "reads any file"),
    ("k:f { Override(0); }", (1, 7), "changes what"),
    ("k:f { $x = signal; }", (1, 12), "sends signals"),
    ("it:task { signal_thread(\"KILL\"); }", (1, 11), "sends signals"),
    ("BEGIN { printf(\"\\\\\\\"\"); cat(\"x\"); }", (1, 25), "reads any file"),
    ("BEGIN { printf(\"a\"); /* \" */ system(\"id\"); /* \" */ }", (1, 30), "runs commands"),
    ("BEGIN { // */\nsystem(\"id\"); }", (2, 1), "runs commands"),
    // More of the preprocessor.
    ("#line 1 \"/etc/shadow\"\nBEGIN { }", (1, 1), "preprocessor"),
    ("#include_next <x.h>\nBEGIN { }", (1, 1), "preprocessor"),
    ("#import <x.h>\nBEGIN { }", (1, 1), "preprocessor"),
    ("#embed \"/etc/shadow\"\nBEGIN { }", (1, 1), "preprocessor"),
    ("#!/bin/sh\n#include </etc/shadow>\nBEGIN { }", (2, 1), "preprocessor"),
    ("#define s sys##tem\nBEGIN { s(\"id\"); }", (1, 1), "preprocessor"),
    ("struct x {\n#include \"/etc/shadow\"\n}; BEGIN { }", (2, 1), "preprocessor"),
    ("BEGIN { system(\"id\"\n#define x\n); }", (2, 1), "preprocessor"),
    ("macro system2($x) { cat($x) } BEGIN { system2(\"x\"); }", (1, 1), "macro"),
    ("subprog f() { } BEGIN { }", (1, 1), "subprog"),
    ("BEGIN { } import \"stdlib/x\"", (1, 11), "import"),
    // More probes.
    ("usdt:*:* { }", (1, 1), "memory of other users"),
    ("uprobe:*:* { }", (1, 1), "memory of other users"),
    ("u:/proc/1/root/bin/x:main { }", (1, 1), "memory of other users"),
    ("u:/etc/shadow:\"x\" { }", (1, 1), "memory of other users"),
    ("w:f+arg0:1:x { }", (1, 1), "stop threads"),
    ("test:x { }", (1, 1), "bpftrace itself"),
    ("bench:x { }", (1, 1), "bpftrace itself"),
    ("hardware:cpu-cycles:100 { }", (1, 1), "too often"),
    ("profile:hz:18446744073709551615 { }", (1, 1), "times a second"),
    ("profile:ns:1 { }", (1, 1), "times a second"),
    // More settings.
    ("config = { unstable_import = enable } BEGIN { }", (1, 12), "unstable_import"),
    ("config = { cache_user_symbols = PER_PROGRAM } BEGIN { }", (1, 12), "cache_user_symbols"),
    ("config = { log_size = 1000000000 } BEGIN { }", (1, 12), "log_size"),
    ("config = { license = \"GPL\" } BEGIN { }", (1, 12), "license"),
    ("config = { max_ast_nodes = 0 } BEGIN { }", (1, 12), "max_ast_nodes"),
    ("config = { max_strlen = 0x7fffffff } BEGIN { }", (1, 25), "max_strlen"),
    ("config = { on_stack_limit = 99999 } BEGIN { }", (1, 29), "on_stack_limit"),
    ("let @x = lruhash(0xffffffff); BEGIN { }", (1, 18), "keys"),
    ("BEGIN { unroll (0x7fffffff) { } }", (1, 17), "unrolled"),
    // More letters that hide.
    ("BEGIN { /* \u{2028} */ }", (1, 12), "U+2028"),
    ("BEGIN { // \u{2029}system(\"id\");\n }", (1, 12), "U+2029"),
    ("BEGIN { printf(\"\u{202d}\"); }", (1, 17), "U+202D"),
    ("BEGIN { s\u{ad}ystem(\"id\"); }", (1, 10), "U+00AD"),
    ("BEGIN { sys\u{2060}tem(\"id\"); }", (1, 12), "U+2060"),
    ("BEGIN { \u{e0073}ystem(\"id\"); }", (1, 9), "U+E0073"),
    ("BEGIN { \u{8}\u{8}system(\"id\"); }", (1, 9), "U+0008"),
    ("BEGIN { \u{b}system(\"id\"); }", (1, 9), "U+000B"),
    ("BEGIN { \u{7f} }", (1, 9), "U+007F"),
];

/// Programs that would show what is not revealed, the place, and the kind that would have to be.
const SPIES: &[(&str, (u32, u32), &str)] = &[
    // Arguments of programs.
    ("t:syscalls:sys_enter_execve { join(args->argv); }", (1, 31), "arguments"),
    ("t:syscalls:sys_enter_execve { join(args.argv, \" \"); }", (1, 31), "arguments"),
    ("t:syscalls:sys_enter_execveat { printf(\"%s\", str(args->argv[1])); }", (1, 60), "arguments"),
    ("t:syscalls:sys_enter_execve { join(args->envp); }", (1, 31), "memory"),
    ("t:syscalls:sys_enter_* { join(args->argv); }", (1, 26), "memory"),
    ("k:f { $a = args->argv; print(str($a)); }", (1, 30), "memory"),
    ("p:hz:99 { @[curtask->mm->arg_start] = count(); }", (1, 26), "memory"),
    ("p:hz:99 { $m = curtask->mm; print($m->env_start); }", (1, 39), "memory"),
    // What programs write, send and are sent.
    ("t:syscalls:sys_enter_write { @[str(args->buf, args->count)] = count(); }", (1, 32), "memory"),
    ("t:syscalls:sys_enter_write { print(str(args.buf)); }", (1, 36), "memory"),
    ("t:syscalls:sys_enter_write { print(str((uint64)args.filename)); }", (1, 36), "memory"),
    ("t:syscalls:sys_enter_write { print(str(args.filename + 1)); }", (1, 36), "memory"),
    ("t:syscalls:sys_enter_write { print(str(pid ? args.buf : args.filename)); }", (1, 36), "memory"),
    ("t:syscalls:sys_enter_write { print(str((args.filename))); }", (1, 36), "memory"),
    ("t:syscalls:sys_enter_sendto { print(buf(args->buff, 64)); }", (1, 37), "memory"),
    ("t:syscalls:sys_enter_write /str(args->buf) == \"x\"/ { }", (1, 29), "memory"),
    ("t:syscalls:sys_enter_write /strncmp(str(args->buf), \"x\", 1) == 0/ { }", (1, 37), "memory"),
    ("t:syscalls:sys_enter_write { printf(\"%c\", *args->buf); }", (1, 43), "memory"),
    ("t:syscalls:sys_enter_write { printf(\"%c\", args->buf[3]); }", (1, 52), "memory"),
    ("t:syscalls:sys_enter_write { $b = args->buf; printf(\"%c\", $b[3]); }", (1, 61), "memory"),
    ("t:syscalls:sys_enter_write { print(((struct new_utsname *)args->buf)->sysname); }", (1, 37), "memory"),
    (
        "t:syscalls:sys_enter_write { @b = args->buf; } t:sched:sched_switch { $u = (struct task_struct *)@b; print($u->comm); }",
        (1, 76),
        "memory",
    ),
    (
        "t:sched:sched_switch { $l = (struct list_head *)@a; $u = (struct new_utsname *)$l->prev; print($u->sysname); }",
        (1, 29),
        "memory",
    ),
    (
        "t:net:net_dev_queue { $s = (struct sk_buff *)args->skbaddr; $u = (struct dentry *)($s->data + 54); print($u->d_iname); }",
        (1, 66),
        "memory",
    ),
    ("t:net:net_dev_queue { $u = (struct new_utsname *)args->skbaddr; print($u->sysname); }", (1, 28), "memory"),
    ("t:sched:sched_switch { $u = (struct file *)18446612682070000000; print($u->f_flags); }", (1, 29), "memory"),
    (
        "k:f { $s = (struct sk_buff *)arg0; $p = $s->data; $u = (struct dentry *)$p; print($u->d_iname); }",
        (1, 56),
        "memory",
    ),
    ("k:f { $n = (uint64)arg0; $u = (struct dentry *)$n; print($u->d_iname); }", (1, 31), "memory"),
    ("k:f { $u = (struct dentry *)-arg0; print($u->d_iname); }", (1, 12), "memory"),
    ("k:f { $s = (struct sock *)arg0; $s++; $u = (struct file *)$s; print($u->f_flags); }", (1, 44), "memory"),
    ("p:hz:99 { $u = (struct file *)curtask; print($u->f_flags); }", (1, 16), "memory"),
    ("t:syscalls:sys_enter_write { @[macaddr(args->buf)] = count(); }", (1, 32), "memory"),
    ("t:*:sys_enter_write { print(((struct new_utsname *)args->buf)->sysname); }", (1, 30), "memory"),
    ("t:raw_syscalls:sys_enter { print(str(args->args[1])); }", (1, 34), "memory"),
    ("t:raw_syscalls:sys_enter { print(((struct new_utsname *)args->args[1])->sysname); }", (1, 35), "memory"),
    ("t:syscalls:sys_enter_sendto { $a = (struct sockaddr_un *)args->buff; print($a->sun_path); }", (1, 36), "memory"),
    ("t:syscalls:sys_enter_connect { $a = (struct task_struct *)args->uservaddr; }", (1, 37), "memory"),
    // By names that other things go by.
    ("t:syscalls:sys_enter_write { $filename = args->buf; print(str($filename)); }", (1, 59), "memory"),
    ("t:a:b { @f = args->filename; } k:f { @f = arg1; } k:g { print(str(@f)); }", (1, 63), "memory"),
    ("t:a:b { @f = args->filename; @f += 8; print(str(@f)); }", (1, 45), "memory"),
    ("t:a:b { @f = args->filename; @f++; print(str(@f)); }", (1, 42), "memory"),
    ("t:a:b { @f = args->filename; ++@f; print(str(@f)); }", (1, 42), "memory"),
    ("t:a:b { $f = args->filename; for ($f : @x) { print(str($f)); } }", (1, 52), "memory"),
    ("t:a:b { let $f = arg1; print(str($f)); }", (1, 30), "memory"),
    ("t:a:b { print(str(@never)); }", (1, 15), "memory"),
    ("t:a:b { for ($kv : @x) { print(str($kv.1)); } }", (1, 32), "memory"),
    ("k:f { print(str(arg1)); }", (1, 13), "memory"),
    ("k:f { print(str(*(uint64 *)arg1)); }", (1, 18), "memory"),
    ("kr:f { print(str(retval)); }", (1, 14), "memory"),
    ("k:f { print(str(uptr(arg1))); }", (1, 17), "memory"),
    ("k:f { print(str(kptr(arg1))); }", (1, 13), "memory"),
    ("k:f { print(str(reg(\"si\"))); }", (1, 13), "memory"),
    ("k:f { print(str(sarg0)); }", (1, 13), "memory"),
    // By types of one's own, or of none.
    ("struct s { char filename[64]; } t:a:b { }", (1, 1), "memory"),
    ("union u { uint64 a[8]; } t:a:b { }", (1, 1), "memory"),
    ("k:f { $x = (uint8 *)arg1; print($x); }", (1, 12), "memory"),
    ("k:f { print(*(uint64 *)arg1); }", (1, 14), "memory"),
    ("k:f { print(*(struct sk_buff *)arg1); }", (1, 13), "memory"),
    ("k:f { print(**(uint64 **)kaddr(\"x\")); }", (1, 13), "memory"),
    ("k:f { print(*((uint64 *)kaddr(\"x\") + 1)); }", (1, 13), "memory"),
    ("k:f { $s = (struct sk_buff *)arg0; print($s->data[12]); }", (1, 50), "memory"),
    // With clocks and counters bpftrace reads wherever a number points to.
    (
        "t:a:b { @p = (uint64)args->buf; } s:faults:1 { print(((struct new_utsname *)(@p + 0))->sysname); }",
        (1, 55),
        "memory",
    ),
    (
        "p:hz:99 { $t = (struct task_struct *)curtask; print(((struct new_utsname *)$t->mm->brk)->sysname); }",
        (1, 54),
        "memory",
    ),
    ("i:s:1 { print(((struct new_utsname *)@p)->sysname); }", (1, 16), "memory"),
    // DNS names, in the memory of the kernel.
    ("k:udp_send_skb { $s = (struct sk_buff *)arg0; print(str($s->data + 12)); }", (1, 53), "memory"),
    ("k:udp_send_skb { $s = (struct sk_buff *)arg0; print(buf($s->data, 64)); }", (1, 53), "memory"),
];

#[test]
fn what_would_show_secrets_is_refused_until_the_operator_reveals_them() {
    let found = |program: &str| place(&refusal(program));
    let wrong: Vec<_> =
        SPIES.iter().filter(|(program, place, _)| found(program) != (Category::Policy, *place)).collect();
    assert!(
        wrong.is_empty(),
        "{:#?}",
        wrong.iter().map(|(program, ..)| (program, refusal(program).to_string())).collect::<Vec<_>>()
    );
    for (program, _, kind) in SPIES {
        let error = refusal(program);
        let remedy = error.remedy.unwrap_or_else(|| panic!("{program:?}"));
        assert!(remedy.contains(&format!("secrets.reveal = [\"{kind}\"]")), "{program:?}: {remedy}");
        revealing(kind).admit(program).unwrap_or_else(|error| panic!("{program:?} with {kind}: {error}"));
        revealing("names").admit(program).unwrap_err();
    }
    for (program, place) in [
        ("u:/lib/libc.so.6:getaddrinfo { print(str(arg0)); }", (1, 38)),
        ("ur:/bin/bash:readline { print(str(retval)); }", (1, 31)),
        ("usdt:/bin/x:a:b { print(buf(arg1, 10)); }", (1, 25)),
        ("u:/bin/x:main { join(arg1); }", (1, 17)),
        ("u:/bin/x:f { print(((struct new_utsname *)arg0)->sysname); }", (1, 21)),
        ("u:/bin/x:f { $x = (struct qstr *)arg0; print(str($x->name)); }", (1, 19)),
        ("u:/bin/x:f { print(*(uint8 *)arg0); }", (1, 21)),
        ("k:f, u:/bin/x:f { print(arg0[1]); }", (1, 29)),
        ("u:/bin/x:f, t:a:b { print(str(args->filename)); }", (1, 27)),
    ] {
        let error = WITH_PROGRAMS.admit(program).unwrap_err();
        assert_eq!((error.line.unwrap(), error.column.unwrap()), place, "{program:?}: {error}");
        assert!(
            error.remedy.unwrap().contains("secrets.reveal = [\"texts\"]") || program.starts_with("k:f"),
            "{program}"
        );
        revealing("texts,memory").admit(program).unwrap_or_else(|error| panic!("{program:?}: {error}"));
        revealing("arguments,names").admit(program).unwrap_err();
    }
}

#[test]
fn names_of_things_and_the_kernels_own_structs_are_read_all_the_same() {
    for program in [
        "t:syscalls:sys_enter_openat { printf(\"%s %s\\n\", comm, str(args->filename)); }",
        "t:syscalls:sys_enter_openat { @filename[tid] = args.filename; } t:syscalls:sys_exit_openat /@filename[tid]/ { printf(\"%s\\n\", str(@filename[tid])); delete(@filename[tid]); }",
        "t:syscalls:sys_enter_execve { $f = args->filename; @[str($f, 64)] = count(); }",
        "t:sched:sched_process_exec { @[str(args.filename)] = count(); }",
        "t:sched:sched_switch { @[args->next_comm, args.prev_pid] = count(); }",
        "t:raw_syscalls:sys_enter { @[args->id, args->args[0]] = count(); }",
        "t:sock:inet_sock_set_state { @[ntop(args->family, args->daddr), ntop(args->saddr_v6)] = count(); }",
        "k:tcp_connect { $sk = (struct sock *)arg0; @[$sk->__sk_common.skc_dport] = count(); }",
        "k:tcp_connect { $sk = ((struct sock *) arg0); $t = (struct tcp_sock *)$sk; print($t->srtt_us); }",
        "k:do_unlinkat { print(str(((struct filename *)arg1)->name)); }",
        "k:vfs_open { print(str(((struct path *)arg0)->dentry->d_name.name)); }",
        "f:vfs_open { print(str(args->path->dentry->d_name.name)); }",
        "k:f { print(*(uint64 *)kaddr(\"jiffies_64\")); $r = (struct rq *)percpu_kaddr(\"runqueues\"); }",
        "p:hz:99 { $t = (struct task_struct *)curtask; @[$t->se.load.weight, $t->parent->comm] = count(); }",
        "t:syscalls:sys_enter_connect { @[((struct sockaddr *)args->uservaddr)->sa_family] = count(); }",
        "t:syscalls:sys_enter_connect { $t = (struct task_struct *)curtask; @[$t->parent->pid] = count(); }",
        "u:/bin/x:main { @[arg0, (uint32)arg1] = count(); }",
        "t:a:b { $x = (uint64)args->buf; $y = (int32[2])$x; }",
    ] {
        WITH_PROGRAMS.admit(program).unwrap_or_else(|error| panic!("{program:?}: {error}"));
    }
}

/// What comes with this program is known to read no secrets; what has been changed in it is not.
#[test]
fn scripts_of_the_library_have_structs_of_their_own() {
    let program = crate::scripts::find("datagram_peers").unwrap().program(Some(4711)).unwrap();
    STRICT.admit(&program).unwrap();
    for changed in [program.replacen("4711", "4712", 1), program.replacen("uint16_t", "uint64_t", 1), program + " "] {
        assert!(refusal(&changed).message.contains("struct of the program's own"));
    }
}

#[test]
fn attacks_are_refused_at_their_place() {
    let found = |program: &str| place(&refusal(program));
    let wrong: Vec<_> =
        ATTACKS.iter().filter(|(program, place, _)| found(program) != (Category::Policy, *place)).collect();
    assert!(
        wrong.is_empty(),
        "{:#?}",
        wrong.iter().map(|(program, ..)| (program, refusal(program).to_string())).collect::<Vec<_>>()
    );
    for (program, _, word) in ATTACKS {
        let error = refusal(program);
        assert!(error.message.contains(word), "{program:?}: {error}");
        assert!(error.remedy.is_some(), "{program:?}");
    }
    assert!(ATTACKS.len() >= 100);
}

#[test]
fn what_is_not_understood_is_refused_at_its_place() {
    let programs = [
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
        ("BEGIN { \u{455}ystem(\"id\"); }", (1, 9)),
        ("BEGIN { s\u{131}gnal(9); }", (1, 10)),
        ("BEGIN { \u{37e} }", (1, 9)),
        ("BEGIN { \u{a0}exit(); }", (1, 9)),
        ("%:include \"/etc/shadow\"\nBEGIN { }", (1, 1)),
        ("??=include \"/etc/shadow\"\nBEGIN { }", (1, 1)),
        ("BEGIN { sys\\u0074em(\"id\"); }", (1, 12)),
        ("BEGIN { printf(\"\\\n\"); system(\"id\"); }", (1, 17)),
        ("BEGIN { @[system(\"id\"] = 1; }", (1, 22)),
        ("BEGIN { printf(\"a\" system(\"id\")); }", (1, 20)),
        ("BEGIN { $system(\"id\"); }", (1, 16)),
        ("BEGIN { @system(\"id\"); }", (1, 16)),
        ("BEGIN { exit(); } }{ system(\"id\")", (1, 19)),
        ("BEGIN { } END", (1, 14)),
        ("k:f /1/ /1/ { }", (1, 9)),
        ("k:f { } { system(\"id\"); }", (1, 9)),
        (",k:f { }", (1, 1)),
        ("k:f, { }", (1, 6)),
    ];
    let found = |program: &str| place(&refusal(program));
    let wrong: Vec<_> =
        programs.iter().filter(|(program, place)| found(program) != (Category::Syntax, *place)).collect();
    assert!(
        wrong.is_empty(),
        "{:#?}",
        wrong.iter().map(|(program, _)| (program, refusal(program).to_string())).collect::<Vec<_>>()
    );
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
    // Loops within loops multiply, and those after each other add up.
    let unrolled = |times: &[u32], inner: &str| {
        times.iter().fold(inner.to_owned(), |inner, times| format!("unroll ({times}) {{ {inner} }}"))
    };
    for (inner, good) in [
        (unrolled(&[10, 100], "@a = 1;"), true),
        (unrolled(&[11, 100], "@a = 1;"), false),
        (unrolled(&[100; 40], ""), false),
        (unrolled(&[10, 100], "@a = 1;").repeat(8), true),
        (unrolled(&[10, 100], "@a = 1;").repeat(20), false),
        (unrolled(&[100], "@a = 1;").repeat(20), true),
    ] {
        let found = STRICT.admit(&format!("BEGIN {{ {inner} }}"));
        assert_eq!(found.is_ok(), good, "{inner}: {found:?}");
        assert!(found.err().is_none_or(|error| error.message.contains("unrolled")), "{inner}");
    }
    let hooks = |count: usize| format!("{} {{ }}", vec!["k:f"; count].join(","));
    assert!(STRICT.admit(&hooks(rules::PROBES)).is_ok());
    assert!(refusal(&hooks(rules::PROBES + 1)).message.contains("at most 512"));
}

#[test]
fn what_a_type_of_probes_is_of_goes_by_its_table() {
    let kinds = ["BEGIN", "interval", "p", "software", "h", "tracepoint", "kprobe", "usdt", "nonsense"];
    let of = |wanted: fn(&str) -> bool| kinds.into_iter().filter(|kind| wanted(kind)).collect::<Vec<_>>();
    assert_eq!(of(rules::is_counter), ["software", "h"]);
    assert_eq!(of(rules::takes_path), ["usdt"]);
    assert_eq!(of(rules::is_of_kernel), ["tracepoint", "kprobe"]);
}

#[test]
fn counters_run_over_so_often_and_no_more() {
    for hook in ["software:page-faults:1", "s:faults", "s:cpu-clock:1000000", "hardware:cycles:10000", "h:cycles"] {
        assert!(STRICT.admit(&format!("{hook} {{ @ = count(); }}")).is_ok(), "{hook}");
    }
    for hook in ["s:cpu-clock:999999", "s:task-clock:999999", "s:cpu:1", "hardware:cycles:9999"] {
        let error = refusal(&format!("{hook} {{ @ = count(); }}"));
        assert!(error.message.contains("fires too often"), "{hook}: {error}");
    }
}

#[test]
fn a_setting_that_is_none_is_answered_with_those_that_are() {
    let error = refusal("config = { nonsense = 1 } BEGIN { }");
    assert!(format!("{error} {error:?}").contains("max_strlen"), "{error:?}");
}

#[test]
fn a_hook_that_is_none_is_told_how_its_type_is_written() {
    assert!(refusal("tracepoint:sched { }").message.contains("write tracepoint:group:name"));
    assert!(refusal("kprobe:a:b:c { }").message.contains("write one name after the type"));
}

#[test]
fn levels_are_what_they_say() {
    let program = "BEGIN { system(\"id\"); }";
    let at = |level| Policy { level, ..STRICT }.admit(program);
    assert_eq!(at(Level::Any), Ok(None));
    let never = Policy { level: Level::Never, ..WITH_PROGRAMS }.admit("BEGIN { exit(); }").unwrap_err();
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
        let mut hook = revealing("memory").admit(program).unwrap().unwrap().hooks.remove(0);
        (!hook.outputs.is_empty()).then(|| hook.outputs.remove(0)).map(|output| (output.function, output.conditional))
    };
    assert_eq!(output("t:a:b { @ = count(); $x = strftime(\"%H\", nsecs); }"), None);
    assert_eq!(output("t:a:b { printf(\"x\"); }"), Some(("printf".into(), false)));
    assert_eq!(output("t:a:b /pid/ { time(); }"), Some(("time".into(), true)));
    assert_eq!(output("t:a:b { if (pid) { print(1); } else { join(@); } }"), Some(("print".into(), true)));
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
