//! What server and launcher say to each other: a packet each, of a letter and what belongs to it. Pure.
//!
//! The launcher trusts nothing of a request. There is no length in it and no number of descriptors: what a packet holds is what it says,
//! and one that is too long is refused unread.

use serde::{Deserialize, Serialize};

use super::super::{
    PROGRAM_BYTES,
    error::{Category, ScriptError},
    sandbox::Part,
    task::Task,
};

/// The longest request, in bytes.
pub(super) const REQUEST_BYTES: usize = 9 + PROGRAM_BYTES;
/// The longest answer.
pub(super) const ANSWER_BYTES: usize = 64 << 10;
/// The longest message of an error.
const ERROR_BYTES: usize = 8 << 10;

/// What the server asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Which parts of the box work here.
    Parts,
    /// One run of bpftrace.
    Start(Task),
}

/// What the launcher answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Parts by name, and why one does not work.
    Parts(Vec<(String, Option<String>)>),
    /// It runs, as this process. With it come its output, its errors, and the socket of [`Order`]s.
    Started(u32),
    /// It does not.
    Refused(Refusal),
}

/// Why the launcher did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    /// What kind of reason.
    pub(super) why: Why,
    /// The reason.
    pub(super) message: String,
    /// What to do about it.
    pub(super) remedy: Option<String>,
}

/// The kind of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Why {
    /// There is no bpftrace.
    Missing,
    /// What was asked for is not allowed, or is no request.
    Request,
    /// The policy does not let the program pass.
    Policy,
    /// The box could not be built.
    Box,
}

/// What the server wants of a script that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// SIGINT: print the maps and end.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGKILL, to all that is in its box.
    Kill,
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (letter, text) = match self {
            Self::Parts => (b'p', ""),
            Self::Start(Task::Version) => (b'v', ""),
            Self::Start(Task::Info) => (b'i', ""),
            Self::Start(Task::Compile(program)) => (b'c', program.as_str()),
            Self::Start(Task::List(pattern)) => (b'l', pattern.as_str()),
            Self::Start(Task::Run { seconds, program }) => {
                return [b"r", &seconds.to_le_bytes()[..], program.as_bytes()].concat();
            }
        };
        [&[letter], text.as_bytes()].concat()
    }

    /// `None`: it is no request.
    pub(super) fn decode(packet: &[u8]) -> Option<Self> {
        let (letter, rest) = packet.split_first().filter(|_| packet.len() <= REQUEST_BYTES)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        match (letter, rest) {
            (b'p', []) => Some(Self::Parts),
            (b'v', []) => Some(Self::Start(Task::Version)),
            (b'i', []) => Some(Self::Start(Task::Info)),
            (b'c', program) => Some(Self::Start(Task::Compile(text(program)?))),
            (b'l', pattern) => Some(Self::Start(Task::List(text(pattern)?))),
            (b'r', rest) => {
                let (seconds, program) = rest.split_first_chunk()?;
                Some(Self::Start(Task::Run { seconds: u64::from_le_bytes(*seconds), program: text(program)? }))
            }
            _ => None,
        }
    }
}

impl Answer {
    pub(super) fn parts(parts: &[Part]) -> Self {
        Self::Parts(parts.iter().map(|part| (part.name.to_owned(), part.reason.clone())).collect())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Parts(parts) => [b"p", &json(parts)[..]].concat(),
            Self::Started(pid) => [b"s", &pid.to_le_bytes()[..]].concat(),
            Self::Refused(refusal) => [b"n", &json(refusal)[..]].concat(),
        }
    }

    pub(super) fn decode(packet: &[u8]) -> Option<Self> {
        let (letter, rest) = packet.split_first()?;
        match letter {
            b'p' => serde_json::from_slice(rest).ok().map(Self::Parts),
            b's' => Some(Self::Started(u32::from_le_bytes(rest.try_into().ok()?))),
            b'n' => serde_json::from_slice(rest).ok().map(Self::Refused),
            _ => None,
        }
    }
}

/// Reads a packet as launcher and server do. For tests: none may be a panic, and a request is what it says, whole.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check_packet(packet: &[u8]) {
    if let Some(request) = Request::decode(packet) {
        assert_eq!(request.encode(), packet);
        if let Request::Start(task) = request {
            let _ = task.check();
            assert!(task.arguments(false).len() <= 7, "{task:?}");
        }
    }
    let _ = (Answer::decode(packet), Order::decode(packet));
}

/// What is serialized here has string keys and no other way to fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

impl Refusal {
    pub(super) fn new(why: Why, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(ERROR_BYTES));
        Self { why, message, remedy: None }
    }

    pub(super) fn of(error: &ScriptError) -> Self {
        let why = match error.category {
            Category::Missing => Why::Missing,
            Category::Policy | Category::Syntax => Why::Policy,
            Category::Permission => Why::Box,
            _ => Why::Request,
        };
        Self { remedy: error.remedy.clone(), ..Self::new(why, error.message.clone()) }
    }

    pub(super) fn into_error(self) -> ScriptError {
        let category = match self.why {
            Why::Missing => Category::Missing,
            Why::Request => Category::BadInput,
            Why::Policy => Category::Policy,
            Why::Box => Category::Permission,
        };
        ScriptError { remedy: self.remedy, ..ScriptError::new(category, self.message) }
    }
}

impl Order {
    pub(super) fn encode(self) -> [u8; 1] {
        [match self {
            Self::Interrupt => b'i',
            Self::Terminate => b't',
            Self::Kill => b'k',
        }]
    }

    /// `None`: it is no order.
    pub(super) fn decode(packet: &[u8]) -> Option<Self> {
        match packet {
            b"i" => Some(Self::Interrupt),
            b"t" => Some(Self::Terminate),
            b"k" => Some(Self::Kill),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_come_back_as_they_were() {
        let run = |program: String| Request::Start(Task::Run { seconds: u64::MAX, program });
        for request in [
            Request::Parts,
            Request::Start(Task::Version),
            Request::Start(Task::Info),
            Request::Start(Task::Compile("BEGIN { exit(); } // ü".into())),
            Request::Start(Task::List("tracepoint:*".into())),
            run("x".repeat(PROGRAM_BYTES)),
            run(String::new()),
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        let refusal = Refusal { remedy: Some("do".into()), ..Refusal::new(Why::Missing, "no\n\"bpftrace\"") };
        for answer in [
            Answer::Parts(vec![("a".into(), None), ("b".into(), Some("why".into()))]),
            Answer::Started(4711),
            Answer::Refused(refusal),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
        for order in [Order::Interrupt, Order::Terminate, Order::Kill] {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
    }

    #[test]
    fn what_is_no_request_is_none() {
        let too_long = [&b"c"[..], &vec![b'x'; REQUEST_BYTES]].concat();
        for packet in [
            &b""[..],
            b"x",
            b"p ",
            b"v1",
            b"i\0",
            b"P",
            b"c\xff",
            b"l\xc3",
            b"r",
            b"r1234567",
            b"r12345678\xff",
            &too_long,
        ] {
            assert_eq!(Request::decode(packet), None, "{packet:?}");
        }
        for packet in [&b""[..], b"x", b"kk", b"K", b"k\0"] {
            assert_eq!(Order::decode(packet), None, "{packet:?}");
        }
        assert_eq!(Answer::decode(b"s123"), None);
    }
}
