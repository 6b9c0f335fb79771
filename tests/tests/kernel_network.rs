//! The network probes on the real kernel, over loopback and in network namespaces. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread::sleep,
    time::{Duration, Instant},
};

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Row},
};
use mcptrace_tests::{
    probing::{around, assert_no_loss, events, find_series, of_pid, one_series, rows, series, try_start},
    workload,
    workload::Workload,
};
use serde_json::json;

const FAMILIES: [(&str, &str); 2] = [("v4", "127.0.0.1"), ("v6", "::1")];

/// Connections of a client to a server, so often, with so many bytes either way.
fn talk(server: &mut Workload, client: &mut Workload, family: &str, times: i64, up: i64, down: i64) -> i64 {
    let port = server.run(&format!("tcp_listen {family}"))[0];
    talk_again(server, client, family, port, times, up, down);
    port
}

fn talk_again(server: &mut Workload, client: &mut Workload, family: &str, port: i64, times: i64, up: i64, down: i64) {
    server.begin(&format!("tcp_serve {times} {up} {down}"));
    client.run(&format!("tcp_connect {family} {port} {times} {up} {down}"));
    server.finish();
}

fn of_event<'a>(envelope: &'a Envelope, event: &str) -> Vec<&'a Row> {
    events(envelope).iter().filter(|row| row["event"] == event).collect()
}

fn number(row: &Row, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("{field}: {row:?}"))
}

/// A counter of the kernel's own (Documentation/networking/snmp_counter.rst): lines come in pairs, names and numbers.
fn counter(file: &str, group: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
    pairs.find(|(each, _)| *each == name).unwrap().1.parse().unwrap()
}

/// One of IPv6: a line each.
fn counter_of_ipv6(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp6").unwrap();
    let mut pairs = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
    pairs.find(|(each, _)| *each == name).unwrap().1.trim().parse().unwrap()
}

/// The sum of a column over the rows with these fields.
fn sum(envelope: &Envelope, fields: &[(&str, &str)], column: &str) -> u64 {
    let is = |row: &&Row| fields.iter().all(|(field, value)| row.get(*field).is_some_and(|found| found == value));
    rows(envelope).iter().filter(is).map(|row| number(row, column)).sum()
}

#[test]
fn a_clients_connections_are_there_with_its_name_and_bytes() {
    for (family, address) in FAMILIES {
        let (mut server, mut client) = (workload!(), workload!());
        client.run("comm caller");
        let mut port = 0;
        let envelope = around("tcp_connections", &json!({}), &of_pid(client.pid()), || {
            port = talk(&mut server, &mut client, family, 23, 10_007, 5003);
        });
        assert_no_loss(&envelope);
        assert_eq!(series(&envelope).len(), 2, "{:?}", series(&envelope));
        for event in ["connect", "close"] {
            assert_eq!(one_series(&envelope, "event", event).count, 23);
            let rows = of_event(&envelope, event);
            assert_eq!(rows.len(), 23);
            for row in rows {
                assert_eq!((&row["pid"], &row["comm"]), (&json!(client.pid()), &json!("caller")));
                assert_eq!((&row["side"], &row["uid"]), (&json!("client"), &json!(0)));
                assert_eq!((&row["local"], &row["remote"]), (&json!(address), &json!(address)));
                assert_eq!(row["remote_port"], port);
                assert!(number(row, "local_port") > 0 && number(row, "duration_ns") > 0);
                assert_eq!(row.get("errno"), None);
                if event == "close" {
                    assert_eq!((&row["sent_bytes"], &row["received_bytes"]), (&json!(10_007), &json!(5003)));
                }
            }
        }
    }
}

#[test]
fn a_servers_connections_are_those_that_it_accepted() {
    for (family, address) in FAMILIES {
        let (mut server, mut client) = (workload!(), workload!());
        server.run("comm answerer");
        let mut port = 0;
        let envelope = around("tcp_connections", &json!({}), &of_pid(server.pid()), || {
            port = talk(&mut server, &mut client, family, 19, 7001, 3001);
        });
        assert_no_loss(&envelope);
        assert_eq!(series(&envelope).len(), 2, "{:?}", series(&envelope));
        for event in ["accept", "close"] {
            assert_eq!(one_series(&envelope, "event", event).count, 19);
            for row in of_event(&envelope, event) {
                assert_eq!((&row["pid"], &row["comm"]), (&json!(server.pid()), &json!("answerer")));
                assert_eq!((&row["side"], &row["local"]), (&json!("server"), &json!(address)));
                assert_eq!(row["local_port"], port);
                if event == "close" {
                    assert_eq!((&row["sent_bytes"], &row["received_bytes"]), (&json!(3001), &json!(7001)));
                }
            }
        }
    }
}

#[test]
fn a_refused_connect_says_why_and_is_all_that_failed_only_shows() {
    for (family, address) in FAMILIES {
        let (mut server, mut client) = (workload!(), workload!());
        // A port that was free a moment ago, and whose listener is gone.
        let closed = workload!().run(&format!("tcp_listen {family}"))[0];
        let envelope = around("tcp_connections", &json!({"failed_only": true}), &of_pid(client.pid()), || {
            client.run(&format!("tcp_refused {family} {closed} 17"));
            talk(&mut server, &mut client, family, 5, 1, 1);
        });
        assert_no_loss(&envelope);
        assert_eq!(series(&envelope).len(), 1);
        assert_eq!(one_series(&envelope, "event", "connect_failed").count, 17);
        for row in events(&envelope) {
            assert_eq!((&row["errno"], &row["remote"]), (&json!("ECONNREFUSED"), &json!(address)));
            assert_eq!((&row["remote_port"], &row["pid"]), (&json!(closed), &json!(client.pid())));
        }
    }
}

#[test]
fn a_port_leaves_other_connections_out_and_both_ends_are_seen() {
    let (mut server, mut client) = (workload!(), workload!());
    let (mut other_server, mut other_client) = (workload!(), workload!());
    let port = server.run("tcp_listen v4")[0];
    let envelope = around("tcp_connections", &json!({"port": port}), &Filter::default(), || {
        talk_again(&mut server, &mut client, "v4", port, 13, 100, 100);
        talk(&mut other_server, &mut other_client, "v4", 7, 100, 100);
    });
    assert_no_loss(&envelope);
    for (event, count) in [("connect", 13), ("accept", 13), ("close", 26)] {
        assert_eq!(one_series(&envelope, "event", event).count, count, "{event}");
    }
    assert!(find_series(&envelope, "event", "connect_failed").is_none());
}

#[test]
fn resets_of_refused_connects_are_counted_on_both_sides() {
    for (family, address) in FAMILIES {
        let closed = workload!().run(&format!("tcp_listen {family}"))[0];
        let mut client = workload!();
        let before = counter("/proc/net/snmp", "Tcp", "OutRsts");
        let envelope = around("tcp_retransmits", &json!({"port": closed, "events": true}), &Filter::default(), || {
            client.run(&format!("tcp_refused {family} {closed} 17"));
        });
        assert!(counter("/proc/net/snmp", "Tcp", "OutRsts") - before >= 17);
        assert_no_loss(&envelope);
        let sent = [("event", "reset_sent"), ("state", "NONE"), ("remote", address)];
        let received = [("event", "reset_received"), ("state", "SYN_SENT"), ("remote", address)];
        assert_eq!((sum(&envelope, &sent, "count"), sum(&envelope, &received, "count")), (17, 17));
        assert_eq!(sum(&envelope, &[], "count"), 34, "{:?}", rows(&envelope));
        let reasons: Vec<_> = rows(&envelope).iter().filter_map(|row| row.get("reason")).collect();
        assert_eq!(reasons, ["NO_SOCKET"]);
        assert_eq!(events(&envelope).len(), 34);
        for row in events(&envelope) {
            let port = if row["event"] == "reset_sent" { "local_port" } else { "remote_port" };
            assert_eq!((&row[port], &row["remote"]), (&json!(closed), &json!(address)), "{row:?}");
            let reason = (row["event"] == "reset_sent").then(|| json!("NO_SOCKET"));
            assert_eq!(row.get("reason"), reason.as_ref(), "{row:?}");
        }
    }
}

#[test]
fn connects_that_nobody_answers_are_sent_again() {
    let mut client = workload!();
    let count = || counter("/proc/net/netstat", "TcpExt", "TCPSynRetrans");
    let before = count();
    let mut port = 0;
    // The first repetition comes after a second, the next two seconds later (TCP_TIMEOUT_INIT, include/net/tcp.h).
    let envelope = around("tcp_retransmits", &json!({"events": true}), &Filter::default(), || {
        port = client.run("tcp_unanswered 13 2000")[0];
    });
    assert!(count() - before >= 13);
    assert!(sum(&envelope, &[("event", "retransmit"), ("state", "SYN_SENT"), ("remote", "127.0.0.1")], "count") >= 13);
    let own = |row: &&Row| row["event"] == "retransmit" && row["remote_port"] == port;
    let own: Vec<_> = events(&envelope).iter().filter(own).collect();
    assert_eq!(own.len(), 13);
    assert!(own.iter().all(|row| row["state"] == "SYN_SENT"), "{own:?}");
}

/// A classic socket filter that lets nothing through: what arrives is lost behind the network, and TCP of the other side sends it again.
fn lose_all(socket: &TcpStream) {
    let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let filter = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter);
}

fn set<T>(socket: i32, level: i32, name: i32, value: &T) {
    // SAFETY: the value is there for as long as the call takes, and has the size that is given.
    let set = unsafe { libc::setsockopt(socket, level, name, std::ptr::from_ref(value).cast(), size_of::<T>() as u32) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// What the kernel says of a connection: segments in flight, and those that were sent again (`struct tcp_info`, include/uapi/linux/tcp.h).
fn in_flight_and_sent_again(socket: &TcpStream) -> (u32, u32) {
    let (mut words, mut size) = ([0_u32; 26], 104);
    // SAFETY: there is room for so many bytes.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            words.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert_eq!((got, size), (0, 104));
    (words[6], words[25])
}

#[test]
fn segments_are_counted_as_the_connection_itself_does() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Small segments, so that TCP sends many in one piece.
    set(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_MAXSEG, &536_i32);
    let port = listener.local_addr().unwrap().port();
    let mut again = 0;
    let envelope = around("tcp_retransmits", &json!({"port": port, "events": true}), &Filter::default(), || {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        let data = vec![0; 30_000];
        // Twice: when what was lost first arrives at last, the window is open for more of what is lost next.
        for _ in 0..2 {
            lose_all(&server);
            let taken = client.write(&data).unwrap();
            assert!(taken > 20 * 536, "{taken} are too few to be sent in one piece");
            sleep(Duration::from_millis(500));
            set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0_i32);
            let until = Instant::now() + Duration::from_secs(30);
            while in_flight_and_sent_again(&client).0 > 0 && Instant::now() < until {
                sleep(Duration::from_millis(10));
            }
        }
        let (in_flight, all) = in_flight_and_sent_again(&client);
        assert_eq!(in_flight, 0, "all has arrived");
        again = all;
    });
    assert_no_loss(&envelope);
    let own = [("event", "retransmit"), ("remote", "127.0.0.1")];
    let (count, segments) = (sum(&envelope, &own, "count"), sum(&envelope, &own, "segments"));
    assert_eq!(segments, u64::from(again), "{:?}", rows(&envelope));
    assert!(count < segments, "{count} of several segments: {segments}");
    let single: u64 = of_event(&envelope, "retransmit").iter().map(|row| number(row, "segments")).sum();
    assert_eq!(single, segments);
}

#[test]
fn retransmits_have_no_thread_to_filter_by_and_say_so() {
    let refusal = try_start("tcp_retransmits", &json!({}), &of_pid(1)).unwrap_err();
    assert!(refusal.to_string().contains("belong to no thread"), "{refusal}");
}

#[test]
fn datagrams_to_a_closed_port_are_dropped_for_want_of_a_socket() {
    for (family, protocol) in [("v4", "ipv4"), ("v6", "ipv6")] {
        let closed = workload!().run(&format!("udp_bind {family}"))[0];
        let mut client = workload!();
        let no_ports = || {
            if family == "v4" { counter("/proc/net/snmp", "Udp", "NoPorts") } else { counter_of_ipv6("Udp6NoPorts") }
        };
        let before = no_ports();
        let envelope = around("packet_drops", &json!({}), &Filter::default(), || {
            client.run(&format!("udp_send {family} {closed} 997 100"));
        });
        let most = no_ports() - before;
        assert_no_loss(&envelope);
        let key = [("reason", "NO_SOCKET"), ("protocol", protocol), ("ip_protocol", "udp")];
        let packets = sum(&envelope, &key, "packets");
        assert!((997..=most).contains(&packets), "{packets} of {most}: {:?}", rows(&envelope));
        let bytes = sum(&envelope, &key, "bytes");
        let length = 100 + 8 + if family == "v4" { 20 } else { 40 };
        assert!(bytes >= 997 * length && (packets > 997 || bytes == 997 * length), "{bytes}: with all headers");
        let places: Vec<_> = rows(&envelope).iter().filter(|row| row["reason"] == "NO_SOCKET").collect();
        assert!(places.iter().all(|row| row["location"].as_str().unwrap().contains("rcv")), "{places:?}");
    }
}

#[test]
fn what_a_process_sends_and_receives_is_there_to_the_byte() {
    for (family, address) in FAMILIES {
        let (mut server, mut client) = (workload!(), workload!());
        let mut port = 0;
        let envelope = around("net_traffic", &json!({}), &of_pid(client.pid()), || {
            port = talk(&mut server, &mut client, family, 23, 10_007, 5003);
        });
        assert_no_loss(&envelope);
        let [row] = rows(&envelope) else { panic!("{:?}", rows(&envelope)) };
        assert_eq!((&row["pid"], &row["comm"]), (&json!(client.pid()), &json!("workload")));
        assert_eq!((&row["protocol"], &row["peer"]), (&json!("tcp"), &json!(address)));
        assert_eq!((&row["port"], &row["port_of"]), (&json!(port), &json!("peer")));
        let total = |column| sum(&envelope, &[], column);
        assert_eq!((total("sent_bytes"), total("received_bytes")), (23 * 10_007, 23 * 5003));
        assert_eq!(total("sends"), 23);
        assert!(total("receives") >= 23);
    }
}

/// A socket that is closed on both sides gives its port back before the program has read what it still holds.
#[test]
fn what_is_read_after_the_end_belongs_to_the_port() {
    for (family, address) in FAMILIES {
        let (mut server, mut client) = (workload!(), workload!());
        let port = server.run(&format!("tcp_listen {family}"))[0];
        let envelope = around("net_traffic", &json!({"port": port}), &of_pid(server.pid()), || {
            server.begin("tcp_serve_late 5003");
            client.run(&format!("tcp_leave {family} {port} 5003"));
            server.finish();
        });
        assert_no_loss(&envelope);
        let [row] = rows(&envelope) else { panic!("{:?}", rows(&envelope)) };
        assert_eq!((&row["port"], &row["port_of"], &row["peer"]), (&json!(port), &json!("local"), &json!(address)));
        assert_eq!(number(row, "received_bytes"), 5003);
    }
}

#[test]
fn a_datagram_is_a_call_and_grouping_by_command_leaves_processes_out() {
    let (mut receiver, mut sender) = (workload!(), workload!());
    receiver.run("comm udp_sink");
    sender.run("comm udp_source");
    let port = receiver.run("udp_bind v4")[0];
    let envelope = around("net_traffic", &json!({"by": "comm"}), &Filter::default(), || {
        // Few enough to wait in the socket's buffer.
        receiver.begin("udp_receive 61 1009");
        sender.run(&format!("udp_send v4 {port} 61 1009"));
        receiver.finish();
    });
    assert_no_loss(&envelope);
    let of = |comm, column| sum(&envelope, &[("comm", comm), ("protocol", "udp"), ("peer", "0.0.0.0")], column);
    assert_eq!((of("udp_source", "sends"), of("udp_source", "sent_bytes")), (61, 61 * 1009));
    assert_eq!((of("udp_sink", "receives"), of("udp_sink", "received_bytes")), (61, 61 * 1009));
    assert_eq!(of("udp_sink", "sends") + of("udp_source", "receives"), 0);
    assert!(rows(&envelope).iter().all(|row| row.get("pid").is_none()));
}
