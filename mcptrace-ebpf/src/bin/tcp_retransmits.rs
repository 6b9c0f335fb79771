//! Counts segments that TCP sends again, and resets both ways, by peer and state.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, Endpoints, Header, NO_STATE, Record, TcpTrouble, TroubleCell, TroubleEvent, TroubleKey, WIRE_VERSION,
    kernel::{add, count_shared, load, now, send},
    socket::{ends_of_received, port_passes, state, tcp_ends_of_trusted},
};

/// Whether single events are sent as well.
#[unsafe(no_mangle)]
static SEND_EVENTS: Global<u32> = Global::new(0);
/// Whether `tcp_send_reset` tells why: from 6.10 on (commit b533fb9cf4f7).
#[unsafe(no_mangle)]
static HAS_RESET_REASON: Global<u32> = Global::new(0);

/// Whether `tcp_retransmit_skb` tells what came of it: from 6.15 on.
#[unsafe(no_mangle)]
static HAS_RETRANSMIT_ERROR: Global<u32> = Global::new(0);

/// Where a packet has what TCP keeps with it, and where that has the number of segments.
#[unsafe(no_mangle)]
static SKB_CB: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_CB_SEGMENTS: Global<u32> = Global::new(0);

/// How often, and how many segments.
#[map]
static COUNTS: HashMap<TroubleKey, TroubleCell> = HashMap::with_max_entries(8192, 0);

/// What begins each event.
const HEADER: Header =
    Header { size: size_of::<TroubleEvent>() as u16, version: WIRE_VERSION, kind: TroubleEvent::KIND };

/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

/// Prototype: const struct sock *sk, const struct sk_buff *skb, and from 6.15 on int err (include/trace/events/tcp.h, as all here).
#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn retransmitted(ctx: BtfTracePointContext) -> i32 {
    // What could not be sent, for want of a route or a device, was not sent again.
    if HAS_RETRANSMIT_ERROR.load() == 0 || ctx.arg::<i32>(2) == 0 {
        let skb: *const u8 = ctx.arg(1);
        // `tcp_skb_pcount` (include/net/tcp.h), which is what the kernel's own counts of segments add up.
        // SAFETY: a BTF pointer to a packet of TCP's queue.
        let segments = unsafe { load::<u16>(skb, SKB_CB.load() + TCP_CB_SEGMENTS.load()) };
        of_socket(&ctx, ctx.arg(0), TcpTrouble::Retransmit, segments.into());
    }
    0
}

/// Prototype: const struct sock *listener, const struct request_sock *req. Both begin with a struct sock_common.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
fn answered_again(ctx: BtfTracePointContext) -> i32 {
    of_socket(&ctx, ctx.arg(1), TcpTrouble::SynackRetransmit, 1);
    0
}

/// Prototype: const struct sock *sk, const struct sk_buff *skb, and from 6.10 on const enum sk_rst_reason reason. A packet for which
/// there is no socket shows its addresses itself, and a socket without a packet gives up by itself.
#[btf_tracepoint(function = "tcp_send_reset")]
fn reset_sent(ctx: BtfTracePointContext) -> i32 {
    let (sk, skb): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    let reason = if HAS_RESET_REASON.load() != 0 { ctx.arg::<u32>(2) } else { 0 };
    // The verifier wants to see either checked before anything is computed from it.
    // SAFETY: a socket and a packet.
    let (ends, state) = unsafe {
        if !sk.is_null() {
            (tcp_ends_of_trusted(sk), state(sk))
        } else if !skb.is_null() {
            (ends_of_received(skb), NO_STATE)
        } else {
            (Endpoints::default(), NO_STATE)
        }
    };
    seen(&ctx, ends, TcpTrouble::ResetSent, state, reason, 0);
    0
}

/// Prototype: struct sock *sk.
#[btf_tracepoint(function = "tcp_receive_reset")]
fn reset_received(ctx: BtfTracePointContext) -> i32 {
    of_socket(&ctx, ctx.arg(0), TcpTrouble::ResetReceived, 0);
    0
}

mcptrace_ebpf::follows_forks!();

#[inline(always)]
fn of_socket(ctx: &BtfTracePointContext, sk: *const u8, trouble: TcpTrouble, segments: u64) {
    // SAFETY: the callers pass a BTF pointer to a socket.
    unsafe { seen(ctx, tcp_ends_of_trusted(sk), trouble, state(sk), 0, segments) };
}

#[inline(always)]
fn seen(ctx: &BtfTracePointContext, ends: Endpoints, trouble: TcpTrouble, state: u32, reason: u32, segments: u64) {
    if !port_passes(&ends) {
        return;
    }
    count_shared(Counter::Seen);
    let trouble = trouble as u32;
    let key = TroubleKey { remote: ends.remote, trouble, state, reason, family: ends.family.into() };
    let cell = COUNTS.get_ptr_mut(key).or_else(|| {
        // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
        let _ = COUNTS.insert(key, TroubleCell { count: 0, segments: 0 }, 1);
        COUNTS.get_ptr_mut(key)
    });
    match cell {
        // SAFETY: a pointer into the map's value.
        Some(cell) => unsafe {
            add(&raw mut (*cell).count, 1);
            add(&raw mut (*cell).segments, segments);
        },
        None => count_shared(Counter::MapFull),
    }
    if SEND_EVENTS.load() != 0 {
        send_event(ctx, TroubleEvent { header: HEADER, trouble, time_ns: now(), ends, state, reason, segments });
    }
}

#[inline(always)]
fn send_event(ctx: &BtfTracePointContext, event: TroubleEvent) {
    count_shared(Counter::SideSeen);
    // SAFETY: the record is on the stack and its size is a constant.
    let room = unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const event).cast(), size_of::<TroubleEvent>() as u32) };
    if !room {
        count_shared(Counter::SideBufferFull);
    }
}

mcptrace_ebpf::object!();
