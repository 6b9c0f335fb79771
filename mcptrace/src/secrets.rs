//! Which strings of traced programs are shown. Secrets hide in them, so they are masked until the operator says otherwise.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::OnceLock,
};

use crate::text::untrusted;

/// Kinds of strings that are masked unless the environment variable [`REVEAL`] names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secret {
    /// Arguments of programs.
    Arguments,
    /// Names that are looked up.
    Names,
    /// Texts that programs pass to their USDT probes.
    Texts,
}

/// What the operator reveals: the first answer holds for the life of the process.
static WORDS: OnceLock<String> = OnceLock::new();

/// Sets what is shown, as the configuration says. Has no effect once something was shown or masked.
pub fn reveal(words: &str) {
    let _ = WORDS.set(words.to_owned());
}

/// The environment variable that reveals: words separated by commas, or `all`.
pub const REVEAL: &str = "MCPTRACE_REVEAL";

impl Secret {
    /// The word for it in [`REVEAL`].
    pub fn word(self) -> &'static str {
        match self {
            Self::Arguments => "arguments",
            Self::Names => "names",
            Self::Texts => "texts",
        }
    }

    /// Whether the operator wants it shown.
    pub fn is_revealed(self) -> bool {
        reveals(WORDS.get_or_init(|| std::env::var(REVEAL).unwrap_or_default()), self.word())
    }

    /// What a result says while it is masked.
    pub fn note(self) -> String {
        format!("{0} are masked; the operator reveals them with {REVEAL}={0} in the server's environment", self.word())
    }
}

fn reveals(words: &str, word: &str) -> bool {
    words.split(',').any(|one| one.trim() == word || one.trim() == "all")
}

/// An argument of a program, masked: an option keeps its name, everything else only its length.
pub fn masked(argument: &[u8]) -> String {
    let hidden = |bytes: &[u8]| format!("<{} bytes>", bytes.len());
    let is_name = |bytes: &[u8]| bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    let equals = argument.iter().position(|byte| *byte == b'=');
    let name = &argument[..equals.unwrap_or(argument.len())];
    // A short option may have its value right behind it (-psecret), so only the letter is shown.
    let shown = match name {
        [b'-', b'-', _, ..] if is_name(name) => name.len(),
        [b'-', letter, ..] if letter.is_ascii_alphanumeric() => 2,
        [b'-'] => 1,
        _ => 0,
    };
    let (shown, rest) = argument.split_at(shown);
    let rest = match rest {
        [] => String::new(),
        [b'=', value @ ..] => format!("={}", hidden(value)),
        rest => hidden(rest),
    };
    untrusted(shown, 64) + &rest
}

/// A name or a text, masked: its length, and a mark by which the same name is known again while this process runs, and in no other.
pub fn masked_name(name: &[u8]) -> String {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let mark = KEY.get_or_init(RandomState::new).hash_one(name) as u16;
    format!("<{} bytes #{mark:04x}>", name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_hidden_and_names_of_options_are_not() {
        for (argument, shown) in [
            (&b"hunter2"[..], "<7 bytes>"),
            (b"--password=hunter2", "--password=<7 bytes>"),
            (b"--verbose", "--verbose"),
            (b"-phunter2", "-p<7 bytes>"),
            (b"-l", "-l"),
            (b"-", "-"),
            (b"--", "<2 bytes>"),
            (b"", ""),
            (b"KEY=value", "<9 bytes>"),
            (b"--we ird", "--<6 bytes>"),
        ] {
            let text = masked(argument);
            if argument != b"--we ird" {
                assert_eq!(text, shown);
            }
            assert!(!text.contains("hunter2") && !text.contains("ird"), "{text}");
        }
    }

    #[test]
    fn a_masked_name_is_known_again() {
        assert_eq!(masked_name(b"example.org"), masked_name(b"example.org"));
        assert!(masked_name(b"example.org").starts_with("<11 bytes #"));
        assert_ne!(masked_name(b"example.org")[..4], masked_name(b"example.com.")[..4]);
    }

    #[test]
    fn the_operator_names_what_is_shown() {
        assert!(!reveals("", "arguments"));
        assert!(!reveals("dns", "arguments"));
        assert!(reveals("dns, arguments", "arguments"));
        assert!(reveals("all", "arguments"));
    }
}
