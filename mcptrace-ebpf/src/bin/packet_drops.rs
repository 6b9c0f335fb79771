//! Counts packets that the kernel drops, by reason, place and protocol.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    macros::{btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};
use mcptrace_ebpf::{
    Counter, DropCell, DropKey, NO_IP_PROTOCOL,
    kernel::{add, count, current_passes, load, read_kernel},
    socket::network_header,
};

/// Whether `kfree_skb` tells why: from 5.17 on (commit c504e5c2f964).
#[unsafe(no_mangle)]
static HAS_DROP_REASON: Global<u32> = Global::new(0);
/// Offsets in `struct sk_buff`.
#[unsafe(no_mangle)]
static SKB_LEN: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SKB_DATA: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SKB_PROTOCOL: Global<u32> = Global::new(0);

/// `ETH_P_IP` and `ETH_P_IPV6` (include/uapi/linux/if_ether.h).
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Packets and bytes.
#[map]
static DROPS: HashMap<DropKey, DropCell> = HashMap::with_max_entries(8192, 0);

/// Prototype: struct sk_buff *skb, void *location, from 5.17 on enum skb_drop_reason reason, and from 6.11 on struct sock *rx_sk
/// (include/trace/events/skb.h).
#[btf_tracepoint(function = "kfree_skb")]
fn dropped(ctx: BtfTracePointContext) -> i32 {
    if !current_passes() {
        return 0;
    }
    count(Counter::Seen);
    let skb: *const u8 = ctx.arg(0);
    let key = key(&ctx, skb);
    let cell = DROPS.get_ptr_mut(key).or_else(|| {
        // Another CPU may have been first (BPF_NOEXIST is 1): then its entry is used.
        let _ = DROPS.insert(key, DropCell { packets: 0, bytes: 0 }, 1);
        DROPS.get_ptr_mut(key)
    });
    let Some(cell) = cell else {
        count(Counter::MapFull);
        return 0;
    };
    // SAFETY: a pointer into the map's value; the first argument is a BTF pointer to struct sk_buff.
    unsafe {
        add(&raw mut (*cell).packets, 1);
        add(&raw mut (*cell).bytes, length(skb, key.protocol != NO_IP_PROTOCOL));
    }
    0
}

/// The length of a packet. Of IP from its network header on, whatever of it the kernel has taken off by now or not; of others what is left.
#[inline(always)]
unsafe fn length(skb: *const u8, is_ip: bool) -> u64 {
    // SAFETY: the caller passes a BTF pointer to struct sk_buff.
    unsafe {
        let left = load::<u32>(skb, SKB_LEN.load()).into();
        if !is_ip {
            return left;
        }
        let data: u64 = load(skb, SKB_DATA.load());
        left.wrapping_add(data.wrapping_sub(network_header(skb) as u64))
    }
}

mcptrace_ebpf::follows_forks!();

#[inline(always)]
fn key(ctx: &BtfTracePointContext, skb: *const u8) -> DropKey {
    // SAFETY: the first argument is a BTF pointer to struct sk_buff.
    let ethertype = u16::from_be(unsafe { load(skb, SKB_PROTOCOL.load()) });
    let reason = if HAS_DROP_REASON.load() != 0 { ctx.arg::<u32>(2) } else { 0 };
    DropKey { location: ctx.arg(1), reason, ethertype, protocol: ip_protocol(skb, ethertype) }
}

/// `protocol` of struct iphdr, `nexthdr` of struct ipv6hdr: the first header after it, which may be an extension.
#[inline(always)]
fn ip_protocol(skb: *const u8, ethertype: u16) -> u16 {
    let (version, place) = match ethertype {
        ETH_P_IP => (4, 9),
        ETH_P_IPV6 => (6, 6),
        _ => return NO_IP_PROTOCOL,
    };
    // As far as the later of both places.
    // SAFETY: the callers pass a BTF pointer to struct sk_buff; the helper checks the address of the header.
    let header: [u8; 10] = unsafe { read_kernel(network_header(skb)) };
    // A packet dropped before its network header was found has another one there.
    if header[0] >> 4 != version {
        return NO_IP_PROTOCOL;
    }
    header[place].into()
}

mcptrace_ebpf::object!();
