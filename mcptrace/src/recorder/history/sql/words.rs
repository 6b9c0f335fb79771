//! The words of a query, as far as they tell what its parts are called. Pure.
//!
//! SQLite tells its authorizer for whom a table is read by name only, and a part of a query (`WITH sums AS (…)`) can be called like a view.

/// A word or a sign of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A name or a keyword, in small letters and without its quotes.
    Word(String),
    /// Anything else, character by character.
    Sign(char),
}

/// The view that a part of the query is called like: its name, perhaps columns, AS and a parenthesis.
pub(super) fn posing_as<'a>(sql: &str, views: &[&'a str]) -> Option<&'a str> {
    let tokens = tokens(sql);
    let is = |at: usize, word: &str| matches!(tokens.get(at), Some(Token::Word(own)) if own == word);
    let sign = |at: usize, sign: char| tokens.get(at) == Some(&Token::Sign(sign));
    (0..tokens.len()).find_map(|at| {
        let view = views.iter().find(|view| is(at, view))?;
        let mut next = at + 1;
        if sign(next, '(') {
            next += tokens[next..].iter().position(|token| *token == Token::Sign(')'))? + 1;
        }
        if !is(next, "as") {
            return None;
        }
        next += 1;
        while is(next, "not") || is(next, "materialized") {
            next += 1;
        }
        sign(next, '(').then_some(*view)
    })
}

/// Those of the views whose names are in the query.
pub(super) fn among<'a>(sql: &str, views: &[&'a str]) -> Vec<&'a str> {
    let tokens = tokens(sql);
    let is_in = |view: &&&str| tokens.iter().any(|token| matches!(token, Token::Word(word) if word == **view));
    views.iter().filter(is_in).copied().collect()
}

fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            _ if rest.starts_with("--") => (None, rest.find('\n').unwrap_or(rest.len())),
            _ if rest.starts_with("/*") => (None, rest[2..].find("*/").map_or(rest.len(), |end| end + 4)),
            '"' | '\'' | '`' => quoted(rest, first),
            '[' => {
                let end = rest.find(']').unwrap_or(rest.len());
                (Some(Token::Word(rest[1..end].to_ascii_lowercase())), (end + 1).min(rest.len()))
            }
            _ if is_of_word(first) => {
                let end = rest.find(|other| !is_of_word(other)).unwrap_or(rest.len());
                (Some(Token::Word(rest[..end].to_ascii_lowercase())), end)
            }
            _ if first.is_whitespace() => (None, first.len_utf8()),
            _ => (Some(Token::Sign(first)), first.len_utf8()),
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    tokens
}

fn is_of_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_' || character == '$' || !character.is_ascii()
}

/// A name or a text in quotes, which are doubled inside.
fn quoted(rest: &str, quote: char) -> (Option<Token>, usize) {
    let mut word = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character != quote {
            word.push(character);
        } else if characters.next_if(|(_, next)| *next == quote).is_some() {
            word.push(quote);
        } else {
            return (Some(Token::Word(word.to_ascii_lowercase())), at + 1);
        }
    }
    (Some(Token::Word(word.to_ascii_lowercase())), rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_called_like_a_view_is_found_however_it_is_written() {
        for sql in [
            "WITH sums AS (SELECT * FROM tick) SELECT * FROM sums",
            "with a as (select 1), SUMS(x, y) as materialized (select 1, 2) select * from sums",
            "with \"sums\" as not materialized (select 1) select 1",
            "with [sums] as (select 1) select 1",
            "with `sums`as(select 1) select 1",
            "with 'sums' as (select 1) select 1",
            "with sums -- x\n /* y */ as -- (\n (select 1) select 1",
            "select * from (with recursive sums(n) as (select 1) select * from sums)",
        ] {
            assert_eq!(posing_as(sql, &["events", "sums"]), Some("sums"), "{sql}");
        }
        for sql in [
            "SELECT * FROM sums AS s WHERE (t > 0)",
            "SELECT 'with sums as (' FROM sums",
            "SELECT sums FROM (SELECT 1 AS sums)",
            "WITH s AS (SELECT * FROM sums) SELECT * FROM s",
            "SELECT \"é sums\" AS \"as (\", '",
            "",
        ] {
            assert_eq!(posing_as(sql, &["events", "sums"]), None, "{sql}");
        }
    }
}
