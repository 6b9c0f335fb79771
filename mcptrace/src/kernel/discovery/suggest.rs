//! Names near a name that does not exist.

/// How many names are suggested.
const MOST: usize = 5;
/// Below this likeness a name is no suggestion.
const LEAST: f64 = 0.8;

/// The candidates most like `word`, best first; none when nothing is alike.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut best: Vec<(f64, &str)> = Vec::with_capacity(MOST + 1);
    for candidate in candidates {
        let likeness = strsim::jaro_winkler(word, candidate);
        if likeness < LEAST || best.iter().any(|(_, known)| *known == candidate) {
            continue;
        }
        let at = best.partition_point(|(other, _)| *other >= likeness);
        best.insert(at, (likeness, candidate));
        best.truncate(MOST);
    }
    best.into_iter().map(|(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_comes_first_and_once() {
        let names = ["sched_switch", "sched_wakeup", "sched_switch", "kmalloc"];
        let found = nearest("sched_swich", names);
        assert_eq!(found.first().map(String::as_str), Some("sched_switch"));
        assert_eq!(found.iter().filter(|name| *name == "sched_switch").count(), 1);
        assert!(!found.contains(&"kmalloc".into()));
        assert!(nearest("zzz", names).is_empty());
    }

    #[test]
    fn suggestions_are_few() {
        let names: Vec<String> = (0..100).map(|at| format!("tcp_probe{at}")).collect();
        assert_eq!(nearest("tcp_probe", names.iter().map(String::as_str)).len(), MOST);
    }
}
