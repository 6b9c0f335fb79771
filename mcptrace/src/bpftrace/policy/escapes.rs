//! More ways out, with syntax of later versions too: each program has a `§` where it is refused.

use super::{
    tests::{STRICT, place, refusal},
    *,
};

/// What is refused, and a word of the reason.
const ESCAPES: &[(&str, &str)] = &[
    // Functions that act, in further places.
    ("BEGIN { exit(§system(\"x\")); }", "runs commands"),
    ("BEGIN { $x = (1, (2, §system(\"x\"))); }", "runs commands"),
    ("BEGIN { @system = 1; $system = 2; print(@system); §system(\"x\"); }", "runs commands"),
    ("BEGIN { /**/§system/**/(/**/\"x\"/**/)/**/ }", "runs commands"),
    ("BEGIN{$x=\"a\";if($x==\"a\"){§system($x)}}", "runs commands"),
    ("k:f\n/§system(\"x\")/\n{ }", "runs commands"),
    ("kprobe:a,kprobe:b{§system(\"x\")}", "runs commands"),
    ("k:f { @ = lhist(§cat(\"x\"), 0, 1, 1); }", "reads any file"),
    ("k:f { @x[§signal(\"KILL\")] = 1; }", "sends signals"),
    ("i:1s { if §signal(9) { } }", "sends signals"),
    ("BEGIN { unroll (§system(\"x\")) { } }", "expected a number"),
    // Functions of later versions and of none.
    ("BEGIN { $x = §typeof(pid); }", "Unknown function"),
    ("BEGIN { §assert(1, \"x\"); }", "Unknown function"),
    ("BEGIN { §assert_eq(1, 1); }", "Unknown function"),
    ("BEGIN { §fail(\"x\"); }", "Unknown function"),
    ("BEGIN { §syscall(\"x\"); }", "Unknown function"),
    ("BEGIN { §fopen(\"/etc/shadow\"); }", "Unknown function"),
    ("BEGIN { §strcap(arg0); }", "Unknown function"),
    ("BEGIN { §__system(\"x\"); }", "Unknown function"),
    ("BEGIN { §__builtin_system(\"x\"); }", "Unknown function"),
    ("BEGIN { $x = §__builtin_kstack; }", "Unknown identifier"),
    // Definitions, macros, imports, subprograms.
    ("§fn f() : void { system(\"x\") } BEGIN { f(); }", "`fn` is refused"),
    ("§macro m($x) { $x } BEGIN { }", "`macro` is refused"),
    ("§import \"stdlib/base.bt\"; BEGIN { }", "`import` is refused"),
    ("BEGIN { import §\"x\"; }", "unexpected"),
    ("BEGIN { macro §x() { } }", "unexpected"),
    ("BEGIN { comptime §{ system(\"id\") } }", "unexpected"),
    ("BEGIN { if §comptime (1) { } }", "Unknown function"),
    ("BEGIN { $f = fn() §{ system(\"x\") }; }", "unexpected"),
    ("BEGIN { let $x : typeof§(system(\"x\")); }", "unexpected"),
    ("BEGIN §=> system(\"x\")", "unexpected"),
    ("§@x = 1; BEGIN { }", "unexpected"),
    ("let §$x = 1; BEGIN { }", "unexpected"),
    ("k:f { $t = (filename§=arg1, b=1); print(str($t.filename)); }", "unexpected"),
    ("k:f { $x = arg1 §as uint64; }", "unexpected"),
    // Signs that other languages call by.
    ("BEGIN { §`system`(\"x\") }", "has no meaning"),
    ("BEGIN { s§\\ystem(\"x\") }", "has no meaning"),
    ("t:sched:sched_switch§\\\n{ }", "has no meaning"),
    ("BEGIN { §::system(\"x\") }", "unexpected"),
    ("BEGIN { kernel§::system(\"x\") }", "unexpected"),
    ("BEGIN { §.system(\"x\") }", "unexpected"),
    ("BEGIN { $x.system§(\"x\") }", "unexpected"),
    ("BEGIN { @x[1].system§(\"x\") }", "unexpected"),
    ("BEGIN { $x = §$2x; }", "positional"),
    // What is set without its name.
    ("k:f { $x = args->filename; ($x)§++; print(str($x)); }", "only a variable or a map"),
    ("k:f { @x = args->filename; (@x) §= arg1; print(str(@x)); }", "only a variable or a map"),
    ("k:f { §++(1); }", "only a variable or a map"),
    ("k:f { args->x §= 1; }", "only a variable or a map"),
    // Probes and clocks.
    ("§begin:x { }", "takes no name"),
    ("§uprobe:/bin/bash:* { }", "memory of other users"),
    ("fentry:a, §watchpoint:0x10:8:w { }", "stop threads"),
    ("§interval:999999999999999999999999s { }", "a unit and a number"),
    ("§interval:hz:0x10 { }", "a unit and a number"),
    ("§i:0s { }", "a unit and a number"),
    ("§profile:999999ns { }", "times a second"),
    ("§profile:hz:1001 { }", "times a second"),
    ("§software:cpu:1 { }", "too often"),
    // Settings, with numbers in quotes.
    ("config = { max_map_keys = §\"100000000\" } BEGIN { }", "max_map_keys"),
    ("config = { max_strlen = §lots } BEGIN { }", "max_strlen"),
    ("config = { on_stack_limit = §\"99999\" } BEGIN { }", "on_stack_limit"),
    ("config = { §unstable_macro = enable } BEGIN { }", "unstable_macro"),
    ("config = { §symbol_source = \"dwarf\" } BEGIN { }", "symbol_source"),
    // Texts in the memory of the kernel: what stands in what a hook is given, and texts inside of objects that it may be taken for.
    ("f:udp_send_skb { $u = §(struct dentry *)args->skb->data; print($u->d_flags); }", "this cast"),
    ("f:udp_send_skb { print((§(struct dentry *)args->skb->data)->d_flags); }", "this cast"),
    ("k:f { print(§(string)arg1); }", "this cast"),
    ("k:f { print(§(string[16])arg1); }", "this cast"),
    ("k:f { print(((struct sk_buff *)arg1)->§cb); }", "the field `cb`"),
    ("rt:sys_enter { print(((struct sk_buff *)arg0)->§cb); }", "the field `cb`"),
    ("k:f { $b = (struct linux_binprm *)arg0; print($b->§buf); }", "the field `buf`"),
    ("k:f { print(((struct dentry *)arg1)->§d_iname); }", "the field `d_iname`"),
    ("k:f { print(((struct dentry *)arg1)->§d_shortname.string); }", "the field `d_shortname`"),
    ("k:f { print(((struct filename *)arg1)->§iname); }", "the field `iname`"),
    // What was reckoned, or stands in brackets, is no longer what a hook is given.
    ("k:f { $s = -(struct sock *)arg0; $u = §(struct file *)$s; print($u->f_flags); }", "this cast"),
    ("k:f { $n = (@x); $u = §(struct file *)$n; print($u->f_flags); }", "this cast"),
    ("k:f { $n = (((struct sk_buff *)arg0)->data); $u = §(struct file *)$n; print($u->f_flags); }", "this cast"),
    ("t:a:b { $u = §(struct file *)args->saddr[0]; print($u->f_flags); }", "this cast"),
    // A field of what was named is not the name.
    ("t:a:b { $f = args->filename; print(§str($f->body)); }", "str() of what is not a field"),
    // Slashes: of a comment, which bpftrace may take for part of a name, and of a path.
    ("BEGIN§// c\n{ }", "between the name of a probe and a comment"),
    ("BEGIN§/* c */{ }", "between the name of a probe and a comment"),
    ("u:/bin§//sh:f { }", "between the name of a probe and a comment"),
    // What is no number, and what is no value.
    ("BEGIN { $x = §0xfg; }", "`0xfg` is no number"),
    ("BEGIN { $x = §1e; }", "`1e` is no number"),
    ("BEGIN { $x = §1ex; }", "`1ex` is no number"),
    ("BEGIN { unroll (§$12) { } }", "unexpected `$12`"),
    ("BEGIN { $x = §]; }", "expected a value"),
    ("BEGIN { $x = §", "unexpected the end of the program"),
];

/// The program, and where it has its mark.
fn marked(text: &str) -> (String, (u32, u32)) {
    let (before, _) = text.split_once('§').unwrap();
    let (line, column) = position(text, before.len());
    (text.replace('§', ""), (line, column))
}

#[test]
fn further_escapes_are_refused_at_their_place() {
    let wrong: Vec<String> = ESCAPES
        .iter()
        .filter_map(|(text, word)| {
            let (program, at) = marked(text);
            let error = refusal(&program);
            let right = place(&error).1 == at && error.message.contains(word);
            (!right).then(|| format!("{text:?}: {:?} {error}", place(&error).1))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn numbers_that_are_arguments_are_read_all_the_same() {
    for program in [
        "t:syscalls:sys_enter_write { @[args->buf, args.count] = count(); }",
        "f:tcp_sendmsg { $s = (struct tcp_sock *)args->sk; print($s->srtt_us); }",
        "f:vfs_open { print(str(args->path->dentry->d_name.name)); }",
        "config = { max_map_keys = 100; print_maps_on_exit = false; stack_mode = \"perf\" } BEGIN { }",
        "BEGIN/1/ { $x = 0xff_ff + 1e6; }",
    ] {
        STRICT.admit(program).unwrap_or_else(|error| panic!("{program:?}: {error}"));
    }
}

/// What stands side by side is not nested, however much of it there is.
#[test]
fn programs_may_be_long_where_they_may_not_be_deep() {
    for piece in ["{ }", "if (1) { } else { }", "$x = 1;", "$x = (1);", "$x = 1 ? 2 : 3;"] {
        STRICT.admit(&format!("BEGIN {{ {} }}", piece.repeat(200))).unwrap_or_else(|error| panic!("{piece}: {error}"));
    }
    let structs = format!("struct x {{ {} }}; BEGIN {{ }}", "struct { int a; } b;".repeat(200));
    Policy { reveals: Reveals::of("memory"), ..STRICT }.admit(&structs).unwrap();
}

#[test]
fn nesting_operators_and_statements_are_counted_to_the_last() {
    let nested = |levels: usize| format!("BEGIN {}{}", "{".repeat(levels), "}".repeat(levels));
    assert!(STRICT.admit(&nested(64)).is_ok());
    assert!(refusal(&nested(65)).message.contains("at most 64 levels"));
    let operators = |count: usize| format!("BEGIN {{ $x = 1{}; }}", "+1".repeat(count));
    assert!(STRICT.admit(&operators(512)).is_ok());
    assert!(refusal(&operators(513)).message.contains("at most 512 operators"));
    let statements = |count: usize| format!("BEGIN {{ {} }}", ";".repeat(count));
    assert!(STRICT.admit(&statements(16_384)).is_ok());
    assert!(refusal(&statements(16_385)).message.contains("at most 16384 statements"));
}

/// Many calls, and loops, print more at each event than one call does.
#[test]
fn what_is_printed_at_each_event_adds_up() {
    let of = |program: &str| {
        let hook = STRICT.admit(program).unwrap().unwrap().hooks.remove(0);
        hook.outputs.into_iter().map(|output| (output.conditional, output.times)).collect::<Vec<_>>()
    };
    for (program, outputs) in [
        ("i:s:1 { @ = count(); }", &[][..]),
        ("i:s:1 { print(1); print(2); time(); }", &[(false, 3)]),
        ("i:s:1 { while (@i < 9) { print(@i); @i++; } }", &[(false, 1000)]),
        ("i:s:1 { for $i : 0..9 { print($i); } }", &[(false, 1000)]),
        ("i:s:1 { for ($kv : @m) { unroll (3) { print($kv.0); } } print(1); }", &[(false, 3001)]),
        ("i:s:1 { while (1) { while (1) { print(1); } } }", &[(false, 1_000_000)]),
        ("i:s:1 { print(1); if (pid) { unroll (7) { print(2); } } else { print(3); } }", &[(false, 1), (true, 8)]),
        ("i:s:1 /pid/ { print(1); print(2); }", &[(true, 2)]),
        ("i:s:1 { $x = pid ? 1 : 2; print($x); }", &[(false, 1)]),
    ] {
        assert_eq!(of(program), outputs, "{program}");
    }
}
