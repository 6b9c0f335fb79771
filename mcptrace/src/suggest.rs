//! The nearest known name for one that is not known.

/// The longest word that is compared, in bytes: no known name is nearly as long, and the time grows with the length.
const LONGEST: usize = 256;

/// The candidate most like a word, if any is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_lowercase();
    let scored = candidates.into_iter().map(|candidate| (score(&word, &candidate.to_lowercase()), candidate));
    scored.filter(|(score, _)| *score >= 0.5).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// 1 for the same word, less for each letter that differs; a word inside the other counts as near.
fn score(word: &str, candidate: &str) -> f64 {
    let inside = word.len() >= 3 && (candidate.contains(word) || word.contains(candidate));
    let distance = strsim::normalized_damerau_levenshtein(word, candidate);
    if inside { distance.max(0.5) } else { distance }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_and_parts_find_the_name() {
        let names = ["syscall_counts", "syscall_latency", "file_opens"];
        assert_eq!(nearest("syscal_count", names), Some("syscall_counts"));
        assert_eq!(nearest("opens", names), Some("file_opens"));
        assert_eq!(nearest("FILE_OPEN", names), Some("file_opens"));
        assert_eq!(nearest("xyz", names), None);
        assert_eq!(nearest("", names), None);
    }

    #[test]
    fn a_word_of_megabytes_is_like_nothing() {
        let word = format!("file_opens{}", "x".repeat(10 << 20));
        assert_eq!(nearest(&word, ["file_opens"]), None);
    }
}
