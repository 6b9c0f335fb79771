//! Native probes beside tools of others on the real kernel: both watch the same workload at once, and both must have counted what the
//! workload did. Needs root, bpftrace and libbpf-tools; without, it fails.
//!
//! `cpu_profile` has no row: two samplers look at different moments. `usdt_events` has none: beside another tracer of the same place
//! bpftrace 0.17 sees nothing of it. `bpf_programs` is compared with bpftool in its own file.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Report, Row, Series},
};
use mcptrace_tests::{
    memory_group::Limited,
    peers::{Bucket, Peer, columns, drawn, histogram, map, number},
    probing::{events, of_pid, rows, series, start, stop},
    workload::{Workload, hex},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const FUNCTIONS: &str = env!("CARGO_BIN_EXE_function_workload");

/// Numbers by what they are of.
type Counts = BTreeMap<String, u64>;

/// A probe, a tool that can be asked the same, and a workload that knows what it did.
struct Pair {
    probe: &'static str,
    options: fn(&Scene) -> Value,
    only: Only,
    /// The program that works.
    program: &'static str,
    /// What is there before anybody watches.
    prepare: fn(&mut Scene),
    peer: fn(&Scene) -> Peer,
    /// What is watched; gives what the workload itself knows of it.
    work: fn(&mut Scene) -> Counts,
    ours: fn(&Envelope, &Scene) -> Counts,
    theirs: fn(&str, &Scene) -> Counts,
    /// How many fewer and more there may be than the workload knows of, and why.
    difference: Option<(u64, u64, &'static str)>,
    /// Where both have a distribution: it has to be the same within what the buckets tell.
    spread: Option<Spread>,
}

/// Where each has its distribution.
struct Spread {
    ours: fn(&Envelope) -> Option<&Series>,
    theirs: fn(&str) -> Vec<Bucket>,
}

/// Whom the probe looks at.
enum Only {
    Process,
    /// The workload and its children.
    Family,
    /// Everybody: what it counts belongs to no process.
    All,
}

/// What a row is made of that it does not write.
const PAIR: Pair = Pair {
    probe: "",
    options: |_| json!({}),
    only: Only::Process,
    program: WORKLOAD,
    prepare: |_| (),
    peer: |_| unreachable!("every row has a peer"),
    work: |_| Counts::new(),
    ours: |_, _| Counts::new(),
    theirs: |_, _| Counts::new(),
    difference: None,
    spread: None,
};

macro_rules! pairs {
    ($($name:ident: $pair:expr;)*) => { $(#[test] fn $name() { agree(&$pair); })* };
}

const SCHEDULER: Option<(u64, u64, &str)> = Some((
    7,
    50,
    "a nap whose time is up before the thread has left its CPU is no wait, and a busy machine takes the CPU away between two",
));

pairs! {
    syscall_counts_and_bpftrace: Pair {
        probe: "syscall_counts",
        peer: |scene| Peer::script(&format!(
            "tracepoint:raw_syscalls:sys_enter /pid == {pid}/ {{ @calls[args->id] = count(); }}
            tracepoint:raw_syscalls:sys_exit /pid == {pid} && args->ret < 0/ {{ @errors[args->id] = count(); }}",
            pid = scene.pid()
        )),
        work: fail_calls,
        ours: |envelope, _| of_rows(envelope, &[("getppid", "syscall", "getppid", "calls"), ("close", "syscall", "close", "calls"), ("closes that fail", "syscall", "close", "errors")]),
        theirs: |text, _| {
            let (calls, errors) = (map(text, "@calls"), map(text, "@errors"));
            counts([("getppid", by_number(&calls, libc::SYS_getppid)), ("close", by_number(&calls, libc::SYS_close)),
                ("closes that fail", by_number(&errors, libc::SYS_close))])
        },
        ..PAIR
    };
    syscall_counts_and_syscount: Pair {
        probe: "syscall_counts",
        peer: |scene| Peer::tool(&["syscount", "-p", &scene.pid().to_string()], 1),
        work: fail_calls,
        ours: |envelope, _| of_rows(envelope, &[("getppid", "syscall", "getppid", "calls"), ("close", "syscall", "close", "calls")]),
        theirs: |text, _| counts([("getppid", cell(text, "getppid", 1)), ("close", cell(text, "close", 1))]),
        ..PAIR
    };
    syscall_errors_and_syscount: Pair {
        probe: "syscall_errors",
        peer: |scene| Peer::tool(&["syscount", "-x", "-p", &scene.pid().to_string()], 1),
        work: fail_calls,
        ours: |envelope, _| of_rows(envelope, &[("closes that fail", "syscall", "close", "errors")]),
        theirs: |text, _| counts([("closes that fail", cell(text, "close", 1))]),
        ..PAIR
    };
    syscall_errors_and_bpftrace: Pair {
        probe: "syscall_errors",
        peer: |scene| Peer::script(&format!(
            "tracepoint:raw_syscalls:sys_exit /pid == {} && args->ret == -{}/ {{ @errors[args->id] = count(); }}", scene.pid(), libc::EBADF
        )),
        work: fail_calls,
        ours: |envelope, _| of_rows(envelope, &[("closes that fail", "syscall", "close", "errors")]),
        theirs: |text, _| counts([("closes that fail", by_number(&map(text, "@errors"), libc::SYS_close))]),
        ..PAIR
    };
    syscall_latency_and_bpftrace: Pair {
        probe: "syscall_latency",
        options: |_| json!({"syscall": "nanosleep"}),
        peer: |scene| Peer::script(&format!(
            "tracepoint:syscalls:sys_enter_nanosleep /pid == {pid}/ {{ @start = nsecs; }}
            tracepoint:syscalls:sys_exit_nanosleep /pid == {pid}/ {{ @ns = hist(nsecs - @start); @calls = count(); }}", pid = scene.pid()
        )),
        work: |scene| {
            scene.run("nanosleep 211 700");
            counts([("calls", 211)])
        },
        ours: |envelope, _| counts([("calls", total(envelope))]),
        theirs: |text, _| counts([("calls", number(text, "@calls"))]),
        spread: Some(Spread { ours: first_series, theirs: |text| histogram(text, "@ns") }),
        ..PAIR
    };
    syscall_latency_and_syscount: Pair {
        probe: "syscall_latency",
        peer: |scene| Peer::tool(&["syscount", "-L", "-p", &scene.pid().to_string()], 2),
        work: |scene| {
            scene.run("getppid 10007");
            scene.run("nanosleep 23 700");
            counts([("getppid", 10_007), ("nanosleep", 23)])
        },
        ours: |envelope, _| counts(["getppid", "nanosleep"].map(|name| (name, of_series(envelope, "syscall", name)))),
        theirs: |text, _| counts(["getppid", "nanosleep"].map(|name| (name, cell(text, name, 1)))),
        ..PAIR
    };
    file_opens_and_opensnoop: Pair {
        probe: "file_opens",
        options: |_| json!({"path_prefix": "/nonexistent/peers"}),
        peer: |scene| Peer::tool(&["opensnoop", "-p", &scene.pid().to_string()], 2),
        work: open_often,
        ours: |envelope, _| counts([("opens", events(envelope).len() as u64)]),
        theirs: |text, _| counts([("opens", text.matches("/nonexistent/peers").count() as u64)]),
        ..PAIR
    };
    file_opens_and_bpftrace: Pair {
        probe: "file_opens",
        options: |_| json!({"failed_only": true}),
        peer: |scene| Peer::script(&format!(
            "tracepoint:syscalls:sys_exit_openat /pid == {} && args->ret < 0/ {{ @opens = count(); }}", scene.pid()
        )),
        work: open_often,
        ours: |envelope, _| counts([("opens", events(envelope).len() as u64)]),
        theirs: |text, _| counts([("opens", number(text, "@opens"))]),
        ..PAIR
    };
    block_latency_and_biolatency: Pair {
        probe: "block_latency",
        only: Only::All,
        prepare: make_disk,
        peer: |scene| Peer::tool(&["biolatency", "-d", &scene.disk().name], 2),
        work: read_disk,
        ours: |envelope, scene| counts([("reads", disk_reads(envelope, &scene.disk().name).map_or(0, |one| one.count))]),
        theirs: |text, _| counts([("reads", sum(&drawn(text, 1000)))]),
        spread: Some(Spread { ours: loop_reads, theirs: |text| drawn(text, 1000) }),
        ..PAIR
    };
    block_latency_and_bpftrace: Pair {
        probe: "block_latency",
        only: Only::All,
        prepare: make_disk,
        peer: |scene| {
            let number = scene.disk().number;
            Peer::script(&format!(
                "tracepoint:block:block_rq_issue /args->dev == {number}/ {{ @start[args->sector] = nsecs; @bytes = sum(args->bytes); }}
                tracepoint:block:block_rq_complete /args->dev == {number} && @start[args->sector]/ {{
                    @ns = hist(nsecs - @start[args->sector]); @reads = count(); delete(@start[args->sector]);
                }}"
            ))
        },
        work: |scene| {
            let mut known = read_disk(scene);
            known.insert("bytes".into(), 89 * 4096);
            known
        },
        ours: |envelope, scene| {
            let one = disk_reads(envelope, &scene.disk().name);
            counts([("reads", one.map_or(0, |one| one.count)), ("bytes", one.map_or(0, |one| one.also["bytes"].as_u64().unwrap()))])
        },
        theirs: |text, _| counts([("reads", number(text, "@reads")), ("bytes", number(text, "@bytes"))]),
        spread: Some(Spread { ours: loop_reads, theirs: |text| histogram(text, "@ns") }),
        ..PAIR
    };
    runq_latency_and_bpftrace: Pair {
        probe: "runq_latency",
        peer: |scene| Peer::script(&format!(
            "tracepoint:sched:sched_wakeup /args->pid == {pid}/ {{ @queued = nsecs; }}
            tracepoint:sched:sched_switch {{
                if (args->prev_pid == {pid} && (args->prev_state & 255) == 0) {{ @queued = nsecs; }}
                if (args->next_pid == {pid} && @queued != 0) {{ @ns = hist(nsecs - @queued); @waits = count(); @queued = 0; }}
            }}", pid = scene.pid()
        )),
        work: nap,
        ours: |envelope, _| counts([("waits", total(envelope))]),
        theirs: |text, _| counts([("waits", number(text, "@waits"))]),
        difference: SCHEDULER,
        spread: Some(Spread { ours: first_series, theirs: |text| histogram(text, "@ns") }),
        ..PAIR
    };
    runq_latency_and_runqlat: Pair {
        probe: "runq_latency",
        peer: |scene| Peer::tool(&["runqlat", "-p", &scene.pid().to_string()], 3),
        work: nap,
        ours: |envelope, _| counts([("waits", total(envelope))]),
        theirs: |text, _| counts([("waits", sum(&drawn(text, 1000)))]),
        difference: SCHEDULER,
        spread: Some(Spread { ours: first_series, theirs: |text| drawn(text, 1000) }),
        ..PAIR
    };
    cpu_slices_and_bpftrace: Pair {
        probe: "cpu_slices",
        peer: |scene| Peer::script(&format!(
            "tracepoint:sched:sched_switch {{
                if (args->next_pid == {pid}) {{ @start = nsecs; }}
                if (args->prev_pid == {pid} && @start != 0) {{
                    @ns = hist(nsecs - @start); @slices = count();
                    if ((args->prev_state & 255) == 0) {{ @taken = count(); }}
                    // Neither counts a slice whose beginning it has not seen.
                    @start = 0;
                }}
            }}", pid = scene.pid()
        )),
        work: nap,
        ours: |envelope, _| counts([("waits", total(envelope)), ("taken away", also(envelope, "involuntary"))]),
        theirs: |text, _| counts([("waits", number(text, "@slices")), ("taken away", number(text, "@taken"))]),
        difference: SCHEDULER,
        spread: Some(Spread { ours: first_series, theirs: |text| histogram(text, "@ns") }),
        ..PAIR
    };
    cpu_slices_and_cpudist: Pair {
        probe: "cpu_slices",
        peer: |scene| Peer::tool(&["cpudist", "-p", &scene.pid().to_string()], 1),
        // Two that want the same CPU take it from each other, as often as the scheduler likes.
        work: |scene| {
            scene.server.begin("hog 0 700");
            scene.run("hog 0 700");
            scene.server.finish();
            Counts::new()
        },
        // It only shows slices of threads that could have gone on (cpudist.bpf.c of libbpf-tools 0.26).
        ours: |envelope, _| counts([("taken away", also(envelope, "involuntary"))]),
        theirs: |text, _| counts([("taken away", sum(&drawn(text, 1000)))]),
        ..PAIR
    };
    offcpu_stacks_and_bpftrace: Pair {
        probe: "offcpu_stacks",
        peer: |scene| Peer::script(&format!(
            "tracepoint:sched:sched_switch {{
                if (args->next_pid == {pid} && @asleep == 1) {{ @waits = count(); @asleep = 0; }}
                if (args->prev_pid == {pid} && (args->prev_state & 255) != 0) {{ @asleep = 1; }}
            }}", pid = scene.pid()
        )),
        work: nap,
        // The first wait began before either watched.
        ours: |envelope, _| counts([("waits", envelope.loss.delivered.unwrap())]),
        theirs: |text, _| counts([("waits", number(text, "@waits"))]),
        difference: SCHEDULER,
        ..PAIR
    };
    wakeup_chains_and_bpftrace: Pair {
        probe: "wakeup_chains",
        peer: |scene| Peer::script(&format!(
            "tracepoint:sched:sched_switch /args->prev_pid == {pid} && (args->prev_state & 255) != 0/ {{ @asleep = 1; }}
            tracepoint:sched:sched_waking /args->pid == {pid} && @asleep == 1/ {{ @waits = count(); @asleep = 0; }}", pid = scene.pid()
        )),
        work: nap,
        ours: |envelope, _| counts([("waits", envelope.loss.delivered.unwrap())]),
        theirs: |text, _| counts([("waits", number(text, "@waits"))]),
        difference: SCHEDULER,
        ..PAIR
    };
    irq_time_and_bpftrace: Pair {
        probe: "irq_time",
        peer: |scene| Peer::script(&format!(
            "tracepoint:irq:softirq_entry /pid == {pid} && args->vec == 3/ {{ @start = nsecs; }}
            tracepoint:irq:softirq_exit /pid == {pid} && args->vec == 3 && @start/ {{ @ns = hist(nsecs - @start); @runs = count(); @start = 0; }}",
            pid = scene.pid()
        )),
        prepare: |scene| scene.port = scene.workload.run("udp_bind v4")[0],
        work: |scene| {
            scene.run(&format!("udp_send v4 {} 997 100", scene.port));
            counts([("NET_RX", 997)])
        },
        ours: |envelope, _| counts([("NET_RX", of_series(envelope, "name", "NET_RX"))]),
        theirs: |text, _| counts([("NET_RX", number(text, "@runs"))]),
        difference: Some((300, 300, "one run may take several packets, and ksoftirqd or an interrupt of another may take them")),
        ..PAIR
    };
    page_faults_and_bpftrace: Pair {
        probe: "page_faults",
        peer: |scene| Peer::script(&format!("software:page-faults:1 /pid == {}/ {{ @faults = count(); }}", scene.pid())),
        work: |scene| {
            scene.run("touch 5003");
            counts([("faults", 5003)])
        },
        ours: |envelope, _| counts([("faults", sum_of(envelope, "minor") + sum_of(envelope, "major"))]),
        theirs: |text, _| counts([("faults", number(text, "@faults"))]),
        difference: Some((0, 100, "the program touches pages of its own stack, heap and code as well")),
        ..PAIR
    };
    process_exec_and_execsnoop: Pair {
        probe: "process_exec",
        only: Only::Family,
        peer: |_| Peer::tool(&["execsnoop"], 2),
        work: spawn,
        ours: |envelope, _| counts([("children", events(envelope).len() as u64)]),
        theirs: |text, scene| counts([("children", lines(text, 2, scene.pid()))]),
        ..PAIR
    };
    process_exit_and_exitsnoop: Pair {
        probe: "process_exit",
        only: Only::Family,
        peer: |_| Peer::tool(&["exitsnoop"], 1),
        work: spawn,
        ours: |envelope, _| counts([("children", events(envelope).len() as u64)]),
        theirs: |text, scene| counts([("children", lines(text, 2, scene.pid()))]),
        ..PAIR
    };
    process_exit_and_bpftrace: Pair {
        probe: "process_exit",
        only: Only::Family,
        peer: |scene| Peer::script(&format!(
            "tracepoint:sched:sched_process_exit /pid == tid && curtask->real_parent->tgid == {}/ {{ @exits = count(); }}", scene.pid()
        )),
        work: spawn,
        ours: |envelope, _| counts([("children", events(envelope).len() as u64)]),
        theirs: |text, _| counts([("children", number(text, "@exits"))]),
        ..PAIR
    };
    signals_and_sigsnoop: Pair {
        probe: "signals",
        peer: |scene| Peer::tool(&["sigsnoop", "-k", "-p", &scene.pid().to_string()], 2),
        work: raise,
        ours: |envelope, _| counts([("signals", events(envelope).len() as u64)]),
        theirs: |text, scene| counts([("signals", lines(text, 1, scene.pid()))]),
        ..PAIR
    };
    signals_and_bpftrace: Pair {
        probe: "signals",
        peer: |scene| Peer::script(&format!(
            "tracepoint:signal:signal_generate /args->pid == {} && args->sig == {}/ {{ @signals = count(); }}", scene.pid(), libc::SIGURG
        )),
        work: raise,
        ours: |envelope, _| counts([("signals", events(envelope).len() as u64)]),
        theirs: |text, _| counts([("signals", number(text, "@signals"))]),
        ..PAIR
    };
    tcp_connections_and_tcplife: Pair {
        probe: "tcp_connections",
        prepare: listen,
        peer: |scene| Peer::tool(&["tcplife", "-L", &scene.port.to_string()], 1),
        work: |scene| {
            talk(scene);
            counts([("connections", 13), ("sent KB", 13 * 20), ("received KB", 13 * 10)])
        },
        ours: |envelope, _| {
            let closed: Vec<_> = events(envelope).iter().filter(|row| row["event"] == "close").collect();
            let kilobytes = |field: &str| closed.iter().map(|row| row[field].as_u64().unwrap()).sum::<u64>() / 1024;
            counts([("connections", closed.len() as u64), ("sent KB", kilobytes("sent_bytes")), ("received KB", kilobytes("received_bytes"))])
        },
        // PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS
        theirs: |text, scene| {
            let ended: Vec<_> = columns(text).filter(|words| words.get(3) == Some(&scene.port.to_string().as_str())).collect();
            let kilobytes = |column: usize| ended.iter().map(|words| words[column].parse::<f64>().unwrap() as u64).sum();
            counts([("connections", ended.len() as u64), ("sent KB", kilobytes(6)), ("received KB", kilobytes(7))])
        },
        ..PAIR
    };
    tcp_connections_and_tcpstates: Pair {
        probe: "tcp_connections",
        prepare: listen,
        peer: |scene| Peer::tool(&["tcpstates", "-L", &scene.port.to_string()], 1),
        work: |scene| {
            talk(scene);
            counts([("connections", 13)])
        },
        ours: |envelope, _| counts([("connections", events(envelope).iter().filter(|row| row["event"] == "close").count() as u64)]),
        theirs: |text, _| counts([("connections", columns(text).filter(|words| words.contains(&"LAST_ACK") && words.contains(&"CLOSE")).count() as u64)]),
        ..PAIR
    };
    tcp_retransmits_and_bpftrace: Pair {
        probe: "tcp_retransmits",
        options: |_| json!({"events": true}),
        only: Only::All,
        peer: |_| Peer::script("tracepoint:tcp:tcp_retransmit_skb { @segments[args->dport] = count(); }"),
        work: |scene| {
            scene.port = scene.workload.run("tcp_unanswered 13 2000")[0];
            counts([("segments", 13)])
        },
        ours: |envelope, scene| {
            let own = |row: &&Row| row["event"] == "retransmit" && row["remote_port"] == scene.port;
            counts([("segments", events(envelope).iter().filter(own).count() as u64)])
        },
        theirs: |text, scene| counts([("segments", by_number(&map(text, "@segments"), scene.port))]),
        ..PAIR
    };
    packet_drops_and_bpftrace: Pair {
        probe: "packet_drops",
        only: Only::All,
        peer: |_| Peer::script("tracepoint:skb:kfree_skb { @drops[args->reason] = count(); }"),
        work: |scene| {
            scene.run("ip_unknown 997");
            counts([("packets", 997)])
        },
        ours: |envelope, _| of_rows(envelope, &[("packets", "reason", "IP_NOPROTO", "packets")]),
        theirs: |text, _| counts([("packets", by_number(&map(text, "@drops"), drop_reason("IP_NOPROTO")))]),
        ..PAIR
    };
    net_traffic_and_bpftrace: Pair {
        probe: "net_traffic",
        prepare: |scene| scene.port = scene.server.run("udp_bind v4")[0],
        peer: |scene| Peer::script(&format!(
            "tracepoint:sock:sock_send_length /pid == {} && args->ret > 0/ {{ @sends = count(); @bytes = sum(args->ret); }}", scene.pid()
        )),
        work: |scene| {
            // Few enough to wait in the socket's buffer.
            scene.run(&format!("udp_send v4 {} 61 1009", scene.port));
            counts([("sends", 61), ("bytes", 61 * 1009)])
        },
        ours: |envelope, _| counts([("sends", sum_of(envelope, "sends")), ("bytes", sum_of(envelope, "sent_bytes"))]),
        theirs: |text, _| counts([("sends", number(text, "@sends")), ("bytes", number(text, "@bytes"))]),
        ..PAIR
    };
    dns_latency_and_gethostlatency: Pair {
        probe: "dns_latency",
        program: FUNCTIONS,
        peer: |scene| Peer::tool(&["gethostlatency", "-p", &scene.pid().to_string()], 6),
        work: |scene| {
            scene.run("lookup 13 127.0.0.1");
            counts([("look-ups", 13)])
        },
        ours: |envelope, _| counts([("look-ups", total(envelope))]),
        theirs: |text, scene| counts([("look-ups", lines(text, 1, scene.pid()))]),
        ..PAIR
    };
    kernel_locks_and_bpftrace: Pair {
        probe: "kernel_locks",
        peer: |scene| Peer::script(&format!(
            "tracepoint:lock:contention_begin /pid == {pid}/ {{ @start[tid, args->lock_addr] = nsecs; }}
            tracepoint:lock:contention_end /pid == {pid} && @start[tid, args->lock_addr]/ {{ @waits = count(); delete(@start[tid, args->lock_addr]); }}",
            pid = scene.pid()
        )),
        // How often it had to wait it does not know.
        work: |scene| {
            let file = scene.file("contended");
            scene.run(&format!("contend {} 3 397", hex(file)));
            Counts::new()
        },
        ours: |envelope, _| counts([("waits", sum_of(envelope, "waits"))]),
        theirs: |text, _| counts([("waits", number(text, "@waits"))]),
        ..PAIR
    };
    futex_waits_and_bpftrace: Pair {
        probe: "futex_waits",
        // 0 is FUTEX_WAIT (include/uapi/linux/futex.h).
        peer: |scene| Peer::script(&format!(
            "tracepoint:syscalls:sys_enter_futex /pid == {pid} && (args->op & 127) == 0/ {{ @start = nsecs; }}
            tracepoint:syscalls:sys_exit_futex /pid == {pid} && @start/ {{ @waits = count(); @start = 0; }}", pid = scene.pid()
        )),
        work: |scene| {
            scene.run("futex_naps 211 300");
            counts([("waits", 211)])
        },
        ours: |envelope, _| counts([("waits", sum_of(envelope, "waits"))]),
        theirs: |text, _| counts([("waits", number(text, "@waits"))]),
        ..PAIR
    };
    function_latency_and_bpftrace: Pair {
        probe: "function_latency",
        program: FUNCTIONS,
        options: |_| json!({"binary": FUNCTIONS, "function": "mcptrace_leaf"}),
        peer: |scene| Peer::script(&format!(
            "uprobe:{FUNCTIONS}:mcptrace_leaf /pid == {pid}/ {{ @start = nsecs; }}
            uretprobe:{FUNCTIONS}:mcptrace_leaf /pid == {pid}/ {{ @ns = hist(nsecs - @start); @calls = count(); }}", pid = scene.pid()
        )),
        work: call_leaf,
        ours: |envelope, _| counts([("calls", total(envelope))]),
        theirs: |text, _| counts([("calls", number(text, "@calls"))]),
        spread: Some(Spread { ours: first_series, theirs: |text| histogram(text, "@ns") }),
        ..PAIR
    };
    function_latency_and_funclatency: Pair {
        probe: "function_latency",
        program: FUNCTIONS,
        options: |_| json!({"binary": FUNCTIONS, "function": "mcptrace_leaf"}),
        // With a process it looks for a library only. Nobody else runs this program.
        peer: |_| Peer::tool(&["funclatency", &format!("{FUNCTIONS}:mcptrace_leaf")], 2),
        work: call_leaf,
        ours: |envelope, _| counts([("calls", total(envelope))]),
        theirs: |text, _| counts([("calls", sum(&drawn(text, 1)))]),
        spread: Some(Spread { ours: first_series, theirs: |text| drawn(text, 1) }),
        ..PAIR
    };
    heap_growth_and_bpftrace: Pair {
        probe: "heap_growth",
        peer: |scene| Peer::script(&format!(
            "uprobe:/lib/x86_64-linux-gnu/libc.so.6:malloc /pid == {} && arg0 == 10007/ {{ @bytes = sum(arg0); }}", scene.pid()
        )),
        work: |scene| {
            scene.run("leak 29 10007");
            counts([("bytes", 29 * 10_007)])
        },
        ours: |envelope, _| {
            let Some(Report::Stacks(stacks)) = &envelope.report else { panic!("{envelope:?}") };
            let leaks = stacks.stacks.iter().filter(|one| one.frames.iter().any(|frame| frame == "leak_memory"));
            counts([("bytes", leaks.map(|one| one.value).sum())])
        },
        theirs: |text, _| counts([("bytes", number(text, "@bytes"))]),
        ..PAIR
    };
    capability_checks_and_bpftrace: Pair {
        probe: "capability_checks",
        // 21 is CAP_SYS_ADMIN (include/uapi/linux/capability.h).
        peer: |scene| Peer::script(&format!("tracepoint:capability:cap_capable /pid == {} && args->cap == 21/ {{ @checks = count(); }}", scene.pid())),
        // sethostname asks for the capability and then refuses the length.
        work: |scene| {
            (0..97).for_each(|_| scene.run(&format!("raw {} 0 -1", libc::SYS_sethostname)));
            counts([("checks", 97)])
        },
        ours: |envelope, _| of_rows(envelope, &[("checks", "capability", "CAP_SYS_ADMIN", "checks")]),
        theirs: |text, _| counts([("checks", number(text, "@checks"))]),
        ..PAIR
    };
    privileged_actions_and_bpftrace: Pair {
        probe: "privileged_actions",
        peer: |scene| Peer::script(&format!("tracepoint:syscalls:sys_exit_setuid /pid == {}/ {{ @actions = count(); }}", scene.pid())),
        work: |scene| {
            (0..31).for_each(|_| scene.run("setuid 0"));
            counts([("actions", 31)])
        },
        ours: |envelope, _| counts([("actions", events(envelope).len() as u64)]),
        theirs: |text, _| counts([("actions", number(text, "@actions"))]),
        ..PAIR
    };
    memory_reclaim_and_bpftrace: Pair {
        probe: "memory_reclaim",
        prepare: |scene| {
            let file = scene.file("large");
            scene.server.run(&format!("file_write {} 48 1048576", hex(&file)));
            scene.server.run(&format!("file_forget {}", hex(&file)));
            let group = Limited::new("peers_reclaim", 24 << 20);
            group.add(scene.pid());
            scene.group = Some(group);
        },
        peer: |scene| Peer::script(&format!(
            "tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin /pid == {pid}/ {{ @start = nsecs; }}
            tracepoint:vmscan:mm_vmscan_memcg_reclaim_end /pid == {pid} && @start/ {{
                @ns = hist(nsecs - @start); @stalls = count(); @pages = sum(args->nr_reclaimed); @start = 0;
            }}", pid = scene.pid()
        )),
        // The kernel decides how often it stalls.
        work: |scene| {
            let file = scene.file("large");
            scene.run(&format!("file_read {} 48 1048576", hex(file)));
            Counts::new()
        },
        ours: |envelope, _| counts([("stalls", of_series(envelope, "stall", "cgroup")), ("pages", also(envelope, "pages"))]),
        theirs: |text, _| counts([("stalls", number(text, "@stalls")), ("pages", number(text, "@pages"))]),
        spread: Some(Spread { ours: first_series, theirs: |text| histogram(text, "@ns") }),
        ..PAIR
    };
    oom_kills_and_bpftrace: Pair {
        probe: "oom_kills",
        prepare: |scene| {
            let group = Limited::new("peers_oom", 24 << 20);
            group.add(scene.pid());
            scene.group = Some(group);
        },
        peer: |scene| Peer::script(&format!("tracepoint:oom:mark_victim /args->pid == {}/ {{ @victims = count(); }}", scene.pid())),
        work: |scene| {
            // 64 MB, of which the limit allows 24.
            scene.workload.begin("touch 16384");
            wait_until("it is killed", || state(scene.pid()).is_none_or(|state| state == 'Z'));
            counts([("victims", 1)])
        },
        ours: |envelope, _| counts([("victims", events(envelope).len() as u64)]),
        theirs: |text, _| counts([("victims", number(text, "@victims"))]),
        ..PAIR
    };
    page_cache_and_bpftrace: Pair {
        probe: "page_cache",
        prepare: |scene| {
            let file = scene.file("cached");
            scene.server.run(&format!("file_write {} 61 4096", hex(&file)));
            scene.server.run(&format!("file_forget {}", hex(&file)));
        },
        peer: |scene| Peer::script(&format!("tracepoint:filemap:mm_filemap_add_to_page_cache /pid == {}/ {{ @pages = count(); }}", scene.pid())),
        work: |scene| {
            let file = scene.file("cached");
            scene.run(&format!("file_read_random {} 61 4096", hex(file)));
            counts([("pages", 61)])
        },
        ours: |envelope, _| counts([("pages", sum_of(envelope, "added_pages"))]),
        theirs: |text, _| counts([("pages", number(text, "@pages"))]),
        ..PAIR
    };
    fs_sync_and_bpftrace: Pair {
        probe: "fs_sync",
        peer: |scene| Peer::script(&format!(
            "tracepoint:syscalls:sys_enter_fdatasync /pid == {pid}/ {{ @start = nsecs; }}
            tracepoint:syscalls:sys_exit_fdatasync /pid == {pid}/ {{ @ns = hist(nsecs - @start); @calls = count(); }}", pid = scene.pid()
        )),
        work: |scene| {
            let file = scene.file("durable");
            scene.run(&format!("file_sync {} fdatasync 53", hex(file)));
            counts([("calls", 53)])
        },
        ours: |envelope, _| counts([("calls", total(envelope))]),
        theirs: |text, _| counts([("calls", number(text, "@calls"))]),
        spread: Some(Spread { ours: first_series, theirs: |text| histogram(text, "@ns") }),
        ..PAIR
    };
    file_io_and_bpftrace: Pair {
        probe: "file_io",
        options: |_| json!({"histogram": true}),
        prepare: |scene| {
            let file = scene.file("read");
            scene.server.run(&format!("file_write {} 89 503", hex(&file)));
        },
        peer: |scene| Peer::script(&format!(
            "tracepoint:syscalls:sys_enter_pread64 /pid == {pid}/ {{ @start = nsecs; }}
            tracepoint:syscalls:sys_exit_pread64 /pid == {pid}/ {{ @ns = hist(nsecs - @start); @calls = count(); @bytes = sum(args->ret); }}",
            pid = scene.pid()
        )),
        work: |scene| {
            let file = scene.file("read");
            scene.run(&format!("file_read {} 89 503", hex(file)));
            counts([("calls", 89), ("bytes", 89 * 503)])
        },
        ours: |envelope, scene| {
            let one = series(envelope).iter().find(|one| one.key["path"] == scene.file("read"));
            counts([("calls", one.map_or(0, |one| one.count)), ("bytes", one.map_or(0, |one| one.also["bytes"].as_u64().unwrap()))])
        },
        theirs: |text, _| counts([("calls", number(text, "@calls")), ("bytes", number(text, "@bytes"))]),
        ..PAIR
    };
}

/// What a row acts on.
struct Scene {
    workload: Workload,
    /// One that nobody watches.
    server: Workload,
    folder: TempDir,
    port: i64,
    disk: Option<Disk>,
    group: Option<Limited>,
}

impl Scene {
    fn new(program: &str) -> Self {
        // On a disk: /tmp may be in memory.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (workload, server) = (Workload::start(program), Workload::start(WORKLOAD));
        Self { workload, server, folder, port: 0, disk: None, group: None }
    }

    fn pid(&self) -> u32 {
        self.workload.pid()
    }

    fn run(&mut self, command: &str) {
        self.workload.run(command);
    }

    fn file(&self, name: &str) -> String {
        fs::canonicalize(self.folder.path()).unwrap().join(name).to_str().unwrap().to_owned()
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }
}

/// Both watch, the workload works, and all three have counted the same.
fn agree(pair: &Pair) {
    let mut scene = Scene::new(pair.program);
    (pair.prepare)(&mut scene);
    let filter = match pair.only {
        Only::Process => of_pid(scene.pid()),
        Only::Family => Filter { descendants: true, ..of_pid(scene.pid()) },
        Only::All => Filter::default(),
    };
    asleep(scene.pid());
    let peer = (pair.peer)(&scene);
    let execution = start(pair.probe, &(pair.options)(&scene), &filter);
    let known = (pair.work)(&mut scene);
    asleep(scene.pid());
    let envelope = stop(&execution);
    let ours = (pair.ours)(&envelope, &scene);
    peer.wait_for(|text| (pair.theirs)(text, &scene) == ours);
    let text = peer.end();
    let theirs = (pair.theirs)(&text, &scene);
    assert_eq!(ours, theirs, "{}: mcptrace and its peer\n{text}\n{envelope:#?}", pair.probe);
    assert!(ours.values().any(|count| *count > 0), "{}: nothing was counted: {text}", pair.probe);
    let (fewer, more, why) = pair.difference.unwrap_or((0, 0, "to the event"));
    for (what, found) in &ours {
        let Some(made) = known.get(what) else { continue };
        let range = made.saturating_sub(fewer)..=made + more;
        assert!(range.contains(found), "{}: {found} {what} and not {range:?} ({why})", pair.probe);
    }
    if let Some(spread) = &pair.spread {
        assert_same_spread((spread.ours)(&envelope).unwrap(), &(spread.theirs)(&text));
    }
}

/// A percentile of ours lies in the bucket of theirs that has the same rank, or so near to it that the error of ours explains it.
fn assert_same_spread(ours: &Series, theirs: &[Bucket]) {
    // The two read the clock one after the other.
    const CLOCKS_NS: f64 = 5_000.0;
    for (share, value) in [(0.5, ours.p50), (0.9, ours.p90), (0.99, ours.p99)] {
        let rank = (share * ours.count as f64).ceil() as u64;
        let mut counted = 0;
        let bucket = theirs.iter().find(|(_, _, count)| {
            counted += count;
            counted >= rank
        });
        let &(low, high, _) = bucket.unwrap_or_else(|| panic!("no rank {rank} in {theirs:?}"));
        let (low, high) = (low as f64 * 0.9375 - CLOCKS_NS, high as f64 * 1.0625 + CLOCKS_NS);
        assert!((low..=high).contains(&(value as f64)), "{share}: {value} and {low} to {high}: {ours:?} {theirs:?}");
    }
}

/// Waits until a process sleeps, so that nothing of its work is outstanding.
fn asleep(pid: u32) {
    wait_until("the workload sleeps", || matches!(state(pid), None | Some('S' | 'Z')));
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < end, "waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state of a process (proc(5)); `None` if it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn counts<const N: usize>(pairs: [(&str, u64); N]) -> Counts {
    pairs.map(|(what, count)| (what.to_owned(), count)).into()
}

/// The numbers of rows of a table: what to call it, the field and value that tell the row, and the column.
fn of_rows(envelope: &Envelope, wanted: &[(&str, &str, &str, &str)]) -> Counts {
    let sum = |field: &str, value: &str, column: &str| {
        let is = |row: &&Row| row.get(field).is_some_and(|found| found == value);
        rows(envelope).iter().filter(is).map(|row| row[column].as_u64().unwrap()).sum()
    };
    wanted.iter().map(|(what, field, value, column)| ((*what).to_owned(), sum(field, value, column))).collect()
}

fn sum_of(envelope: &Envelope, column: &str) -> u64 {
    rows(envelope).iter().map(|row| row[column].as_u64().unwrap()).sum()
}

/// How many values all series have.
fn total(envelope: &Envelope) -> u64 {
    series(envelope).iter().map(|one| one.count).sum()
}

fn of_series(envelope: &Envelope, field: &str, value: &str) -> u64 {
    series(envelope).iter().filter(|one| one.key[field] == value).map(|one| one.count).sum()
}

fn also(envelope: &Envelope, name: &str) -> u64 {
    series(envelope).iter().map(|one| one.also[name].as_u64().unwrap()).sum()
}

fn first_series(envelope: &Envelope) -> Option<&Series> {
    series(envelope).first()
}

fn by_number(numbers: &BTreeMap<String, u64>, key: i64) -> u64 {
    numbers.get(&key.to_string()).copied().unwrap_or_default()
}

fn sum(buckets: &[Bucket]) -> u64 {
    buckets.iter().map(|(_, _, count)| count).sum()
}

/// The number in a column of the line that begins with a word.
fn cell(text: &str, first: &str, column: usize) -> u64 {
    columns(text).find(|words| words.first() == Some(&first)).map_or(0, |words| words[column].parse().unwrap())
}

/// How many lines have the number of a process in a column.
fn lines(text: &str, column: usize, pid: u32) -> u64 {
    let pid = pid.to_string();
    columns(text).filter(|words| words.get(column) == Some(&pid.as_str())).count() as u64
}

fn fail_calls(scene: &mut Scene) -> Counts {
    scene.run("getppid 10007");
    scene.run("close_bad 503");
    counts([("getppid", 10_007), ("close", 503), ("closes that fail", 503)])
}

fn open_often(scene: &mut Scene) -> Counts {
    scene.run(&format!("open openat {} 0 211 -100", hex("/nonexistent/peers")));
    counts([("opens", 211)])
}

fn nap(scene: &mut Scene) -> Counts {
    scene.run("naps 307 500");
    counts([("waits", 307)])
}

fn spawn(scene: &mut Scene) -> Counts {
    scene.run(&format!("spawn 53 {}", hex("/bin/true")));
    counts([("children", 53)])
}

fn raise(scene: &mut Scene) -> Counts {
    scene.run(&format!("raise 101 {}", libc::SIGURG));
    counts([("signals", 101)])
}

fn call_leaf(scene: &mut Scene) -> Counts {
    scene.run("leaf 211 1");
    counts([("calls", 211)])
}

fn listen(scene: &mut Scene) {
    scene.port = scene.workload.run("tcp_listen v4")[0];
}

/// The server is who is watched.
fn talk(scene: &mut Scene) {
    scene.workload.begin("tcp_serve 13 10240 20480");
    scene.server.run(&format!("tcp_connect v4 {} 13 10240 20480", scene.port));
    scene.workload.finish();
}

/// The number of a reason for which the kernel drops packets, as its tracepoint prints it.
fn drop_reason(name: &str) -> i64 {
    let format = fs::read_to_string("/sys/kernel/tracing/events/skb/kfree_skb/format").unwrap();
    let (before, _) = format.split_once(&format!(", \"{name}\" }}")).unwrap();
    before.rsplit_once('{').unwrap().1.trim().parse().unwrap()
}

/// A disk in a file, which nobody else uses; gone when dropped.
struct Disk {
    device: String,
    name: String,
    /// As the kernel's tracepoints have it.
    number: u64,
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn make_disk(scene: &mut Scene) {
    let file = scene.file("disk");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let output = Command::new("losetup").args(["--find", "--show", &file]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let name = Path::new(&device).file_name().unwrap().to_str().unwrap().to_owned();
    let numbers = fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap();
    let (major, minor) = numbers.trim().split_once(':').unwrap();
    // MKDEV (include/linux/kdev_t.h).
    let number = major.parse::<u64>().unwrap() << 20 | minor.parse::<u64>().unwrap();
    scene.disk = Some(Disk { device, name, number });
}

fn read_disk(scene: &mut Scene) -> Counts {
    let device = hex(&scene.disk().device);
    scene.run(&format!("read_direct {device} 89 4096"));
    counts([("reads", 89)])
}

fn disk_reads<'a>(envelope: &'a Envelope, name: &str) -> Option<&'a Series> {
    let is =
        |one: &&Series| one.key["device"] == name && one.key["operation"] == "read" && one.key["phase"] == "service";
    series(envelope).iter().find(is)
}

fn loop_reads(envelope: &Envelope) -> Option<&Series> {
    let is = |one: &&Series| one.key["device"].as_str().unwrap().starts_with("loop") && one.key["phase"] == "service";
    series(envelope).iter().find(is)
}

/// Sums of time cannot be equal to the last nanosecond: each tool reads the clock for itself, and offcputime cuts every wait to
/// whole microseconds.
#[test]
fn offcputime_sums_the_same_waits() {
    let mut scene = Scene::new(WORKLOAD);
    asleep(scene.pid());
    let peer = Peer::tool(&["offcputime", "-p", &scene.pid().to_string()], 1);
    let execution = start("offcpu_stacks", &json!({}), &of_pid(scene.pid()));
    scene.run("naps 53 5000");
    asleep(scene.pid());
    let envelope = stop(&execution);
    let Some(Report::Stacks(stacks)) = &envelope.report else { panic!("{envelope:?}") };
    let text = peer.end();
    let theirs: u64 = text.lines().filter_map(|line| line.trim().parse::<u64>().ok()).sum::<u64>() * 1000;
    // A kernel may run no program while process 1 is current: a wait that ends by a switch from there is seen by neither.
    assert!(stacks.total > 50 * 5_000_000, "{envelope:?}");
    let ratio = stacks.total as f64 / theirs as f64;
    assert!((0.95..1.05).contains(&ratio), "{} and {theirs} ns: {text}", stacks.total);
}

#[test]
fn a_reason_is_found_by_its_name() {
    drop(Peer::script("BEGIN { @ = 1; }"));
    assert!(drop_reason("IP_NOPROTO") > 0 && drop_reason("NO_SOCKET") > 0);
    assert_eq!(number("", "@none"), 0);
}
