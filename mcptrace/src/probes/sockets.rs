//! What the network probes share: addresses, states and protocols as text. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mcptrace_wire::{AF_INET, AF_INET6, Endpoints};

use crate::report::{Field, Row};

/// An address as it is kept in the kernel. One of IPv4 within IPv6 is shown as IPv4.
pub fn address(words: [u32; 4], family: u16) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    match family {
        AF_INET => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).to_string(),
        AF_INET6 => {
            let address = <[u8; 16]>::try_from(bytes).map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from);
            IpAddr::V6(address).to_canonical().to_string()
        }
        _ => String::new(),
    }
}

/// Fills in both ends of a connection.
pub fn insert_ends(row: &mut Row, ends: &Endpoints) {
    row.insert("local".into(), address(ends.local, ends.family).into());
    row.insert("local_port".into(), ends.local_port.into());
    row.insert("remote".into(), address(ends.remote, ends.family).into());
    row.insert("remote_port".into(), ends.remote_port.into());
}

/// The fields of [`insert_ends`].
pub fn end_fields() -> impl Iterator<Item = Field> {
    ["local", "local_port", "remote", "remote_port"].into_iter().map(|name| Field::new(name, ""))
}

/// The name of a TCP state (include/net/tcp_states.h), as `ss` and netstat have it.
pub fn state_name(state: u32) -> String {
    const NAMES: [&str; 13] = [
        "NONE",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
    ];
    NAMES.get(state as usize).map_or_else(|| format!("STATE_{state}"), |name| (*name).to_owned())
}

/// The name of an IP protocol (include/uapi/linux/in.h), its number where it is a rare one.
pub fn protocol_name(protocol: u16) -> String {
    match protocol {
        1 => "icmp".into(),
        2 => "igmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        255 => "raw".into(),
        262 => "mptcp".into(),
        number => format!("ip_{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_network_order_and_mapped_ones_are_ipv4() {
        let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        assert_eq!(address([word([127, 0, 0, 1]), 0, 0, 0], AF_INET), "127.0.0.1");
        assert_eq!(address([0, 0, 0, word([0, 0, 0, 1])], AF_INET6), "::1");
        assert_eq!(address([0, 0, word([0, 0, 255, 255]), word([10, 1, 2, 3])], AF_INET6), "10.1.2.3");
        assert_eq!(address([1, 2, 3, 4], 1), "");
    }

    #[test]
    fn unknown_states_and_protocols_show_their_number() {
        assert_eq!((state_name(1), state_name(99)), ("ESTABLISHED".into(), "STATE_99".into()));
        assert_eq!((protocol_name(17), protocol_name(200)), ("udp".into(), "ip_200".into()));
    }
}
