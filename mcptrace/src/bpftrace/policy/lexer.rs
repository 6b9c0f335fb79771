//! Words and signs of the bpftrace language: pure.
//!
//! Where bpftrace's own lexer (`src/lexer.l`, 0.17 to 0.23) and another reader of the text could disagree about what is a comment or a
//! string, the text is refused: a disagreement is how code is hidden.

use super::Fault;
use crate::text::is_deceptive;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `pid`, `printf`, `if`.
    Word,
    /// `$x`.
    Variable,
    /// `$1` or `$#`.
    Positional,
    /// `@` or `@x`.
    Map,
    /// `10`, `0x1f`, `1e6`, `100ms`.
    Number,
    /// With its quotes.
    Text,
    /// An operator or a bracket.
    Sign,
    /// The end of the program.
    End,
}

/// A piece of the program and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub at: usize,
}

impl Token<'_> {
    pub(super) fn is(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text == word
    }
}

/// The longest first.
const SIGNS: &[&str] = &[
    "<<=", ">>=", "->", "++", "--", "&&", "||", "==", "!=", "<=", ">=", "<<", ">>", "+=", "-=", "*=", "/=", "%=", "&=",
    "|=", "^=", "..", "{", "}", "(", ")", "[", "]", ";", ",", ":", "?", "=", "<", ">", "+", "-", "*", "/", "%", "&",
    "|", "^", "~", "!", ".",
];

/// What may follow the digits of a number: units of time, and of the width of a constant.
const SUFFIXES: &[&str] = &["", "ns", "us", "ms", "s", "m", "h", "d", "u", "l", "ul", "ll", "ull"];

/// Where in the program the next token begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    /// Begins after a first line `#!…`, which is no preprocessor's.
    pub(super) fn new(text: &'a str) -> Result<Self, Fault> {
        check_characters(text)?;
        let at = if text.starts_with("#!") { text.find('\n').unwrap_or(text.len()) } else { 0 };
        Ok(Self { text, at })
    }

    /// The next token after blanks and comments.
    pub(super) fn next(&mut self) -> Result<Token<'a>, Fault> {
        self.skip_blanks()?;
        let Some(first) = self.rest().chars().next() else { return Ok(self.take(Kind::End, 0)) };
        match first {
            '"' => self.string(),
            '@' => Ok(self.take(Kind::Map, 1 + word_length(&self.rest()[1..]))),
            '$' => self.variable(),
            '0'..='9' => self.number(),
            'a'..='z' | 'A'..='Z' | '_' => Ok(self.take(Kind::Word, word_length(self.rest()))),
            '#' => Err(Fault::policy(self.at, "preprocessor lines are refused")
                .remedy("leave #include and #define out: write the number itself, and use a struct of your own or the kernel's types")),
            _ => self.sign(first),
        }
    }

    /// What a probe attaches to: up to a blank, a comma, a brace, or the slash of a predicate, all of it outside of quotes.
    ///
    /// `takes_path` tells from what stands before the first colon whether slashes belong to it.
    pub(super) fn attach_point(&mut self, takes_path: impl Fn(&str) -> bool) -> Result<Token<'a>, Fault> {
        self.skip_blanks()?;
        let rest = self.rest();
        let path = rest.split_once(':').is_some_and(|(kind, _)| takes_path(kind));
        let mut end = 0;
        while let Some(byte) = rest.as_bytes().get(end) {
            match byte {
                b'"' => {
                    let unended = || Fault::syntax(self.at + end, "this quote does not end");
                    end += quoted_length(&rest[end..]).ok_or_else(unended)?;
                }
                b'/' if rest[end..].starts_with("//") || rest[end..].starts_with("/*") => {
                    return Err(Fault::syntax(self.at + end, "put a blank between the name of a probe and a comment"));
                }
                // bpftrace takes what follows a colon up to a blank as a path, slashes and all.
                b'/' if !path && rest[..end].contains(':') => {
                    return Err(Fault::syntax(
                        self.at + end,
                        "put a blank between the name of a probe and its predicate",
                    ));
                }
                b'/' if !path => break,
                b'$' => return Err(positional(self.at + end)),
                byte if byte.is_ascii_alphanumeric() || b"_:.*?+-[]/@".contains(byte) => end += 1,
                _ => break,
            }
        }
        Ok(self.take(Kind::Word, end))
    }

    /// Whether a `/` that has just been taken ends a predicate: what comes next is its body.
    pub(super) fn at_body(mut self) -> Result<bool, Fault> {
        self.skip_blanks()?;
        Ok(self.rest().starts_with('{'))
    }

    /// Goes back to where a token begins.
    pub(super) fn back_to(&mut self, token: Token<'_>) {
        self.at = token.at;
    }

    /// From the beginning of one token to that of a later one.
    pub(super) fn between(&self, from: Token<'_>, to: Token<'_>) -> &'a str {
        &self.text[from.at..to.at]
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, kind: Kind, length: usize) -> Token<'a> {
        let token = Token { kind, text: &self.rest()[..length], at: self.at };
        self.at += length;
        token
    }

    fn skip_blanks(&mut self) -> Result<(), Fault> {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
            let skipped = if blank > 0 { blank } else { self.comment()? };
            if skipped == 0 {
                return Ok(());
            }
            self.at += skipped;
        }
    }

    /// The length of a comment here, 0 if there is none.
    fn comment(&self) -> Result<usize, Fault> {
        let rest = self.rest();
        if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            // A C compiler goes on in the next line, bpftrace does not.
            let goes_on = rest[..length].trim_end().ends_with('\\');
            let refused = || Fault::syntax(self.at + length - 1, "a comment must not end in a backslash");
            return if goes_on { Err(refused()) } else { Ok(length) };
        }
        if !rest.starts_with("/*") {
            return Ok(0);
        }
        let inside = rest[2..].find("*/").ok_or_else(|| Fault::syntax(self.at, "this comment does not end"))?;
        if rest.starts_with("/*/") {
            return Err(Fault::syntax(self.at, "this comment opens and looks as if it closed"));
        }
        // With the first byte of the end, since `/*/` opens and closes.
        match rest[2..=2 + inside].find("/*") {
            Some(nested) => {
                Err(Fault::syntax(self.at + 2 + nested, "a comment must not hold the beginning of another"))
            }
            None => Ok(inside + 4),
        }
    }

    fn string(&mut self) -> Result<Token<'a>, Fault> {
        let rest = self.rest();
        let mut letters = rest.char_indices().skip(1);
        while let Some((index, letter)) = letters.next() {
            match letter {
                '"' => return Ok(self.take(Kind::Text, index + 1)),
                '\n' => break,
                '\\' => {
                    let escaped = letters.next().map_or(' ', |(_, escaped)| escaped);
                    if !"ntr\\\"abfvex01234567".contains(escaped) {
                        return Err(Fault::syntax(
                            self.at + index,
                            "bpftrace knows no such escape; it knows \\n \\t \\r \\\\ \\\" \\x41 \\101",
                        ));
                    }
                }
                _ => {}
            }
        }
        Err(Fault::syntax(self.at, "this string does not end in its line; write \\n for a line end"))
    }

    fn variable(&mut self) -> Result<Token<'a>, Fault> {
        let name = &self.rest()[1..];
        match name.bytes().next() {
            Some(b'#') => Ok(self.take(Kind::Positional, 2)),
            Some(b'0'..=b'9') => Ok(self.take(Kind::Positional, 1 + word_length(name))),
            _ if word_length(name) > 0 => Ok(self.take(Kind::Variable, 1 + word_length(name))),
            _ => Err(Fault::syntax(self.at, "a `$` needs a name")),
        }
    }

    fn number(&mut self) -> Result<Token<'a>, Fault> {
        let token = self.take(Kind::Number, word_length(self.rest()));
        if is_number(token.text) {
            Ok(token)
        } else {
            Err(Fault::syntax(token.at, format!("`{}` is no number", clip(token.text))))
        }
    }

    fn sign(&mut self, first: char) -> Result<Token<'a>, Fault> {
        let rest = self.rest();
        let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
        let unknown = || Fault::syntax(self.at, format!("`{}` has no meaning here", first.escape_default()));
        let length = sign.ok_or_else(unknown)?.len();
        Ok(self.take(Kind::Sign, length))
    }
}

/// Why `$1` is refused.
pub(super) fn positional(at: usize) -> Fault {
    Fault::policy(at, "a script here has no positional parameters").remedy("write the value itself into the program")
}

/// At most some letters of the program, for a message.
pub(super) fn clip(text: &str) -> &str {
    text.get(..60).unwrap_or(text)
}

fn word_length(text: &str) -> usize {
    text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count()
}

/// Quotes in the name of a probe: one line, no escapes.
fn quoted_length(text: &str) -> Option<usize> {
    let length = text[1..].find(['"', '\n', '\\'])? + 2;
    text[..length].ends_with('"').then_some(length)
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    if let Some(hex) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        return !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'_');
    }
    let end = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let exponent = text[end..].strip_prefix(['e', 'E']).is_some_and(|power| !power.is_empty() && digits(power));
    digits(&text[..end]) && (exponent || SUFFIXES.contains(&text[end..].to_ascii_lowercase().as_str()))
}

/// Nothing that shows differently from what it is: control characters, and those that reorder or hide others.
fn check_characters(text: &str) -> Result<(), Fault> {
    let mut letters = text.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        let lone_return = letter == '\r' && letters.peek().is_none_or(|(_, next)| *next != '\n');
        let control = letter.is_control() && !matches!(letter, '\t' | '\n' | '\r');
        if control || lone_return || is_deceptive(letter) {
            let message = format!(
                "the character U+{:04X} is refused: it hides or reorders what stands beside it",
                u32::from(letter)
            );
            return Err(Fault::policy(at, message).remedy("remove it"));
        }
    }
    Ok(())
}
