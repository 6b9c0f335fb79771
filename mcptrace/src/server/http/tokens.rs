//! Tokens that the operator hands out: a name, a secret, and a day on which it ends.
//!
//! Of a secret only the SHA-256 is kept. What a client shows is hashed too and compared with all of them in constant time, so how long
//! a refusal takes tells nothing about any token.

use std::{path::Path, time::SystemTime};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::guarded::private;

/// The shortest secret, in bytes: what 128 random bits take in hexadecimal.
const SHORTEST: usize = 32;
/// How many tokens there may be.
const MOST: usize = 256;
/// Names are for logs and lists.
const NAME_BYTES: usize = 64;
/// How a file names a secret that it does not contain.
const HASHED: &str = "sha256:";

/// How to make a token, for errors.
pub(super) const HOW_TO: &str =
    "make one: (umask 077; echo \"me $(openssl rand -hex 32)\" > tokens), then --http-tokens tokens";

/// The tokens that are valid.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Clone, PartialEq, Eq)]
struct Token {
    name: String,
    digest: [u8; 32],
    expires: Option<SystemTime>,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Nobody has handed it out.
    Unknown,
    /// Its time is over.
    Expired,
}

impl Tokens {
    /// The tokens of a file: `NAME SECRET [EXPIRY]` a line, `#` before remarks.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let tokens = Self::parse(&private(path).map_err(|error| error.to_string())?)?;
        if tokens.0.is_empty() { Err(format!("it has no tokens; {HOW_TO}")) } else { Ok(tokens) }
    }

    /// The one token of the environment.
    pub(super) fn single(name: &str, secret: &str) -> Result<Self, String> {
        Ok(Self(vec![Token { name: name.to_owned(), digest: digest_of(secret)?, expires: None }]))
    }

    /// How it differs from what was valid before, in numbers of tokens.
    pub(super) fn compared(&self, before: &Self) -> Value {
        let lacking = |of: &Self, among: &Self| {
            let is_there = |one: &Token| among.0.iter().any(|other| other.name == one.name);
            of.0.iter().filter(|one| !is_there(one)).count()
        };
        let is_other = |one: &&Token| before.0.iter().any(|other| other.name == one.name) && !before.0.contains(one);
        json!({
            "tokens": self.0.len(),
            "tokens_before": before.0.len(),
            "added": lacking(self, before),
            "withdrawn": lacking(before, self),
            "changed": self.0.iter().filter(is_other).count(),
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let one = |(number, line)| Token::parse(line).map_err(|error| format!("line {number}: {error}"));
        let tokens: Vec<_> = lines.map(one).collect::<Result<_, _>>()?;
        if tokens.len() > MOST {
            return Err(format!("{} tokens; at most {MOST}", tokens.len()));
        }
        // Two people with one secret would be one principal, without anybody knowing.
        let is_shared = |at: &usize| tokens[..*at].iter().any(|other| other.digest == tokens[*at].digest);
        match (1..tokens.len()).find(is_shared) {
            Some(at) => Err(format!("{} has the secret of another line: each needs its own", tokens[at].name)),
            None => Ok(Self(tokens)),
        }
    }

    /// The name of whoever may show this secret now.
    pub(super) fn find(&self, shown: &[u8], now: SystemTime) -> Result<&str, Refused> {
        let digest = Sha256::digest(shown).into();
        let found = self.matching(&digest, |one, other| one.ct_eq(other).into());
        let token = found.ok_or(Refused::Unknown)?;
        if token.expires.is_some_and(|expires| now >= expires) { Err(Refused::Expired) } else { Ok(&token.name) }
    }

    /// The token with this digest. All are compared, also after one has been found.
    fn matching(&self, digest: &[u8; 32], mut same: impl FnMut(&[u8; 32], &[u8; 32]) -> bool) -> Option<&Token> {
        self.0.iter().fold(None, |found, token| if same(&token.digest, digest) { Some(token) } else { found })
    }
}

impl Token {
    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(name), Some(secret)) = (words.next(), words.next()) else {
            return Err("a name, a secret and, if it ends, when: 2027-01-31T00:00:00Z".to_owned());
        };
        let expires = words.next().map(moment).transpose()?;
        if words.next().is_some() {
            return Err("there is more than a name, a secret and a time".to_owned());
        }
        Ok(Self { name: valid_name(name)?, digest: digest_of(secret)?, expires })
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.0.iter().map(|token| &token.name)).finish()
    }
}

fn valid_name(name: &str) -> Result<String, String> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    let valid = name.len() <= NAME_BYTES && name.bytes().all(letter);
    if valid { Ok(name.to_owned()) } else { Err(format!("a name has at most {NAME_BYTES} of a-z A-Z 0-9 . _ @ -")) }
}

/// The digest of a secret, or the one that is given in its place. Errors never quote it.
fn digest_of(secret: &str) -> Result<[u8; 32], String> {
    if let Some(hex) = secret.strip_prefix(HASHED) {
        return from_hex(hex).ok_or_else(|| format!("{HASHED} is followed by 64 hexadecimal digits"));
    }
    if secret.len() < SHORTEST || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "a secret has at least {SHORTEST} printable characters and no spaces: openssl rand -hex 32"
        ));
    }
    Ok(Sha256::digest(secret).into())
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn moment(text: &str) -> Result<SystemTime, String> {
    let wrong = |_| "a time is written 2027-01-31T00:00:00Z".to_owned();
    OffsetDateTime::parse(text, &Rfc3339).map(SystemTime::from).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const ALICE: &str = "0123456789abcdef0123456789abcdef";
    const BOB: &str = "fedcba9876543210fedcba9876543210";

    fn tokens() -> Tokens {
        let hash = format!("{:x}", Sha256::digest(BOB));
        Tokens::parse(&format!("# all\nalice {ALICE} 2001-09-09T01:46:40Z\n\n bob sha256:{hash}\n")).unwrap()
    }

    #[test]
    fn a_secret_has_a_name_until_it_expires() {
        let moment = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(tokens().find(ALICE.as_bytes(), moment(999_999_999)), Ok("alice"));
        assert_eq!(tokens().find(ALICE.as_bytes(), moment(1_000_000_000)), Err(Refused::Expired));
        assert_eq!(tokens().find(BOB.as_bytes(), moment(4_000_000_000)), Ok("bob"));
    }

    #[test]
    fn what_has_changed_is_told_in_numbers() {
        let now = Tokens::parse(&format!("alice {BOB}\ncarol {ALICE}\n")).unwrap();
        let expected = json!({ "tokens": 2, "tokens_before": 2, "added": 1, "withdrawn": 1, "changed": 1 });
        assert_eq!(now.compared(&tokens()), expected);
        assert_eq!(Tokens::default().compared(&tokens())["withdrawn"], 2);
    }

    #[test]
    fn nothing_but_the_whole_secret_will_do() {
        let sha = format!("{:x}", Sha256::digest(BOB));
        for wrong in
            ["", "alice", &ALICE[1..], &ALICE.to_uppercase(), &format!("{ALICE} "), &sha, &format!("sha256:{sha}")]
        {
            assert_eq!(tokens().find(wrong.as_bytes(), UNIX_EPOCH), Err(Refused::Unknown), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_without_the_secret() {
        for (line, want) in [
            ("alice", "a name, a secret"),
            ("alice short", "at least 32"),
            (&format!("al/ice {ALICE}"), "a name has"),
            (&format!("alice {ALICE} tomorrow"), "2027-01-31"),
            (&format!("alice {ALICE} 2027-01-31T00:00:00Z more"), "there is more"),
            ("alice sha256:12", "64 hexadecimal"),
        ] {
            let error = Tokens::parse(&format!("\n{line}")).unwrap_err();
            assert!(error.starts_with("line 2: ") && error.contains(want), "{error}");
            assert!(!error.contains(ALICE) && !error.contains("short"), "{error}");
        }
        assert!(!format!("{:?}", tokens()).contains(ALICE));
    }

    #[test]
    fn each_line_has_a_secret_of_its_own_and_a_name_may_have_several() {
        let both = Tokens::parse(&format!("alice {ALICE} 2001-09-09T01:46:40Z\nalice {BOB}\n")).unwrap();
        assert_eq!(both.find(BOB.as_bytes(), SystemTime::now()), Ok("alice"), "the one that follows");
        assert_eq!(both.find(ALICE.as_bytes(), SystemTime::now()), Err(Refused::Expired));
        let hash = format!("{:x}", Sha256::digest(ALICE));
        for shared in [ALICE, &format!("sha256:{hash}")] {
            let error = Tokens::parse(&format!("alice {ALICE}\nbob {shared}\n")).unwrap_err();
            assert!(error.starts_with("bob has the secret of another line") && !error.contains(ALICE), "{error}");
        }
    }

    /// How long a look-up takes must not tell whose token a guess is near to: every digest is compared, whichever it is. That one comparison
    /// takes the same time whatever it finds is `subtle`'s promise, and digests of guesses that differ in one character have nothing in common.
    #[test]
    fn every_token_is_compared_whatever_is_shown() {
        let tokens = tokens();
        let near = format!("{}X", &ALICE[..31]);
        for shown in [ALICE, BOB, near.as_str(), "Y"] {
            let mut compared = 0;
            let digest: [u8; 32] = Sha256::digest(shown).into();
            let found = tokens.matching(&digest, |one, other| {
                compared += 1;
                one == other
            });
            assert_eq!((compared, found.is_some()), (tokens.0.len(), [ALICE, BOB].contains(&shown)), "{shown}");
        }
    }
}
