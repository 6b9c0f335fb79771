//! What `struct sock` and packets say: addresses, ports, protocol, state.
//!
//! What a tracepoint hands over is loaded, which costs next to nothing; pointers found elsewhere are read with a helper that may fail, at
//! 30 ns a field.

use aya_ebpf::Global;

use crate::{
    AF_INET, AF_INET6, Endpoints, IPPROTO_TCP,
    kernel::{load, read_kernel},
};

/// Offsets in `struct sock` and what it is part of, from the running kernel's BTF.
#[unsafe(no_mangle)]
static SK_FAMILY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SK_STATE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SK_REMOTE_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SK_LOCAL_V4: Global<u32> = Global::new(0);
/// [`NONE`] in kernels without IPv6, which then have no such socket.
#[unsafe(no_mangle)]
static SK_REMOTE_V6: Global<u32> = Global::new(NONE);
#[unsafe(no_mangle)]
static SK_LOCAL_V6: Global<u32> = Global::new(NONE);
#[unsafe(no_mangle)]
static SK_REMOTE_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SK_LOCAL_PORT: Global<u32> = Global::new(0);
/// Offset in `struct inet_sock` of a copy of the local port, in network byte order, which a closed socket keeps.
#[unsafe(no_mangle)]
pub static INET_LOCAL_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SK_PROTOCOL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SKB_HEAD: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SKB_NETWORK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SKB_TRANSPORT: Global<u32> = Global::new(0);
/// Only connections with this port on either side; 0 for all.
#[unsafe(no_mangle)]
static PORT: Global<u32> = Global::new(0);

/// An offset that this kernel does not have.
const NONE: u32 = u32::MAX;

/// Whether a connection has the port that was asked for, on either side.
#[inline(always)]
pub fn port_passes(ends: &Endpoints) -> bool {
    let port = PORT.load();
    port == 0 || u32::from(ends.local_port) == port || u32::from(ends.remote_port) == port
}

/// The state of a socket, `TCP_*`. Of any kind of socket: full, request or time-wait.
///
/// # Safety
///
/// `sk` is a BTF pointer to what begins with a `struct sock_common`, as the verifier knows them, and not null.
#[inline(always)]
pub unsafe fn state(sk: *const u8) -> u32 {
    // SAFETY: the caller's promise; the offset is that of this kernel.
    unsafe { load::<u8>(sk, SK_STATE.load()).into() }
}

/// `IPPROTO_*` of a full socket.
///
/// # Safety
///
/// `sk` points to a socket or may not be readable.
#[inline(always)]
pub unsafe fn protocol(sk: *const u8) -> u16 {
    // SAFETY: as above.
    unsafe { read_kernel(sk.wrapping_add(SK_PROTOCOL.load() as usize)) }
}

/// `AF_*` of any kind of socket.
///
/// # Safety
///
/// As for [`protocol`].
#[inline(always)]
pub unsafe fn family(sk: *const u8) -> u16 {
    // SAFETY: as above.
    unsafe { read_kernel(sk.wrapping_add(SK_FAMILY.load() as usize)) }
}

/// Addresses and ports of a TCP socket of any kind: full, request or time-wait.
///
/// # Safety
///
/// As for [`protocol`].
#[inline(always)]
pub unsafe fn tcp_ends(sk: *const u8) -> Endpoints {
    // SAFETY: as above.
    unsafe {
        let at = |offset: u32| sk.wrapping_add(offset as usize);
        let family = family(sk);
        let (local, remote) = if family == AF_INET6 && SK_LOCAL_V6.load() != NONE {
            (read_kernel(at(SK_LOCAL_V6.load())), read_kernel(at(SK_REMOTE_V6.load())))
        } else {
            (v4(read_kernel(at(SK_LOCAL_V4.load()))), v4(read_kernel(at(SK_REMOTE_V4.load()))))
        };
        Endpoints {
            local,
            remote,
            local_port: read_kernel(at(SK_LOCAL_PORT.load())),
            remote_port: u16::from_be(read_kernel(at(SK_REMOTE_PORT.load()))),
            family,
            protocol: IPPROTO_TCP,
        }
    }
}

/// The same by plain loads.
///
/// # Safety
///
/// As for [`state`].
#[inline(always)]
pub unsafe fn tcp_ends_of_trusted(sk: *const u8) -> Endpoints {
    // SAFETY: the caller's promise; the offsets are those of this kernel.
    unsafe {
        let family = load(sk, SK_FAMILY.load());
        let (local, remote) = addresses_of_trusted(sk, family).unwrap_or_default();
        Endpoints {
            local,
            remote,
            local_port: load(sk, SK_LOCAL_PORT.load()),
            remote_port: u16::from_be(load(sk, SK_REMOTE_PORT.load())),
            family,
            protocol: IPPROTO_TCP,
        }
    }
}

/// Addresses and ports of a full socket, by plain loads. `None` for a socket that is not of IP.
///
/// # Safety
///
/// `sk` is a BTF pointer to a `struct sock` as the verifier knows them, and not null.
#[inline(always)]
pub unsafe fn ends_of_trusted(sk: *const u8) -> Option<Endpoints> {
    // SAFETY: the caller's promise; the offsets are those of this kernel.
    unsafe {
        let family: u16 = load(sk, SK_FAMILY.load());
        let (local, remote) = addresses_of_trusted(sk, family)?;
        Some(Endpoints {
            local,
            remote,
            local_port: local_port(sk),
            remote_port: u16::from_be(load(sk, SK_REMOTE_PORT.load())),
            family,
            protocol: load(sk, SK_PROTOCOL.load()),
        })
    }
}

/// The local address and that of the peer; `None` for a socket that is not of IP.
#[inline(always)]
unsafe fn addresses_of_trusted(sk: *const u8, family: u16) -> Option<([u32; 4], [u32; 4])> {
    // SAFETY: the callers pass a BTF pointer to a socket.
    unsafe {
        if family == AF_INET6 && SK_LOCAL_V6.load() != NONE {
            Some((v6(sk, SK_LOCAL_V6.load()), v6(sk, SK_REMOTE_V6.load())))
        } else if family == AF_INET {
            Some((v4(load(sk, SK_LOCAL_V4.load())), v4(load(sk, SK_REMOTE_V4.load()))))
        } else {
            None
        }
    }
}

/// The local port, also of a socket that has been closed by its peer and gave its port back (`tcp_set_state`, net/ipv4/tcp.c): what it
/// still holds can be read.
///
/// # Safety
///
/// As for [`ends_of_trusted`]; the socket is one of IP.
#[inline(always)]
unsafe fn local_port(sk: *const u8) -> u16 {
    // SAFETY: the caller's promise. The copy is beyond the end of `struct sock`, where the verifier allows no plain load.
    unsafe {
        let port: u16 = load(sk, SK_LOCAL_PORT.load());
        if port != 0 { port } else { u16::from_be(read_kernel(sk.wrapping_add(INET_LOCAL_PORT.load() as usize))) }
    }
}

#[inline(always)]
fn v4(address: u32) -> [u32; 4] {
    [address, 0, 0, 0]
}

#[inline(always)]
unsafe fn v6(sk: *const u8, offset: u32) -> [u32; 4] {
    // SAFETY: the caller passes a BTF pointer and the offset of a `struct in6_addr`.
    unsafe { [load(sk, offset), load(sk, offset + 4), load(sk, offset + 8), load(sk, offset + 12)] }
}

/// The start of a packet's network header.
///
/// # Safety
///
/// `skb` is a BTF pointer to a `struct sk_buff` as the verifier knows them, and not null.
#[inline(always)]
pub unsafe fn network_header(skb: *const u8) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe { header(skb, SKB_NETWORK.load()) }
}

/// Addresses and ports of a TCP packet that this host received: its source is the peer. All zeros if it is no IP packet.
///
/// # Safety
///
/// As for [`network_header`].
#[inline(always)]
pub unsafe fn ends_of_received(skb: *const u8) -> Endpoints {
    // SAFETY: the caller's promise for the packet, and a helper checks the addresses of its headers: struct iphdr
    // (include/uapi/linux/ip.h), struct ipv6hdr (include/uapi/linux/ipv6.h), and two ports at the start of struct tcphdr.
    unsafe {
        let network = network_header(skb);
        let ports: [u16; 2] = read_kernel(header(skb, SKB_TRANSPORT.load()));
        // Version and addresses of version 4 at once.
        let words: [u32; 5] = read_kernel(network);
        let (family, local, remote) = match words[0].to_ne_bytes()[0] >> 4 {
            4 => (AF_INET, v4(words[4]), v4(words[3])),
            6 => {
                let [source, destination]: [[u32; 4]; 2] = read_kernel(network.wrapping_add(8));
                (AF_INET6, destination, source)
            }
            _ => return Endpoints::default(),
        };
        let (local_port, remote_port) = (u16::from_be(ports[1]), u16::from_be(ports[0]));
        Endpoints { local, remote, local_port, remote_port, family, protocol: IPPROTO_TCP }
    }
}

/// The start of a header whose place a packet has at an offset.
#[inline(always)]
unsafe fn header(skb: *const u8, place: u32) -> *const u8 {
    // SAFETY: the callers pass a BTF pointer to a packet; the offsets are those of this kernel.
    let (head, place) = unsafe { (load::<*const u8>(skb, SKB_HEAD.load()), load::<u16>(skb, place)) };
    head.wrapping_add(place as usize)
}
