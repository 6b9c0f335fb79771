//! Who may come in: Host and Origin first, then the token.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use axum::http::{HeaderMap, Uri, header, uri::Authority};

use super::{
    jwt::{Issuer, Keys},
    tokens::{Refused, Tokens},
    watched::Watched,
};

/// Names under which clients reach this server. Anything else in `Host` is a page in somebody's browser whose name has been made to
/// point here.
#[derive(Clone, Debug)]
pub(super) struct Names {
    bound: IpAddr,
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// A request that is not meant for this server, or not for whoever sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Misdirected {
    /// One word for the audit log.
    pub(super) kind: &'static str,
    /// For whoever sent it.
    pub(super) why: &'static str,
}

impl Names {
    /// Those of an address, of the public URL and of pages that may call.
    pub(super) fn new(address: SocketAddr, hosts: Vec<String>, origins: Vec<String>) -> Self {
        Self { bound: address.ip(), hosts, origins }
    }

    /// Whether a request names this server and, if it comes from a page, one that may call.
    pub(super) fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Misdirected> {
        let host = |why| Misdirected { kind: "host", why };
        let mut named = headers.get_all(header::HOST).iter();
        let name = named.next().and_then(|name| name.to_str().ok());
        if named.next().is_some() {
            return Err(host("more than one Host"));
        }
        let name = uri.authority().map(Authority::as_str).or(name).ok_or(host("no Host that can be read"))?;
        if !self.is_ours(name) {
            return Err(host("this server has no such name: --http-url tells it its own"));
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        if origins.all(|origin| origin.to_str().is_ok_and(|origin| self.may_call(origin))) {
            Ok(())
        } else {
            Err(Misdirected { kind: "origin", why: "pages of this origin may not call: --http-origin lets them" })
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.contains('@') {
            return false;
        }
        // A name can be made to point here, an address cannot.
        match name.parse::<IpAddr>() {
            Ok(address) => address == self.bound || address.is_loopback() || self.bound.is_unspecified(),
            Err(_) => name == "localhost" || self.hosts.contains(&name),
        }
    }

    fn may_call(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == origin) || self.bound.is_loopback() && is_local(origin)
    }
}

/// Whether an origin is a page of this host: that of a developer's tool.
fn is_local(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let plain = !authority.as_str().contains(['@', '/']);
    plain && ["http", "https"].contains(&scheme) && ["localhost", "127.0.0.1", "[::1]"].contains(&authority.host())
}

/// What tokens are checked against.
pub(super) struct Checks {
    /// Tokens of a file or of the environment.
    pub(super) tokens: Option<StaticTokens>,
    /// Keys of an identity provider.
    pub(super) provider: Option<(Issuer, Watched<Keys>)>,
}

/// Tokens that the operator hands out.
pub(super) enum StaticTokens {
    /// Of a file, which may change.
    File(Watched<Tokens>),
    /// Of the environment.
    Fixed(Arc<Tokens>),
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// It shows no token.
    Missing,
    /// The token is not valid, any more or at all.
    Invalid,
}

impl Checks {
    /// The name of whoever sends these headers.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Result<String, Denied> {
        let mut all = headers.get_all(header::AUTHORIZATION).iter();
        let value = all.next().ok_or(Denied::Missing)?;
        let shown = bearer(value.as_bytes()).filter(|_| all.next().is_none()).ok_or(Denied::Invalid)?;
        self.name_of(shown)
    }

    fn name_of(&self, shown: &[u8]) -> Result<String, Denied> {
        if let Some(tokens) = self.tokens.as_ref().map(StaticTokens::get) {
            match tokens.find(shown, SystemTime::now()) {
                Ok(name) => return Ok(name.to_owned()),
                Err(Refused::Expired) => return Err(Denied::Invalid),
                Err(Refused::Unknown) => {}
            }
        }
        let (issuer, keys) = self.provider.as_ref().ok_or(Denied::Invalid)?;
        let shown = std::str::from_utf8(shown).map_err(|_| Denied::Invalid)?;
        let subject = keys.get().check(shown, issuer).map_err(|error| {
            tracing::debug!(%error, "a token is refused");
            Denied::Invalid
        })?;
        // No name of a static token has a colon, so nobody can be named like one.
        Ok(format!("sub:{subject}"))
    }
}

impl StaticTokens {
    fn get(&self) -> Arc<Tokens> {
        match self {
            Self::File(file) => file.get(),
            Self::Fixed(tokens) => Arc::clone(tokens),
        }
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn admitted(names: &Names, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        names.admit(&Uri::from_static("/mcp"), &headers).is_ok()
    }

    fn names(bound: &str) -> Names {
        let hosts = vec!["trace.example".to_owned()];
        Names::new(bound.parse().unwrap(), hosts, vec!["https://app.example".to_owned()])
    }

    #[test]
    fn hosts_are_its_own_names_and_addresses() {
        let local = names("127.0.0.1:80");
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:80", "trace.example:443"] {
            assert!(admitted(&local, host, None), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "a@localhost", "", "[::1"]
        {
            assert!(!admitted(&local, host, None), "{host}");
        }
        assert!(admitted(&names("0.0.0.0:80"), "10.0.0.1", None));
        assert!(!admitted(&names("0.0.0.0:80"), "evil.example", None));
        assert!(
            admitted(&names("10.0.0.1:80"), "10.0.0.1", None) && !admitted(&names("10.0.0.1:80"), "10.0.0.2", None)
        );
    }

    #[test]
    fn two_hosts_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        headers.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert!(names("127.0.0.1:80").admit(&Uri::from_static("/"), &headers).is_err());
        assert!(names("127.0.0.1:80").admit(&Uri::from_static("/"), &HeaderMap::new()).is_err());
    }

    #[test]
    fn origins_are_those_allowed_and_local_pages_of_a_local_server() {
        let local = names("127.0.0.1:80");
        for origin in ["https://app.example", "http://localhost:3000", "http://127.0.0.1:80", "http://[::1]:1"] {
            assert!(admitted(&local, "localhost", Some(origin)), "{origin}");
        }
        for origin in [
            "https://evil.example",
            "null",
            "https://app.example.evil.example",
            "http://localhost.evil.example",
            "http://localhost@evil.example",
            "file://localhost",
            "https://app.example:444",
            "http://app.example",
        ] {
            assert!(!admitted(&local, "localhost", Some(origin)), "{origin}");
        }
        assert!(!admitted(&names("10.0.0.1:80"), "10.0.0.1", Some("http://localhost")));
    }

    #[test]
    fn a_token_stands_in_one_header_only() {
        let tokens = Tokens::single("me", "0123456789abcdef0123456789abcdef").unwrap();
        let checks = Checks { tokens: Some(StaticTokens::Fixed(Arc::new(tokens))), provider: None };
        let identify = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            checks.identify(&headers)
        };
        let good = "Bearer 0123456789abcdef0123456789abcdef";
        assert_eq!(identify(&[good]).as_deref(), Ok("me"));
        assert_eq!(identify(&[&good.replace("Bearer", "bearer")]).as_deref(), Ok("me"));
        assert_eq!(identify(&[]), Err(Denied::Missing));
        for wrong in ["Bearer", "Bearer ", "Basic bWU6", "0123456789abcdef0123456789abcdef", &good[..38]] {
            assert_eq!(identify(&[wrong]), Err(Denied::Invalid), "{wrong}");
        }
        assert_eq!(identify(&[good, good]), Err(Denied::Invalid));
    }
}
