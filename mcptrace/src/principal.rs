//! Who calls. The transport knows it: the peer's user id of a unix socket, the name of a token. A client cannot say it.

use std::{fmt, fs, str::FromStr};

use serde::Serialize;

use crate::text::untrusted;

/// How a call came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The command line.
    #[default]
    Cli,
    /// The standard streams of this process.
    Stdio,
    /// The unix socket.
    Unix,
    /// Streamable HTTP.
    Http,
}

impl Via {
    /// As logs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Stdio => "stdio",
            Self::Unix => "unix",
            Self::Http => "http",
        }
    }
}

/// Whom an execution belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Who {
    /// Whoever started this process.
    #[default]
    Process,
    /// A user of this host.
    User(u32),
    /// Whoever holds the token of this name.
    Token(String),
}

impl Who {
    /// Whether executions of everybody are shown: to root, and to whoever started this process.
    fn sees_all(&self) -> bool {
        matches!(self, Self::Process | Self::User(0))
    }
}

impl FromStr for Who {
    type Err = ();

    /// What [`Who`] is displayed as.
    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            None if text == "process" => Ok(Self::Process),
            Some(("uid", uid)) => uid.parse().map(Self::User).map_err(drop),
            Some(("token", name)) => Ok(Self::Token(name.to_owned())),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => formatter.write_str("process"),
            Self::User(uid) => write!(formatter, "uid:{uid}"),
            Self::Token(name) => write!(formatter, "token:{name}"),
        }
    }
}

/// Who calls, and how the call came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// Whom what it starts belongs to.
    pub who: Who,
    /// The transport.
    pub via: Via,
    /// The user's name, for readers of logs; empty if there is none.
    pub name: String,
}

/// The longest name of a user or token, in bytes.
const NAME_BYTES: usize = 64;

impl Principal {
    /// Whoever started this process at a shell.
    pub fn cli() -> Self {
        Self::default()
    }

    /// Whoever started this process and holds its standard streams.
    pub fn stdio() -> Self {
        Self { via: Via::Stdio, ..Self::default() }
    }

    /// A user at the other end of a unix socket.
    pub fn user(uid: u32) -> Self {
        // Users of other databases have no name here; the number is what counts.
        let known = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self { who: Who::User(uid), via: Via::Unix, name: user_name(&known, uid).unwrap_or_default() }
    }

    /// Whoever shows a token over HTTP. The name is the token's, never the token.
    pub fn token(name: &str) -> Self {
        Self { who: Who::Token(name.to_owned()), via: Via::Http, name: untrusted(name.as_bytes(), NAME_BYTES) }
    }

    /// Whether it may see, read and stop what belongs to `owner`.
    pub fn sees(&self, owner: &Self) -> bool {
        self.who.sees_all() || self.who == owner.who
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::User(uid) if !self.name.is_empty() => write!(formatter, "uid {uid} ({})", self.name),
            Who::User(uid) => write!(formatter, "uid {uid}"),
            Who::Token(_) => write!(formatter, "token {}", self.name),
            Who::Process => formatter.write_str("this process"),
        }
    }
}

/// A principal in a connection. What it starts ends with the connection, where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    /// The connection, as [`crate::executions::Executions::connect`] numbers it.
    pub connection: Option<u64>,
}

impl From<Principal> for Caller {
    fn from(principal: Principal) -> Self {
        Self { principal, connection: None }
    }
}

/// The name of a user id in the text of a passwd file (passwd(5)).
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let of_uid = |line: &&str| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid);
    let name = passwd.lines().find(of_uid)?.split(':').next()?;
    Some(untrusted(name.as_bytes(), NAME_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> Principal {
        Principal { who: Who::User(uid), via: Via::Unix, name: String::new() }
    }

    #[test]
    fn each_sees_its_own_and_root_and_the_process_see_all() {
        let (alice, bob, token) = (user(1000), user(1001), Principal::token("ci"));
        for one in [&alice, &bob, &token] {
            assert!(one.sees(one) && user(0).sees(one) && Principal::stdio().sees(one) && Principal::cli().sees(one));
            assert!(!one.sees(&user(0)) && !one.sees(&Principal::stdio()));
        }
        assert!(!alice.sees(&bob) && !alice.sees(&token) && !token.sees(&alice));
        assert!(!Principal::token("ci2").sees(&token));
    }

    #[test]
    fn who_is_read_as_it_is_written() {
        for who in [Who::Process, Who::User(0), Who::User(1000), Who::Token("uid:0".into()), Who::Token(String::new())]
        {
            assert_eq!(who.to_string().parse(), Ok(who));
        }
        for none in ["", "uid:", "uid:-1", "root", "process:1"] {
            assert_eq!(none.parse::<Who>(), Err(()), "{none}");
        }
    }

    #[test]
    fn a_token_cannot_be_named_like_somebody_else() {
        for name in ["process", "uid:0", "0", ""] {
            assert!(
                !Principal::token(name).sees(&user(0)) && !Principal::token(name).sees(&Principal::cli()),
                "{name}"
            );
        }
        let long = |end| Principal::token(&("x\n\u{202e}".repeat(100) + end));
        assert!(long("").name.len() <= NAME_BYTES + 8 && !long("").name.contains('\n'), "{}", long(""));
        assert!(!long("a").sees(&long("b")), "what is cut off for readers counts");
    }

    #[test]
    fn users_have_the_names_of_the_host() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nodd\nalice:x:1000:1000::/:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("alice"));
        assert_eq!(user_name(passwd, 7), None);
        assert_eq!(Principal::user(0).to_string(), "uid 0 (root)");
        assert_eq!(user(7).to_string(), "uid 7");
    }
}
