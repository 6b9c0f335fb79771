//! Sockets: what the network probes say.

use crate::{CGROUP_OFFSET, COMM_LEN, Comm, Header, Process, Record};

/// `TCP_ESTABLISHED` and its kin (include/net/tcp_states.h).
pub mod tcp_state {
    #![allow(missing_docs, reason = "the kernel names them")]
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const CLOSE: u32 = 7;
    pub const LISTEN: u32 = 10;
}

/// `AF_INET` (include/linux/socket.h).
pub const AF_INET: u16 = 2;
/// `AF_INET6`.
pub const AF_INET6: u16 = 10;
/// `IPPROTO_TCP` (include/uapi/linux/in.h).
pub const IPPROTO_TCP: u16 = 6;

/// The two ends of a connection. Addresses are in network byte order, one of IPv4 in the first word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Endpoints {
    /// This host's address.
    pub local: [u32; 4],
    /// The peer's address.
    pub remote: [u32; 4],
    /// This host's port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
    /// [`AF_INET`] or [`AF_INET6`].
    pub family: u16,
    /// `IPPROTO_*`.
    pub protocol: u16,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TcpStep {
    /// A connect was answered.
    Connected = 0,
    /// A connect failed.
    Refused = 1,
    /// A program took a connection out of a listener's queue.
    Accepted = 2,
    /// A connection ended.
    Closed = 3,
}

/// How many [`TcpStep`]s there are.
pub const TCP_STEPS: u32 = 4;

/// The side of a connection that this host is on; 0 is not known.
pub const SIDE_CLIENT: u32 = 1;
/// See [`SIDE_CLIENT`].
pub const SIDE_SERVER: u32 = 2;

/// Stands for a duration whose start was not seen.
pub const NO_DURATION: u64 = u64::MAX;

/// One step of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TcpEvent {
    /// Size, version, kind.
    pub header: Header,
    /// A [`TcpStep`].
    pub step: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// Id of the process's control group in the version 2 hierarchy; 0 is not known.
    pub cgroup: u64,
    /// How long the step took, in nanoseconds, or [`NO_DURATION`].
    pub duration_ns: u64,
    /// Payload received, in bytes.
    pub received_bytes: u64,
    /// Payload sent, each byte counted once, in bytes.
    pub sent_bytes: u64,
    /// Process (thread group) in the initial pid namespace; 0 is not known.
    pub pid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Command name of the thread.
    pub comm: Comm,
    /// Addresses and ports.
    pub ends: Endpoints,
    /// Smoothed round-trip time, in microseconds.
    pub srtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// The socket's error (`sk_err`), 0 for none.
    pub error: u32,
    /// [`SIDE_CLIENT`] or [`SIDE_SERVER`].
    pub side: u32,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers and byte arrays only.
unsafe impl Record for TcpEvent {
    const KIND: u8 = 30;
}

/// What kind of trouble a TCP connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TcpTrouble {
    /// A segment was sent again.
    Retransmit = 0,
    /// The answer to a SYN was sent again.
    SynackRetransmit = 1,
    /// This host sent a reset.
    ResetSent = 2,
    /// This host received a reset.
    ResetReceived = 3,
}

/// Stands for a state where there is no socket.
pub const NO_STATE: u32 = 0;

/// Retransmits and resets are counted by this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct TroubleKey {
    /// The peer's address, as in [`Endpoints`].
    pub remote: [u32; 4],
    /// A [`TcpTrouble`].
    pub trouble: u32,
    /// State of the connection, `TCP_*` (include/net/tcp_states.h).
    pub state: u32,
    /// `enum sk_rst_reason` of a reset that was sent, where the kernel has it.
    pub reason: u32,
    /// [`Endpoints::family`].
    pub family: u32,
}

/// How often, and how many segments of the network that were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TroubleCell {
    /// How often.
    pub count: u64,
    /// Segments sent again: a packet in TCP's queue may be several, which are cut apart later. None of a reset.
    pub segments: u64,
}

/// One retransmit or reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TroubleEvent {
    /// Size, version, kind.
    pub header: Header,
    /// A [`TcpTrouble`].
    pub trouble: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// Addresses and ports.
    pub ends: Endpoints,
    /// As in [`TroubleKey`].
    pub state: u32,
    /// As in [`TroubleKey`].
    pub reason: u32,
    /// As in [`TroubleCell`].
    pub segments: u64,
}

// SAFETY: repr(C), a header first, no padding (asserted below), integers only.
unsafe impl Record for TroubleEvent {
    const KIND: u8 = 31;
}

/// Drops of packets are counted by this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DropKey {
    /// Address of the code that dropped it.
    pub location: u64,
    /// `enum skb_drop_reason`; 0 where the kernel has none.
    pub reason: u32,
    /// `ETH_P_*` (include/uapi/linux/if_ether.h), as a number of this host.
    pub ethertype: u16,
    /// `IPPROTO_*` of an IP packet, else [`NO_IP_PROTOCOL`].
    pub protocol: u16,
}

/// Stands in [`DropKey::protocol`] for packets that are not IP or have no header to read.
pub const NO_IP_PROTOCOL: u16 = u16::MAX;

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DropCell {
    /// How many.
    pub packets: u64,
    /// Their lengths: of IP packets from the network header on, of others what was left.
    pub bytes: u64,
}

/// Traffic is counted by this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct TrafficKey {
    /// The peer's address, as in [`Endpoints`]; zeros for a socket without a peer.
    pub remote: [u32; 4],
    /// As of [`GroupKey`](crate::GroupKey).
    pub pid: u32,
    /// The lower of both ports.
    pub port: u16,
    /// [`Endpoints::family`].
    pub family: u16,
    /// `IPPROTO_*`.
    pub protocol: u16,
    /// 1 if the port is this host's.
    pub port_is_local: u16,
    /// Always 0: hash keys have no padding.
    pub zero: u32,
    /// As of [`GroupKey`](crate::GroupKey).
    pub comm: Comm,
}

/// Traffic of one group with one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TrafficCell {
    /// Payload sent, in bytes.
    pub sent_bytes: u64,
    /// Payload received, in bytes.
    pub received_bytes: u64,
    /// Calls that sent.
    pub sends: u64,
    /// Calls that received.
    pub receives: u64,
    /// The process at the first of it.
    pub process: Process,
}

const _: () = assert!(core::mem::offset_of!(TcpEvent, time_ns) == crate::TIME_OFFSET);
const _: () = assert!(core::mem::offset_of!(TroubleEvent, time_ns) == crate::TIME_OFFSET);
const _: () = assert!(size_of::<Endpoints>() == 40);
const _: () = assert!(core::mem::offset_of!(TcpEvent, cgroup) == CGROUP_OFFSET);
const _: () = assert!(size_of::<TcpEvent>() == 4 + 4 + 5 * 8 + 2 * 4 + COMM_LEN + 40 + 4 * 4);
const _: () = assert!(size_of::<TroubleEvent>() == 72);
const _: () = assert!(size_of::<TroubleKey>() == 32);
const _: () = assert!(size_of::<DropKey>() == 16);
const _: () = assert!(size_of::<TrafficKey>() == 48);

#[cfg(feature = "user")]
mod user {
    use super::{DropCell, DropKey, TrafficCell, TrafficKey, TroubleCell, TroubleKey};

    // SAFETY: all of these are repr(C) without padding and valid for every bit pattern.
    unsafe impl aya::Pod for TroubleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TroubleCell {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DropKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DropCell {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TrafficKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TrafficCell {}
}
