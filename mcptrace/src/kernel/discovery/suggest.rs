//! Names near a name that does not exist.

/// How many names are suggested.
pub(super) const MOST: usize = 5;
/// Below this likeness a name is no suggestion.
const LEAST: f64 = 0.8;
/// How many times longer than a name a word may be and still be compared with it: comparing takes the product of both lengths.
const LONGER: usize = 3;

/// The few names most like a word, out of many that are never held together.
pub(super) struct Nearest<'a> {
    word: &'a str,
    best: Vec<(f64, String)>,
}

impl<'a> Nearest<'a> {
    pub(super) fn to(word: &'a str) -> Self {
        Self { word, best: Vec::with_capacity(MOST + 1) }
    }

    /// Compares `part` with the word; `whole` is what is suggested.
    pub(super) fn offer(&mut self, part: &str, whole: &str) {
        if self.word.len() > LONGER * part.len() {
            return;
        }
        let likeness = strsim::jaro_winkler(self.word, part);
        if likeness < LEAST || self.best.iter().any(|(_, known)| known == whole) {
            return;
        }
        let at = self.best.partition_point(|(other, _)| *other >= likeness);
        if at < MOST {
            self.best.insert(at, (likeness, whole.to_owned()));
            self.best.truncate(MOST);
        }
    }

    /// Best first; none when nothing was alike.
    pub(super) fn into_names(self) -> Vec<String> {
        self.best.into_iter().map(|(_, name)| name).collect()
    }
}

/// The candidates most like `word`, best first.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut nearest = Nearest::to(word);
    candidates.into_iter().for_each(|candidate| nearest.offer(candidate, candidate));
    nearest.into_names()
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
    fn what_is_much_longer_than_every_name_is_near_none() {
        assert_eq!(nearest("schedswitchx", ["sched_switch"]).len(), 1);
        assert!(nearest(&"sched_switch".repeat(4), ["sched_switch"]).is_empty());
    }

    #[test]
    fn suggestions_are_few() {
        let names: Vec<String> = (0..100).map(|at| format!("tcp_probe{at}")).collect();
        assert_eq!(nearest("tcp_probe", names.iter().map(String::as_str)).len(), MOST);
    }
}
