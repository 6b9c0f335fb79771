//! The server over HTTP: who is let in, what a hostile client can do, and what is left of one that dies.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use mcptrace_tests::program::assert_has_shed;
use mcptrace_tests::{
    http::{ALICE, Ask, BOB, HttpServer, LATE, Session, exchange, read_all, refused, stateless, text, write_private},
    mcp::{Answer, attached_by, left_over, programs_held},
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring as provider, pki_types::ServerName},
};

fn list() -> Value {
    stateless("tools/list", json!({}))
}

mod start {
    use super::*;

    #[tokio::test]
    async fn without_a_token_it_says_how_to_make_one() {
        let (code, said) = refused(&["--http"], &[]).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("openssl rand -hex 32") && said.contains("--http-tokens"), "{said}");
    }

    #[tokio::test]
    async fn what_is_not_safe_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (open, good, bad) = (folder.path().join("open"), folder.path().join("good"), folder.path().join("bad"));
        for file in [&open, &good] {
            write_private(file, &format!("me {ALICE}\n"));
        }
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&bad, "me shortsecret\n");
        let (open, good, bad) = (text(&open), text(&good), text(&bad));
        for (arguments, want) in [
            (&["--http", "--http-tokens", open][..], "644"),
            (&["--http", "--http-tokens", bad], "line 1"),
            (&["--http", "--http-tokens", "/nowhere/tokens"], "No such file"),
            (&["--http", "0.0.0.0:0", "--http-tokens", good], "--tls-cert"),
            (&["--http", "[::]:0", "--http-tokens", good], "--tls-cert"),
            (&["--http", "--http-url", "ftp:nonsense", "--http-tokens", good], "--http-url"),
            (&["--http-tokens", good], "--http"),
        ] {
            let (code, said) = refused(arguments, &[]).await;
            assert_eq!(code, Some(2), "{arguments:?}: {said}");
            assert!(said.contains(want), "{arguments:?}: {said}");
            assert!(!said.contains("shortsecret") && !said.contains(ALICE), "{said}");
        }
        let (code, said) = refused(&["--http"], &[("MCPTRACE_HTTP_TOKEN", "tooshort")]).await;
        assert!(code == Some(2) && said.contains("at least 32") && !said.contains("tooshort"), "{said}");
    }
}

mod tokens {
    use super::*;

    #[tokio::test]
    async fn let_in_whoever_shows_one_and_nobody_else() {
        let server = HttpServer::start().await;
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200);
        let near = format!("{}0", &ALICE[..ALICE.len() - 1]);
        for wrong in ["", "x", &ALICE[1..], &near, LATE, &ALICE.to_uppercase(), "alice", &format!("{ALICE} {BOB}")] {
            let heard = server.ask(&Ask::message(wrong, &list())).await;
            assert_eq!(heard.status, 401, "{wrong}");
            assert!(heard.header("www-authenticate").unwrap().starts_with("Bearer realm=\"mcptrace\""), "{heard:?}");
        }
        let mut bare = Ask::message(ALICE, &list());
        bare.headers.retain(|(name, _)| *name != "Authorization");
        let heard = server.ask(&bare).await;
        assert_eq!(heard.status, 401);
        assert!(!heard.header("www-authenticate").unwrap().contains("error="), "nothing was shown: {heard:?}");
        let query = format!("/mcp?access_token={ALICE}&token={ALICE}");
        assert_eq!(server.ask(&Ask { path: &query, ..bare }).await.status, 401);
        let log = server.log();
        assert!(log.contains("status=401") && log.contains("alice") && log.contains("status=200"), "{log}");
        assert!(!log.contains(ALICE) && !log.contains(LATE) && !log.contains(&near), "{log}");
    }

    #[tokio::test]
    async fn guessing_gets_nothing_and_each_guess_the_same() {
        let server = HttpServer::start().await;
        let mut bodies = std::collections::BTreeSet::new();
        for guess in 0..300 {
            let guess = format!("alice-{guess:032x}");
            let heard = server.ask(&Ask::message(&guess, &list())).await;
            assert_eq!(heard.status, 401);
            bodies.insert(heard.body);
        }
        assert_eq!(bodies.len(), 1);
    }

    #[tokio::test]
    async fn of_the_environment_will_do() {
        let mut server = HttpServer::start_from_environment(BOB).await;
        assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 200);
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 401);
        server.child.kill().await.unwrap();
    }

    #[tokio::test]
    async fn that_are_withdrawn_end_at_once() {
        let server = HttpServer::start().await;
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200);
        write_private(&server.tokens(), &format!("bob {BOB}\n"));
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 401);
        assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 200);
        // The last one, in every way that operators take it out.
        for text in ["", "# nobody\n", "alice and more than a line has\n"] {
            write_private(&server.tokens(), text);
            assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 401, "{text:?}");
            write_private(&server.tokens(), &format!("bob {BOB}\n"));
            assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 200);
        }
        std::fs::remove_file(server.tokens()).unwrap();
        assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 401);
    }
}

mod protocol {
    use super::*;

    #[tokio::test]
    async fn both_eras_list_and_run() {
        let server = HttpServer::start().await;
        let run = json!({ "probe": "syscall_counts", "seconds": 0.3 });
        let tools = server.ask(&Ask::message(ALICE, &list())).await.message();
        assert_eq!(tools["result"]["tools"].as_array().unwrap().len(), 10);
        let answer = server.tool(ALICE, "run_probe", run.clone()).await.success();
        assert_eq!(answer["status"], "completed");
        let mut session = Session::open(&server, ALICE).await;
        let answer = session.tool(&server, "run_probe", run).await.success();
        assert_eq!(answer["status"], "completed");
    }

    #[tokio::test]
    async fn what_is_no_message_is_answered() {
        let server = HttpServer::start().await;
        for (body, code) in
            [("garbage", -32700), ("[]", -32600), ("5", -32600), ("{\"jsonrpc\":\"2.0\",\"id\":1}", -32600)]
        {
            let mut ask = Ask::message(ALICE, &list());
            ask.body = body.to_owned();
            let heard = server.ask(&ask).await;
            assert_eq!((heard.status, heard.message_or_error()["error"]["code"].as_i64()), (400, Some(code)), "{body}");
        }
        let batch =
            json!([{ "jsonrpc": "2.0", "id": 1, "method": "ping" }, { "jsonrpc": "2.0", "id": 2, "method": "ping" }]);
        assert_eq!(server.ask(&Ask::message(ALICE, &batch)).await.status, 400);
        for method in ["initialize", "resources/subscribe"] {
            let heard = server.ask(&Ask::message(ALICE, &stateless(method, json!({})))).await;
            assert_eq!((heard.status, heard.message()["error"]["code"].as_i64()), (404, Some(-32601)), "{method}");
        }
        for path in ["/", "/mcp/", "/../mcp", "/MCP", "/.well-known/oauth-protected-resource"] {
            assert_eq!(server.ask(&Ask { path, ..Ask::message(ALICE, &list()) }).await.status / 100, 4, "{path}");
        }
    }

    #[tokio::test]
    async fn sessions_and_executions_are_their_owners() {
        let server = HttpServer::start().await;
        let mut alice = Session::open(&server, ALICE).await;
        let start = json!({ "probe": "syscall_counts", "seconds": 50, "background": true });
        let id = alice.tool(&server, "run_probe", start.clone()).await.success()["execution_id"].clone();
        let ask = json!({ "execution_id": id });
        for tool in ["get_result", "stop_execution"] {
            let answer = server.tool(BOB, tool, ask.clone()).await;
            assert!(answer.is_error && answer.structured["category"] == "unknown_execution", "{}", answer.text);
        }
        let listed = server.tool(BOB, "list_executions", json!({})).await.success();
        assert_eq!(listed["executions"].as_array().unwrap().len(), 0, "{listed}");
        // The id of a session is no key to it.
        let ping = json!({ "jsonrpc": "2.0", "id": 77, "method": "ping" });
        let stolen = alice.ask(&ping).with("Authorization", format!("Bearer {BOB}"));
        assert_eq!(server.ask(&stolen).await.status, 404);
        let end = Ask { method: "DELETE", body: String::new(), ..stolen };
        server.ask(&end).await;
        assert_eq!(server.ask(&alice.ask(&ping)).await.status, 200, "it was not Bob's to end");
        // The same principal finds it in the other era too.
        let found = server.tool(ALICE, "get_result", ask.clone()).await.success();
        assert_eq!(found["status"], "running");
        assert!(!server.tool(ALICE, "stop_execution", ask).await.is_error);
    }
}

mod browsers {
    use super::*;

    #[tokio::test]
    async fn pages_elsewhere_and_rebound_names_are_forbidden() {
        let server = HttpServer::start_with(&["--http-origin", "https://app.example"]).await;
        let ask = || Ask::message(ALICE, &list());
        for host in ["evil.example", "localhost.evil.example:80", "169.254.169.254", "a@localhost"] {
            assert_eq!(server.ask(&ask().with("Host", host)).await.status, 403, "{host}");
        }
        for origin in
            ["https://evil.example", "null", "http://localhost@evil.example", "https://app.example.evil.example"]
        {
            assert_eq!(server.ask(&ask().with("Origin", origin)).await.status, 403, "{origin}");
        }
        for origin in ["https://app.example", "http://localhost:5173"] {
            assert_eq!(server.ask(&ask().with("Origin", origin)).await.status, 200, "{origin}");
        }
        assert_eq!(server.ask(&ask().with("Host", "localhost:1")).await.status, 200);
        // Before the token is looked at: a page learns nothing from trying some.
        assert_eq!(server.ask(&Ask::message("x", &list()).with("Host", "evil.example")).await.status, 403);
        let preflight = Ask { method: "OPTIONS", body: String::new(), ..ask().with("Origin", "https://evil.example") };
        assert_eq!(server.ask(&preflight).await.status, 403);
    }
}

/// The records of a kind that the server has written so far, on standard error.
fn recorded(server: &HttpServer, event: &str) -> Vec<Value> {
    let log = server.log();
    let records =
        log.lines().filter_map(|line| line.strip_prefix("audit: ")).map(|line| serde_json::from_str(line).unwrap());
    records.filter(|record: &Value| record["event"] == event).collect()
}

mod audit {
    use super::*;

    /// As the daemon does: what is in force is known from the log alone.
    #[tokio::test]
    async fn what_is_in_force_is_the_first_record() {
        let server = HttpServer::start_with(&["--allow-scripts", "never", "--execution-budget", "2.5"]).await;
        let first = server.log().lines().find_map(|line| line.strip_prefix("audit: ").map(str::to_owned));
        let first: Value = serde_json::from_str(&first.expect("before anybody is served")).unwrap();
        assert_eq!((&first["event"], &first["principal"]), (&json!("configured"), &json!("process")));
        let what = &first["what"];
        assert_eq!((&what["scripts"]["allow"], &what["limits"]["execution_percent"]), (&json!("never"), &json!(2.5)));
        assert!(!server.log().contains(ALICE), "no secret is recorded");
    }

    /// The first that come, and no more than them: what is written is read by another task.
    async fn records(server: &HttpServer, event: &str, count: usize) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let found = recorded(server, event);
            if found.len() >= count {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{event}: {found:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn refusals_are_recorded_and_floods_of_them_counted() {
        let mut server = HttpServer::start().await;
        let none = Ask { headers: vec![], ..Ask::message(ALICE, &list()) };
        let wrong = Ask::message("guess-0123456789abcdef0123456789abcdef", &list());
        let elsewhere = Ask::message(ALICE, &list()).with("Origin", "https://evil.example");
        let rebound = Ask::message(ALICE, &list()).with("Host", "evil.example");
        for _ in 0..53 {
            for (ask, status) in [(&none, 401), (&wrong, 401), (&elsewhere, 403), (&rebound, 403)] {
                assert_eq!(server.ask(ask).await.status, status);
            }
        }
        let found = records(&server, "turned_away", 4).await;
        let outcomes: Vec<&str> = found.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["no_token", "token", "origin", "host"], "one of each: {found:?}");
        for line in &found {
            assert_eq!(
                (&line["peer"], &line["principal"], &line["transport"]),
                (&json!("127.0.0.1"), &json!("none"), &json!("http"))
            );
        }
        assert!(!server.log().contains("guess-0123"), "no token is recorded");
        // SAFETY: kill takes numbers only; the process is our child and has not been waited for.
        assert_eq!(unsafe { libc::kill(server.pid() as i32, libc::SIGTERM) }, 0);
        server.child.wait().await.unwrap();
        let told = records(&server, "left_out", 1).await;
        assert_eq!(told[0]["left_out"], 4 * 52, "{told:?}");
        assert_eq!(
            (&told[0]["what"]["most"][0]["caller"], &told[0]["what"]["most"][0]["count"]),
            (&json!("127.0.0.1"), &json!(52))
        );
    }

    #[tokio::test]
    async fn reloads_are_recorded_with_what_has_changed() {
        let server = HttpServer::start().await;
        write_private(&server.tokens(), &format!("bob {BOB}\n"));
        assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 200);
        write_private(&server.tokens(), "bob and more than a line has\n");
        assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 401);
        assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 401);
        let found = records(&server, "reloaded", 2).await;
        assert_eq!(found.len(), 2, "{found:?}");
        let now = &found[0]["what"]["now"];
        assert_eq!(
            (&found[0]["outcome"], &now["tokens"], &now["withdrawn"]),
            (&json!("completed"), &json!(1), &json!(2))
        );
        assert_eq!((&found[1]["outcome"], &found[1]["what"]["now"]["tokens"]), (&json!("failed"), &json!(0)));
        assert!(found[1]["reason"].as_str().unwrap().contains("line 1"), "{found:?}");
        assert_eq!(found[0]["what"]["file"], text(&server.tokens()));
    }

    #[tokio::test]
    async fn asking_for_what_belongs_to_another_is_recorded_and_what_bounds_a_run() {
        let server = HttpServer::start().await;
        let start = json!({ "probe": "file_opens", "seconds": 30, "background": true, "filter": { "pid": 1 } });
        let id = server.tool(ALICE, "run_probe", start).await.success()["execution_id"].clone();
        for tool in ["stop_execution", "get_result", "get_result"] {
            assert!(server.tool(BOB, tool, json!({ "execution_id": id })).await.is_error);
        }
        assert!(server.tool(BOB, "get_result", json!({ "execution_id": "exec_0000000000000000" })).await.is_error);
        let found = records(&server, "refused", 1).await;
        assert_eq!(found.len(), 1, "the others within the minute are counted: {found:?}");
        assert_eq!((&found[0]["principal"], &found[0]["execution_id"]), (&json!("token:bob"), &id));
        assert_eq!(
            (&found[0]["outcome"], &found[0]["reason"]),
            (&json!("of_another"), &json!("it belongs to token:alice"))
        );
        assert_eq!(found[0]["what"]["tool"], "stop_execution");
        let starts = records(&server, "start", 1).await;
        let limits = &starts[0]["limits"];
        assert_eq!(
            (&limits["seconds"], &limits["events_bytes"], &limits["cpu_percent"]),
            (&json!(30.0), &json!(8 << 20), &json!(5.0))
        );
        assert_eq!(starts[0]["what"]["filter"], json!({ "pid": 1 }), "{starts:?}");
    }

    #[tokio::test]
    async fn what_bounds_a_script_is_recorded() {
        let server = HttpServer::start().await;
        let script = json!({ "program": "BEGIN { printf(\"x\"); exit(); }", "timeout": 7 });
        server.tool(ALICE, "exec_program", script).await.success();
        let starts = records(&server, "start", 1).await;
        let limits = &starts[0]["limits"];
        assert_eq!(
            (&limits["seconds"], &limits["lines"], &limits["output_bytes"]),
            (&json!(7.0), &json!(10_000), &json!(2 << 20))
        );
        assert_eq!((&limits["memory_bytes"], &limits["map_keys"]), (&json!(768 << 20), &json!(4096)), "{limits}");
    }
}

mod hostile {
    use super::*;

    #[tokio::test]
    async fn bodies_are_bounded_whatever_they_say_of_themselves() {
        let server = HttpServer::start().await;
        let mut large = Ask::message(ALICE, &list());
        large.body = format!("{{\"a\":\"{}\"}}", "x".repeat(5 << 20));
        assert_eq!(server.ask(&large).await.status, 413);
        let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
        let chunked = Ask { body: chunk.repeat(6) + "0\r\n\r\n", ..large.with("Transfer-Encoding", "chunked") };
        assert_eq!(server.ask(&chunked).await.status, 413);
        let begun = Instant::now();
        let promised = Ask::message(ALICE, &list()).with("Content-Length", "5368709120");
        assert_eq!(server.ask(&promised).await.status, 413);
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "what is too large is not waited for: {:?}",
            begun.elapsed()
        );
        let headers = Ask::message(ALICE, &list()).with("X-Long", "x".repeat(64 << 10));
        assert_eq!(server.ask(&headers).await.status, 431);
        let many = (0..100).fold(Ask::message(ALICE, &list()), |mut ask, number| {
            ask.headers.push(("X-Many", number.to_string()));
            ask
        });
        assert_eq!(server.ask(&many).await.status, 431);
        // Two lengths, or a length and chunks, are how requests are smuggled past a proxy.
        let mut smuggled = Ask::message(ALICE, &list());
        smuggled.headers.extend([("Content-Length", "5".to_owned()), ("Content-Length", "6".to_owned())]);
        assert_eq!(server.ask(&smuggled).await.status, 400);
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200);
    }

    #[tokio::test]
    async fn whoever_dribbles_is_cut_off_and_others_are_served_meanwhile() {
        let server = HttpServer::start().await;
        let begun = Instant::now();
        let mut dribbling = Vec::new();
        for _ in 0..200 {
            let mut stream = server.connect().await;
            stream.write_all(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-A: ").await.unwrap();
            dribbling.push(stream);
        }
        let mut slow = server.connect().await;
        let body = Ask::message(ALICE, &list()).with("Content-Length", "5000").bytes("localhost");
        slow.write_all(&body).await.unwrap();
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200);
        for mut stream in dribbling {
            // A letter a second keeps nobody's place.
            let _ = stream.write_all(b"a").await;
            read_all(stream).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        assert_eq!(read_all(slow).await.status, 408);
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200);
    }

    /// More connections than are let in at once, all of them silent or dribbling: whoever shows a token gets in at once and stays in.
    #[tokio::test]
    async fn connections_without_a_token_keep_nobody_waiting() {
        allow_files(4096);
        let server = HttpServer::start().await;
        let mut admitted = server.connect().await;
        let keeps = String::from_utf8(Ask::message(ALICE, &list()).bytes("localhost")).unwrap();
        let keeps = keeps.replace("Connection: close", "Connection: keep-alive");
        admitted.write_all(keeps.as_bytes()).await.unwrap();
        admitted.readable().await.unwrap();
        let mut idle = Vec::new();
        for number in 0..1400 {
            let mut stream = server.connect().await;
            if number % 2 == 0 {
                stream.write_all(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-A: ").await.unwrap();
            }
            idle.push(stream);
        }
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(server.ask(&Ask::message(BOB, &list())).await.status, 200);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
        admitted.write_all(&Ask::message(ALICE, &list()).bytes("localhost")).await.unwrap();
        let mut answers = Vec::new();
        timeout(Duration::from_secs(20), admitted.read_to_end(&mut answers)).await.unwrap().unwrap();
        let answers = String::from_utf8_lossy(&answers).matches("HTTP/1.1 200").count();
        assert_eq!(answers, 2, "a connection that has shown a token is not shed");
        let shed = recorded(&server, "turned_away");
        assert!(shed.iter().any(|line| line["outcome"] == "connections" && line["peer"] == "127.0.0.1"), "{shed:?}");
    }

    fn allow_files(count: u64) {
        let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
        // SAFETY: the limit outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    }

    #[tokio::test]
    async fn five_hundred_clients_are_all_answered() {
        let server = Arc::new(HttpServer::start().await);
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..500 {
            let (server, token) = (Arc::clone(&server), if number % 2 == 0 { ALICE } else { BOB });
            clients.spawn(async move {
                if number % 4 < 2 {
                    let mut session = Session::open(&server, token).await;
                    session.tool(&server, "list_executions", json!({})).await.success();
                } else {
                    server.tool(token, "list_executions", json!({})).await.success();
                }
                if number % 10 == 0 {
                    let run = json!({ "probe": "syscall_counts", "seconds": 0.1 });
                    let answer = server.tool(token, "run_probe", run).await;
                    assert!(!answer.is_error || answer.structured["category"] == "busy", "{}", answer.text);
                }
            });
        }
        let mut answered = 0;
        while let Some(client) = clients.join_next().await {
            client.unwrap();
            answered += 1;
        }
        assert_eq!(answered, 500);
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200);
    }

    #[tokio::test]
    async fn sessions_are_bounded_and_one_principal_does_not_use_up_anothers() {
        let server = Arc::new(HttpServer::start().await);
        let mut refused = None;
        for _ in 0..520 {
            if let Err(heard) = Session::try_open(&server, ALICE).await {
                refused = Some(heard);
                break;
            }
        }
        assert_eq!(refused.expect("sessions without bound").status, 503);
        Session::open(&server, BOB).await;
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200, "without a session there is place");
    }
}

mod gone {
    use super::*;

    async fn until_detached(server: &HttpServer, most: Duration) {
        let begun = Instant::now();
        while !programs_held(server.pid()).is_empty() {
            assert!(begun.elapsed() < most, "still attached after {most:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test]
    async fn a_client_that_dies_leaves_nothing_attached() {
        let server = HttpServer::start().await;
        let run = json!({ "probe": "file_opens", "seconds": 45 });
        let params = json!({ "name": "run_probe", "arguments": run });
        let mut stream = server.connect().await;
        stream.write_all(&Ask::message(ALICE, &stateless("tools/call", params)).bytes("localhost")).await.unwrap();
        let programs = attached_by(server.pid()).await;
        drop(stream);
        until_detached(&server, Duration::from_secs(5)).await;
        assert_eq!(left_over(&programs).await, [0; 0]);

        let mut session = Session::open(&server, ALICE).await;
        let mut stream = server.connect().await;
        stream.write_all(&session.call("run_probe", run).bytes("localhost")).await.unwrap();
        let programs = attached_by(server.pid()).await;
        drop(stream);
        until_detached(&server, Duration::from_secs(20)).await;
        assert_eq!(left_over(&programs).await, [0; 0]);
    }

    #[tokio::test]
    async fn the_server_keeps_what_tracing_needs_and_can_gain_nothing() {
        let server = HttpServer::start().await;
        let run = server.tool(ALICE, "run_probe", json!({ "probe": "syscall_counts", "seconds": 0.3 })).await;
        assert!(!run.is_error, "{}", run.text);
        assert_has_shed(server.pid());
    }

    #[tokio::test]
    async fn the_server_ends_in_order() {
        let mut server = HttpServer::start().await;
        let start = json!({ "probe": "file_opens", "seconds": 300, "background": true });
        assert!(!server.tool(ALICE, "run_probe", start).await.is_error);
        let programs = attached_by(server.pid()).await;
        // SAFETY: kill takes numbers only; the process is our child and has not been waited for.
        assert_eq!(unsafe { libc::kill(server.pid() as i32, libc::SIGTERM) }, 0);
        let ended = timeout(Duration::from_secs(20), server.child.wait()).await.expect("it does not end");
        assert!(ended.unwrap().success());
        assert_eq!(left_over(&programs).await, [0; 0]);
    }
}

mod tls {
    use super::*;

    /// A certificate for localhost, in a folder with its key, and what trusts it.
    fn certificate() -> (tempfile::TempDir, TlsConnector) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cert.pem"), cert.pem()).unwrap();
        write_private(&folder.path().join("key.pem"), &signing_key.serialize_pem());
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (folder, TlsConnector::from(Arc::new(config)))
    }

    #[tokio::test]
    async fn serves_beyond_loopback_and_only_encrypted() {
        let (folder, connector) = certificate();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let url = "https://localhost/mcp";
        let server = HttpServer::start_with(&[
            "--http",
            "0.0.0.0:0",
            "--tls-cert",
            text(&cert),
            "--tls-key",
            text(&key),
            "--http-url",
            url,
        ])
        .await;
        let port = server.address.port();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let heard = exchange(stream, &format!("localhost:{port}"), &Ask::message(ALICE, &list())).await;
        assert_eq!(heard.status, 200, "{heard:?}");
        let plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(exchange(plain, "localhost", &Ask::message(ALICE, &list())).await.status, 0, "no HTTP in the clear");
    }

    #[tokio::test]
    async fn a_key_that_others_may_read_or_that_is_another_is_refused() {
        let (folder, _) = certificate();
        let (other, _) = certificate();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let arguments = |key| ["--http", "0.0.0.0:0", "--tls-cert", text(&cert), "--tls-key", key];
        let token = [("MCPTRACE_HTTP_TOKEN", ALICE)];
        let strange = other.path().join("key.pem");
        assert!(refused(&arguments(text(&strange)), &token).await.1.contains("does not go with its key"));
        assert!(refused(&arguments(text(&cert)), &token).await.1.contains("chmod 600"));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refused(&arguments(text(&key)), &token).await.1.contains("chmod 600"));
    }
}

mod provider_tokens {
    use super::*;

    const ISSUER: &str = "https://id.example";
    const URL: &str = "http://localhost/mcp";

    fn base64(bytes: &[u8]) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..=chunk.len() {
                text.push(char::from(LETTERS[(word >> (18 - 6 * place)) as usize & 63]));
            }
        }
        text
    }

    fn key() -> EcdsaKeyPair {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap()
    }

    fn token(key: &EcdsaKeyPair, subject: &str, audience: &str) -> String {
        let exp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 300;
        let claims = json!({ "iss": ISSUER, "aud": audience, "sub": subject, "exp": exp });
        let header = json!({ "alg": "ES256", "typ": "JWT" });
        let signed = format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64(signature.as_ref()))
    }

    #[tokio::test]
    async fn let_in_and_clients_are_told_where_they_come_from() {
        let (another, key, folder) = (key(), key(), tempfile::tempdir().unwrap());
        let point = key.public_key().as_ref();
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": base64(&point[1..33]), "y": base64(&point[33..]) });
        let jwks = folder.path().join("jwks.json");
        std::fs::write(&jwks, json!({ "keys": [jwk] }).to_string()).unwrap();
        let server =
            HttpServer::start_with(&["--http-issuer", ISSUER, "--http-jwks", text(&jwks), "--http-url", URL]).await;
        let heard = server.ask(&Ask::message("x", &list())).await;
        let challenge = heard.header("www-authenticate").unwrap();
        let metadata = "http://localhost/.well-known/oauth-protected-resource/mcp";
        assert!(challenge.contains(&format!("resource_metadata=\"{metadata}\"")), "{challenge}");
        let get = Ask {
            method: "GET",
            path: "/.well-known/oauth-protected-resource/mcp",
            headers: vec![],
            body: String::new(),
        };
        let document: Value = serde_json::from_str(&server.ask(&get).await.body).unwrap();
        assert_eq!((&document["resource"], &document["authorization_servers"]), (&json!(URL), &json!([ISSUER])));

        assert_eq!(server.ask(&Ask::message(&token(&key, "carol", URL), &list())).await.status, 200);
        assert_eq!(server.ask(&Ask::message(ALICE, &list())).await.status, 200, "static tokens hold too");
        for wrong in [token(&key, "carol", "https://elsewhere/mcp"), token(&another, "carol", URL)] {
            assert_eq!(server.ask(&Ask::message(&wrong, &list())).await.status, 401);
        }
        // Named like a holder of a static token, and somebody else all the same.
        let start = json!({ "probe": "syscall_counts", "seconds": 30, "background": true });
        let id = server.tool(ALICE, "run_probe", start).await.success()["execution_id"].clone();
        let answer: Answer = server.tool(&token(&key, "alice", URL), "get_result", json!({ "execution_id": id })).await;
        assert!(answer.is_error);
    }
}
