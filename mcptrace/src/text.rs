//! Strings that come from traced programs: data, never instructions. Bounded, escaped, always in fields of their own.

use std::ops::RangeInclusive;

/// A command name as the kernel keeps it, up to its first NUL.
pub fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    untrusted(&bytes[..end], 64)
}

/// What a caller gave, as an answer repeats it.
pub fn quoted(given: &str) -> String {
    untrusted(given.as_bytes(), 120)
}

/// Bytes from a traced program as text of at most so many bytes (and an ellipsis): what is not UTF-8, control characters and those
/// that change the direction of text are escaped.
pub fn untrusted(bytes: &[u8], longest: usize) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            push_safe(&mut text, letter);
        }
        for byte in chunk.invalid() {
            text.extend(std::ascii::escape_default(*byte).map(char::from));
        }
        if text.len() > longest {
            break;
        }
    }
    clipped(text, longest)
}

/// A message with no more than so many bytes (and an ellipsis), whatever it quotes.
pub fn clipped(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Letters that show as nothing or change where others show: those that turn text around, have no width, or carry bytes unseen, as tags
/// and variation selectors do (Unicode's Default_Ignorable_Code_Point, bidirectional and format controls).
const DECEPTIVE: &[RangeInclusive<char>] = &[
    '\u{ad}'..='\u{ad}',
    '\u{34f}'..='\u{34f}',
    '\u{61c}'..='\u{61c}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{feff}'..='\u{feff}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{fff0}'..='\u{fffb}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Whether a letter that is no control character hides or reorders what stands beside it.
pub fn is_deceptive(letter: char) -> bool {
    letter >= *DECEPTIVE[0].start() && DECEPTIVE.iter().any(|range| range.contains(&letter))
}

fn push_safe(text: &mut String, letter: char) {
    if letter.is_control() || is_deceptive(letter) {
        text.extend(letter.escape_unicode());
    } else {
        text.push(letter);
    }
}

/// Whether the whole of a name fits a pattern of `*` and `?`. Tries one place for the last star at a time, so it takes at most pattern times name steps.
pub fn matches_glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut seen) = (0, 0);
    let mut star = None;
    while seen < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(letter) if *letter == b'?' || *letter == name[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((star_at, from)) = star else { return false };
                star = Some((star_at, from + 1));
                at = star_at + 1;
                seen = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_ends_at_its_nul() {
        assert_eq!(comm(b"cat\0garbage\0\0\0\0\0"), "cat");
        assert_eq!(comm(&[b'x'; 16]), "x".repeat(16));
    }

    #[test]
    fn what_could_fool_a_terminal_or_a_reader_is_escaped() {
        assert_eq!(untrusted(b"a\x1b[31mb\n", 99), "a\\u{1b}[31mb\\u{a}");
        assert_eq!(untrusted("x\u{202e}y".as_bytes(), 99), "x\\u{202e}y");
        for hidden in "\u{ad}\u{34f}\u{61c}\u{180e}\u{200b}\u{2029}\u{2064}\u{2067}\u{206a}\u{3164}\u{fe0f}\u{feff}\u{fffa}\u{e0049}\u{e01ef}".chars() {
            let code = u32::from(hidden);
            assert_eq!(untrusted(format!("x{hidden}y").as_bytes(), 99), format!("x\\u{{{code:x}}}y"));
        }
        assert_eq!(untrusted("naïve 名前 😀 —".as_bytes(), 99), "naïve 名前 😀 —");
        assert_eq!(untrusted(&[b'a', 0xff, b'b'], 99), "a\\xffb");
    }

    #[test]
    fn length_is_bounded_at_a_character() {
        assert_eq!(untrusted("ééé".as_bytes(), 3), "é…");
    }
}
