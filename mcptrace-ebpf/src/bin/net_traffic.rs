//! Counts what programs send and receive over IP sockets, by process or command and peer.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Endpoints, GroupKey, TrafficCell, TrafficKey,
    kernel::{add, count_shared, current_passes},
    names::{current_group, current_process},
    socket::{ends_of_trusted, port_passes},
};

/// `MSG_PEEK` (include/linux/socket.h): what is received stays there to be received again.
const MSG_PEEK: u32 = 2;

/// Traffic of each group and peer.
#[map]
static TRAFFIC: HashMap<TrafficKey, TrafficCell> = HashMap::with_max_entries(16_384, 0);

/// Prototype: struct sock *sk, int ret, int flags (include/trace/events/sock.h), in the thread that sends.
#[btf_tracepoint(function = "sock_send_length")]
fn sent(ctx: BtfTracePointContext) -> i32 {
    if let Some(cell) = cell(&ctx) {
        // SAFETY: a pointer into the map's value.
        unsafe {
            add(&raw mut (*cell).sent_bytes, ctx.arg::<u32>(1).into());
            add(&raw mut (*cell).sends, 1);
        }
    }
    0
}

/// Prototype as of `sock_send_length`.
#[btf_tracepoint(function = "sock_recv_length")]
fn received(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<u32>(2) & MSG_PEEK != 0 {
        return 0;
    }
    if let Some(cell) = cell(&ctx) {
        // SAFETY: a pointer into the map's value.
        unsafe {
            add(&raw mut (*cell).received_bytes, ctx.arg::<u32>(1).into());
            add(&raw mut (*cell).receives, 1);
        }
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_processes!();
mcptrace_ebpf::names_groups!();

/// Where a call is counted; `None` if it is not.
#[inline(always)]
fn cell(ctx: &BtfTracePointContext) -> Option<*mut TrafficCell> {
    let sk: *const u8 = ctx.arg(0);
    // A negative length is an errno.
    if ctx.arg::<i32>(1) < 0 || sk.is_null() || !current_passes() {
        return None;
    }
    // SAFETY: the first argument is a BTF pointer to struct sock, and not null.
    let ends = unsafe { ends_of_trusted(sk) }?;
    if !port_passes(&ends) {
        return None;
    }
    count_shared(Counter::Seen);
    let key = key(&ends);
    if let Some(cell) = TRAFFIC.get_ptr_mut(key) {
        return Some(cell);
    }
    let process = current_process();
    // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
    let _ = TRAFFIC.insert(key, TrafficCell { sent_bytes: 0, received_bytes: 0, sends: 0, receives: 0, process }, 1);
    let cell = TRAFFIC.get_ptr_mut(key);
    if cell.is_none() {
        count_shared(Counter::MapFull);
    }
    cell
}

#[inline(always)]
fn key(ends: &Endpoints) -> TrafficKey {
    // A socket without a peer has remote port 0: its own port is the one that says something.
    let port_is_local = ends.remote_port == 0 || ends.local_port != 0 && ends.local_port < ends.remote_port;
    let GroupKey { pid, comm, .. } = current_group();
    TrafficKey {
        remote: ends.remote,
        pid,
        port: if port_is_local { ends.local_port } else { ends.remote_port },
        family: ends.family,
        protocol: ends.protocol,
        port_is_local: port_is_local.into(),
        zero: 0,
        comm,
    }
}

mcptrace_ebpf::object!();
