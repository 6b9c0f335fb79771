//! A line from the client as messages, or as the error that answers it. Pure.

use rmcp::{
    ErrorData,
    model::{
        ClientJsonRpcMessage, ClientRequest, ErrorCode, GetMeta as _, ProtocolVersion, RequestId, ServerJsonRpcMessage,
    },
};
use serde_json::Value;

/// How many messages a batch may have.
const MOST_IN_BATCH: usize = 256;

/// A line that cannot be passed on, and the error that answers it. `id` is absent where the line has none that can be read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Malformed {
    pub(super) id: Option<RequestId>,
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

impl Malformed {
    pub(super) fn new(id: Option<RequestId>, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { id, code, message: message.into() }
    }

    /// The message that says so.
    pub(super) fn answer(self) -> ServerJsonRpcMessage {
        ServerJsonRpcMessage::error(ErrorData::new(self.code, self.message, None), self.id)
    }
}

/// A message, an error to answer with, or nothing: a notification that says nothing to this server.
pub(super) type Parsed = Result<Option<ClientJsonRpcMessage>, Malformed>;

/// The messages of a line: one, or those of a batch, which 2025-03-26 and earlier allow.
pub(super) fn parse_line(line: &[u8]) -> Vec<Parsed> {
    let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Vec::new();
    }
    match serde_json::from_slice(line) {
        Err(error) => vec![Err(Malformed::new(None, ErrorCode::PARSE_ERROR, format!("not valid JSON: {error}")))],
        Ok(Value::Array(batch)) => parse_batch(batch),
        Ok(message) => vec![parse(message)],
    }
}

/// What answers a line that is longer than what is read.
pub(super) fn too_long(most_bytes: usize) -> Malformed {
    let message = format!("a message has at most {most_bytes} bytes; this one has more and was not read");
    Malformed::new(None, ErrorCode::INVALID_REQUEST, message)
}

/// What answers a body of several messages, or of none, where there is place for one.
pub(super) fn one_at_a_time() -> Malformed {
    Malformed::new(None, ErrorCode::INVALID_REQUEST, "a request carries exactly one message")
}

/// Whether rmcp will take this request as the start of a conversation. Before one, it takes nothing but requests and ends at the
/// first notification.
pub(super) fn opens(request: &ClientRequest) -> bool {
    match request {
        ClientRequest::InitializeRequest(_) => true,
        ClientRequest::DiscoverRequest(_) | ClientRequest::PingRequest(_) => false,
        other => {
            let meta = other.get_meta();
            let version = meta.protocol_version();
            meta.missing_required_keys(&ProtocolVersion::V_2026_07_28).is_empty()
                && version.is_some_and(|version| ProtocolVersion::KNOWN_VERSIONS.contains(&version))
        }
    }
}

fn parse_batch(batch: Vec<Value>) -> Vec<Parsed> {
    if batch.is_empty() || batch.len() > MOST_IN_BATCH {
        let message = format!("a batch has 1 to {MOST_IN_BATCH} messages, not {}", batch.len());
        return vec![Err(Malformed::new(None, ErrorCode::INVALID_REQUEST, message))];
    }
    batch.into_iter().map(parse).collect()
}

fn parse(message: Value) -> Parsed {
    let id = read_id(&message);
    let refuse = |why: &str| Err(Malformed::new(id.clone(), ErrorCode::INVALID_REQUEST, why));
    let Some(object) = message.as_object() else { return refuse("a message is a JSON object") };
    if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return refuse("`jsonrpc` must be \"2.0\"");
    }
    let is_answer = object.contains_key("result") || object.contains_key("error");
    match object.get("method") {
        None if is_answer => return Ok(serde_json::from_value(message).ok()),
        None => return refuse("`method` is missing"),
        Some(Value::String(_)) => {}
        Some(_) => return refuse("`method` must be a string"),
    }
    let is_request = object.contains_key("id");
    if is_request && id.is_none() {
        return refuse("`id` must be a string or an integer");
    }
    if object.get("params").is_some_and(|params| !params.is_object()) {
        return Err(Malformed::new(id, ErrorCode::INVALID_PARAMS, "`params` must be an object"));
    }
    match serde_json::from_value(message) {
        Ok(message) => Ok(Some(message)),
        Err(error) if is_request => Err(Malformed::new(id, ErrorCode::INVALID_PARAMS, error.to_string())),
        Err(_) => Ok(None),
    }
}

/// Reads a line as the server does; gives how many messages it holds. For tests: none may be a panic, and no refusal long.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_line(line: &[u8]) -> usize {
    let parsed = parse_line(line);
    for malformed in parsed.iter().filter_map(|message| message.as_ref().err()) {
        assert!(malformed.message.len() < 2000, "{}", malformed.message);
    }
    parsed.iter().filter(|message| message.is_ok()).count()
}

fn read_id(message: &Value) -> Option<RequestId> {
    match message.get("id")? {
        Value::String(id) => Some(RequestId::String(id.as_str().into())),
        Value::Number(id) => id.as_i64().map(RequestId::Number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code, id and message of the error that answers a line.
    fn refused(line: &str) -> (i32, Option<RequestId>, String) {
        let mut parsed = parse_line(line.as_bytes());
        assert_eq!(parsed.len(), 1, "{line}");
        let Malformed { id, code, message } = parsed.remove(0).unwrap_err();
        (code.0, id, message)
    }

    const SEVEN: Option<RequestId> = Some(RequestId::Number(7));

    #[test]
    fn what_is_not_json_is_a_parse_error() {
        for line in ["garbage", "{\"jsonrpc\":", "\u{1b}[31mINFO\u{1b}[0m starting", "{'a':1}"] {
            assert_eq!(refused(line).0, -32700, "{line}");
        }
        assert_eq!(parse_line(b"{\"a\":\"\xff\"}")[0].as_ref().unwrap_err().code.0, -32700);
    }

    #[test]
    fn what_is_not_json_rpc_is_answered_with_its_id() {
        assert_eq!(refused("5").0, -32600);
        assert_eq!(refused(r#"{"id":7,"method":"ping"}"#), (-32600, SEVEN, "`jsonrpc` must be \"2.0\"".into()));
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":7}"#), (-32600, SEVEN, "`method` is missing".into()));
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":7,"method":4}"#).1, SEVEN);
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":[1]}"#).0, -32602);
    }

    #[test]
    fn ids_are_strings_or_integers() {
        for id in ["null", "1.5", "true", "[]", "{}"] {
            let (code, id, message) = refused(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#));
            assert_eq!((code, id, message.contains("`id`")), (-32600, None, true));
        }
        assert!(parse_line(br#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#)[0].is_ok());
    }

    #[test]
    fn a_batch_is_its_messages_and_bounded() {
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let parsed = parse_line(format!("[{ping},5,{ping}]").as_bytes());
        assert_eq!(parsed.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(refused("[]").0, -32600);
        assert_eq!(refused(&format!("[{}5]", "5,".repeat(MOST_IN_BATCH))).0, -32600);
    }

    #[test]
    fn empty_lines_and_unreadable_notifications_say_nothing() {
        assert!(parse_line(b"  \r").is_empty());
        let odd = br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}"#;
        assert_eq!(parse_line(odd).len(), 1);
        assert!(parse_line(odd)[0].is_ok());
    }

    #[test]
    fn no_line_is_a_panic_and_no_refusal_is_long() {
        let corpus: &[&[u8]] = &[
            br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"run_probe","arguments":{"probe":"file_opens"},"_meta":{"progressToken":7}}}"#,
            br#"[{"jsonrpc":"2.0","id":"a","method":"ping"},{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}]"#,
            br#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}"#,
            br#"{"jsonrpc":"2.0","id":3,"error":{"code":-1,"message":"x"}}"#,
        ];
        let parsed: usize = crate::fuzz::inputs(corpus, 20_000).map(|line| check_line(&line)).sum();
        assert!(parsed > 50, "most inputs are nonsense, but not all: {parsed}");
    }

    #[test]
    fn only_a_request_that_rmcp_takes_opens_a_conversation() {
        let opened = |line: &str| {
            let message = parse_line(line.as_bytes()).remove(0).unwrap().unwrap();
            opens(&message.into_request().unwrap().0)
        };
        assert!(!opened(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#));
        assert!(!opened(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#));
        assert!(opened(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{
            "io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#
        ));
        assert!(opened(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25",
            "capabilities":{},"clientInfo":{"name":"a","version":"1"}}}"#
        ));
    }
}
