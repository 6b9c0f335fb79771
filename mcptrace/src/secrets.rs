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
    /// Texts that programs pass to their functions and USDT probes.
    Texts,
    /// What scripts read elsewhere in memory.
    Memory,
}

/// Which secrets are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reveals([bool; Secret::ALL.len()]);

impl Reveals {
    /// Nothing.
    pub const NONE: Self = Self([false; Secret::ALL.len()]);

    /// What words say, separated by commas; `all` means all. Others say nothing.
    pub fn of(words: &str) -> Self {
        let named = |kind: Secret| words.split(',').any(|one| one.trim() == kind.word() || one.trim() == "all");
        Self(Secret::ALL.map(named))
    }

    /// Whether a kind is shown.
    pub fn shows(self, kind: Secret) -> bool {
        self.0[kind as usize]
    }

    /// As [`Self::of`] takes it.
    pub fn words(self) -> String {
        let shown = Secret::ALL.into_iter().filter(|kind| self.shows(*kind));
        shown.map(Secret::word).collect::<Vec<_>>().join(",")
    }
}

/// What the operator reveals: the first answer holds for the life of the process.
static SHOWN: OnceLock<Reveals> = OnceLock::new();

/// Sets what is shown, as the configuration says. Has no effect once something was shown or masked.
pub fn reveal(words: &str) {
    let _ = SHOWN.set(Reveals::of(words));
}

/// The environment variable that reveals: words separated by commas, or `all`.
pub const REVEAL: &str = "MCPTRACE_REVEAL";

impl Secret {
    /// All kinds, in their order.
    pub const ALL: [Self; 4] = [Self::Arguments, Self::Names, Self::Texts, Self::Memory];

    /// The word for it in [`REVEAL`].
    pub fn word(self) -> &'static str {
        match self {
            Self::Arguments => "arguments",
            Self::Names => "names",
            Self::Texts => "texts",
            Self::Memory => "memory",
        }
    }

    /// Whether the operator wants it shown.
    pub fn is_revealed(self) -> bool {
        SHOWN.get_or_init(|| Reveals::of(&std::env::var(REVEAL).unwrap_or_default())).shows(self)
    }

    /// What a result says while it is masked.
    pub fn note(self) -> String {
        format!("{0} are masked; the operator reveals them with {REVEAL}={0} in the server's environment", self.word())
    }
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
        assert!(!Reveals::default().shows(Secret::Arguments));
        assert!(!Reveals::of("dns").shows(Secret::Arguments));
        let one = Reveals::of("dns, arguments");
        assert!(one.shows(Secret::Arguments) && !one.shows(Secret::Memory));
        assert!(Secret::ALL.into_iter().all(|kind| Reveals::of("all").shows(kind)));
        for words in ["", "texts", "arguments,memory", "arguments,names,texts,memory"] {
            assert_eq!(Reveals::of(words).words(), words);
        }
    }
}
