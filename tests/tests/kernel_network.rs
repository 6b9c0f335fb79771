//! The network probes on the real kernel, over loopback and in network namespaces. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use mcptrace::{
    kernel::filter::Filter,
    report::{Envelope, Row},
};
use mcptrace_tests::{
    probing::{around, assert_no_loss, events, find_series, of_pid, one_series, series},
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
