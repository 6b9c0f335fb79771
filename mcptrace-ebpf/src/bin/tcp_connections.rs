//! Follows TCP connections: how connects are answered, when they are accepted, how long they live and what they carried.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid},
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray, PerfEventByteArray, RingBuf},
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    AF_INET, AF_INET6, Comm, Counter, Header, Histogram, IPPROTO_TCP, NO_DURATION, Record, SIDE_CLIENT, SIDE_SERVER,
    TCP_STEPS, TcpEvent, TcpStep, WIRE_VERSION, file,
    kernel::{
        count_shared, current_cgroup, current_comm, current_passes, duration_passes, is_filtered, now, read_kernel,
        record, send,
    },
    socket::{INET_LOCAL_PORT, family, port_passes, protocol, tcp_ends},
    syscall::returning,
    tcp_state::{CLOSE, ESTABLISHED, LISTEN, SYN_RECV, SYN_SENT},
};

/// Whether only failed connects are counted.
#[unsafe(no_mangle)]
static FAILED_ONLY: Global<u32> = Global::new(0);
/// Indexes of accept and accept4, native and 32-bit.
#[unsafe(no_mangle)]
static ACCEPTS: Global<[u32; 4]> = Global::new([u32::MAX; 4]);
/// Offsets in `struct sock` and the structures that begin with one.
#[unsafe(no_mangle)]
static SK_ERROR: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SK_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_BYTES_SENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_BYTES_RETRANSMITTED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_BYTES_RECEIVED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_SRTT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TCP_RETRANSMITS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCKET_SK: Global<u32> = Global::new(0);

/// `1 << SOCK_DONE` (include/net/sock.h): the peer has sent its last byte.
const DONE: u64 = 1 << 1;

/// A connection that is being followed.
#[derive(Clone, Copy)]
#[repr(C)]
struct Connection {
    /// When the connect began, then when the connection was established; 0 is not known.
    start: u64,
    /// Who connected or accepted, and where; 0 while nobody has.
    cgroup: u64,
    pid: u32,
    uid: u32,
    comm: Comm,
    /// [`SIDE_CLIENT`] or [`SIDE_SERVER`].
    side: u32,
    zero: u32,
}

/// Connections by the address of their socket.
#[map]
static CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(65_536, 0);
/// How long each step took, by [`TcpStep`].
#[map]
static STEPS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(TCP_STEPS, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[btf_tracepoint(function = "inet_sock_set_state")]
fn changed(ctx: BtfTracePointContext) -> i32 {
    // Prototype: const struct sock *sk, const int oldstate, const int newstate (include/trace/events/sock.h).
    let (sk, old, new): (*const u8, u32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // SAFETY: the first argument is a socket.
    if unsafe { protocol(sk) } != IPPROTO_TCP {
        return 0;
    }
    match (old, new) {
        (_, SYN_SENT) => began(sk),
        (SYN_SENT | SYN_RECV, ESTABLISHED) => established(&ctx, sk),
        (SYN_SENT, CLOSE) => ended(&ctx, sk, TcpStep::Refused),
        (CLOSE | LISTEN | SYN_RECV, CLOSE) => _ = CONNECTIONS.remove(sk as u64),
        (_, CLOSE) => ended(&ctx, sk, TcpStep::Closed),
        _ => {}
    }
    0
}

/// A connect, in the thread that makes it.
#[inline(always)]
fn began(sk: *const u8) {
    if current_passes() {
        remember(sk, current(now(), SIDE_CLIENT));
    } else {
        // What a connection left behind whose end was not seen.
        let _ = CONNECTIONS.remove(sk as u64);
    }
}

/// Both sides have agreed. In whatever thread the packet interrupted, so that nothing of it is used.
#[inline(always)]
fn established(ctx: &BtfTracePointContext, sk: *const u8) {
    let now = now();
    let Some(entry) = CONNECTIONS.get_ptr_mut(sk as u64) else {
        // A connect that began before or is filtered out has no listener's queue to wait in.
        // SAFETY: `sk` is a socket.
        if ctx.arg::<u32>(1) == SYN_RECV && FAILED_ONLY.load() == 0 {
            remember(
                sk,
                Connection { start: now, cgroup: 0, pid: 0, uid: 0, comm: [0; 16], side: SIDE_SERVER, zero: 0 },
            );
        } else if ctx.arg::<u32>(1) == SYN_SENT && !is_filtered() && FAILED_ONLY.load() == 0 {
            step(ctx, sk, TcpStep::Connected, &NOBODY, NO_DURATION, now);
        }
        return;
    };
    // SAFETY: a pointer into the map's value.
    let connection = unsafe { *entry };
    // SAFETY: as above.
    unsafe { (*entry).start = now };
    if FAILED_ONLY.load() == 0 {
        step(ctx, sk, TcpStep::Connected, &connection, now.wrapping_sub(connection.start), now);
    }
}

/// A connection is over, or a connect failed.
#[inline(always)]
fn ended(ctx: &BtfTracePointContext, sk: *const u8, what: TcpStep) {
    let entry = CONNECTIONS.get_ptr_mut(sk as u64);
    // SAFETY: a pointer into the map's value.
    let connection = entry.map_or(NOBODY, |entry| unsafe { *entry });
    let _ = CONNECTIONS.remove(sk as u64);
    if connection.pid == 0 && is_filtered() || what as u32 == TcpStep::Closed as u32 && FAILED_ONLY.load() != 0 {
        return;
    }
    let now = now();
    let duration = if connection.start == 0 { NO_DURATION } else { now.wrapping_sub(connection.start) };
    step(ctx, sk, what, &connection, duration, now);
}

/// A thread has taken a connection out of a listener's queue.
#[btf_tracepoint(function = "sys_exit")]
fn accepted(ctx: BtfTracePointContext) -> i32 {
    let descriptor: i64 = ctx.arg(1);
    if !ACCEPTS.load().contains(&returning(&ctx)) || descriptor < 0 || !current_passes() {
        return 0;
    }
    let socket = file::private_data(file::open_file(descriptor as u32));
    // SAFETY: the helper checks the address.
    let sk: *const u8 = unsafe { member(socket as *const u8, SOCKET_SK.load()) };
    // SAFETY: as above.
    let is_tcp = unsafe { matches!(family(sk), AF_INET | AF_INET6) && protocol(sk) == IPPROTO_TCP };
    if !is_tcp {
        return 0;
    }
    let now = now();
    let entry = CONNECTIONS.get_ptr_mut(sk as u64);
    // SAFETY: a pointer into the map's value.
    let established = entry.map_or(0, |entry| unsafe { (*entry).start });
    let connection = current(established, SIDE_SERVER);
    let waited = if established == 0 { NO_DURATION } else { now.wrapping_sub(established) };
    remember(sk, connection);
    step(&ctx, sk, TcpStep::Accepted, &connection, waited, now);
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

/// A connection of which nothing is known.
const NOBODY: Connection = Connection { start: 0, cgroup: 0, pid: 0, uid: 0, comm: [0; 16], side: 0, zero: 0 };

#[inline(always)]
fn current(start: u64, side: u32) -> Connection {
    Connection {
        start,
        cgroup: current_cgroup(),
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        comm: current_comm(),
        side,
        zero: 0,
    }
}

#[inline(always)]
fn remember(sk: *const u8, connection: Connection) {
    if CONNECTIONS.insert(sk as u64, connection, 0).is_err() {
        count_shared(Counter::FollowFull);
    }
}

/// Counts a step and sends its event.
#[inline(always)]
fn step(
    ctx: &BtfTracePointContext,
    sk: *const u8,
    what: TcpStep,
    connection: &Connection,
    duration_ns: u64,
    time_ns: u64,
) {
    let timed = duration_ns != NO_DURATION;
    if timed && !duration_passes(duration_ns) {
        return;
    }
    // SAFETY: `sk` is a socket.
    let mut ends = unsafe { tcp_ends(sk) };
    // The port is given back before the state changes (tcp_set_state, net/ipv4/tcp.c), but this copy of it stays.
    // SAFETY: a TCP socket begins with a struct inet_sock.
    ends.local_port = u16::from_be(unsafe { member(sk, INET_LOCAL_PORT.load()) });
    if !port_passes(&ends) {
        return;
    }
    count_shared(Counter::Seen);
    if !timed {
        count_shared(Counter::StartMissing);
    } else if let Some(histogram) = STEPS.get_ptr_mut(what as u32) {
        // SAFETY: a pointer into this CPU's value of the map; each step is written by one program.
        unsafe { record(histogram, duration_ns) };
    }
    // SAFETY: a TCP socket begins with a struct tcp_sock.
    let (sent, again, received, flags): (u64, u64, u64, u64) = unsafe {
        (
            member(sk, TCP_BYTES_SENT.load()),
            member(sk, TCP_BYTES_RETRANSMITTED.load()),
            member(sk, TCP_BYTES_RECEIVED.load()),
            member(sk, SK_FLAGS.load()),
        )
    };
    // The end of a stream counts as a byte received (tcp_rcv_nxt_update, net/ipv4/tcp_input.c).
    let end = u64::from(flags & DONE != 0 && received > 0);
    // SAFETY: as above.
    let event = unsafe {
        TcpEvent {
            header: Header { size: size_of::<TcpEvent>() as u16, version: WIRE_VERSION, kind: TcpEvent::KIND },
            step: what as u32,
            time_ns,
            cgroup: connection.cgroup,
            duration_ns,
            received_bytes: received - end,
            sent_bytes: sent.wrapping_sub(again),
            pid: connection.pid,
            uid: connection.uid,
            comm: connection.comm,
            ends,
            // Kept in eighths of a microsecond (struct tcp_sock, include/linux/tcp.h).
            srtt_us: member::<u32>(sk, TCP_SRTT.load()) >> 3,
            retransmits: member(sk, TCP_RETRANSMITS.load()),
            error: member(sk, SK_ERROR.load()),
            side: connection.side,
        }
    };
    count_shared(Counter::SideSeen);
    // SAFETY: the record is on the stack and its size is a constant.
    let room = unsafe { send(ctx, &EVENTS, &EVENTS_PERF, (&raw const event).cast(), size_of::<TcpEvent>() as u32) };
    if !room {
        count_shared(Counter::SideBufferFull);
    }
}

#[inline(always)]
unsafe fn member<T>(sk: *const u8, offset: u32) -> T {
    // SAFETY: the helper checks the address.
    unsafe { read_kernel(sk.wrapping_add(offset as usize)) }
}

mcptrace_ebpf::object!();
