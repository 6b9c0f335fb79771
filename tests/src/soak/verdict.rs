//! What a soak says: a table over time, and whether anything grew.

use std::fmt;

use super::{Done, Held};

/// Memory may differ from calm to calm by what the allocator happens to keep, in KB.
const SLACK_KB: u64 = 4 << 10;

/// A round and the calm after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// Which, from 1.
    pub number: u32,
    /// When it was over, in minutes since the beginning.
    pub minutes: f64,
    /// What clients did.
    pub done: Done,
    /// The most that was held at any look.
    pub peak: Held,
    /// What was held when all had been left alone.
    pub calm: Held,
}

/// What a table begins with.
const HEAD: &str = "\
|  minute | probes | stopped | refused | died | scripts | past | other | peak MB | peak fds | calm MB | own MB | fds | threads | programs | children |
|--------:|-------:|--------:|--------:|-----:|--------:|-----:|------:|--------:|---------:|--------:|-------:|----:|--------:|---------:|---------:|";

/// All rounds, as a table of Markdown.
pub fn table(rounds: &[Round]) -> String {
    rounds.iter().fold(HEAD.to_owned(), |text, round| format!("{text}\n{round}"))
}

impl fmt::Display for Round {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { minutes, done, peak, calm, .. } = self;
        let mb = |kb: u64| kb as f64 / 1024.0;
        write!(out, "| {minutes:7.1} | {:6} | {:7} | {:7} | {:4}", done.probes, done.stopped, done.refused, done.died)?;
        write!(out, " | {:7} | {:4} | {:5}", done.scripts, done.past, done.other)?;
        write!(out, " | {:7.1} | {:8} | {:7.1}", mb(peak.resident), peak.descriptors, mb(calm.resident))?;
        write!(out, " | {:6.1} | {:3} | {:7}", mb(calm.own), calm.descriptors, calm.threads)?;
        write!(out, " | {:8} | {:8} |", calm.programs, calm.children)
    }
}

/// A number of what a server holds.
type CountOf = fn(&Held) -> u64;

/// What grew, in words; nothing if all is flat.
///
/// The first third warms up: caches fill, and results are kept up to their bound. Of the rest, the second half is compared with the
/// first: descriptors, threads, programs and children to the last one, memory by the average.
pub fn grown(rounds: &[Round]) -> Vec<String> {
    let warm = &rounds[rounds.len() / 3..];
    let (early, late) = warm.split_at(warm.len() / 2);
    if early.is_empty() {
        return vec!["fewer than two rounds tell nothing".to_owned()];
    }
    let most = |rounds: &[Round], of: CountOf| rounds.iter().map(|round| of(&round.calm)).max().unwrap_or(0);
    let mean = |rounds: &[Round]| rounds.iter().map(|round| round.calm.own).sum::<u64>() / rounds.len() as u64;
    let counts: [(&str, CountOf); 4] = [
        ("descriptors", |held| held.descriptors),
        ("threads", |held| held.threads),
        ("programs", |held| held.programs),
        ("children", |held| held.children),
    ];
    let counts = counts.into_iter().filter_map(|(name, of)| {
        let (before, after) = (most(early, of), most(late, of));
        (after > before).then(|| format!("{name}: {before} before, {after} after"))
    });
    let (before, after) = (mean(early), mean(late));
    let memory = after > before + SLACK_KB.max(before / 20);
    counts.chain(memory.then(|| format!("memory of its own: {before} KB before, {after} KB after"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(calm: impl Fn(u64) -> Held) -> Vec<Round> {
        let one = |number: u32| Round {
            number,
            minutes: f64::from(number),
            done: Done::default(),
            peak: Held::default(),
            calm: calm(u64::from(number)),
        };
        (1..=12).map(one).collect()
    }

    #[test]
    fn what_levels_off_is_flat_and_what_leaks_is_not() {
        let flat = |number: u64| Held {
            own: 30_000 + 3000 * number.min(3) + number % 2 * 900,
            descriptors: 40,
            ..Held::default()
        };
        assert_eq!(grown(&rounds(flat)), [""; 0]);
        let leaks = |number: u64| Held { own: 30_000 + 1500 * number, ..Held::default() };
        assert_eq!(grown(&rounds(leaks)), ["memory of its own: 39750 KB before, 45750 KB after"]);
        let descriptors = |number: u64| Held { descriptors: 40 + number / 9, threads: number, ..Held::default() };
        let said = grown(&rounds(descriptors));
        assert_eq!(said, ["descriptors: 40 before, 41 after", "threads: 8 before, 12 after"]);
        assert_eq!(grown(&rounds(flat)[..1]).len(), 1, "one round proves nothing");
    }

    #[test]
    fn columns_have_the_width_of_their_heads() {
        let text = table(&rounds(|number| Held { own: number * 1024, ..Held::default() }));
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }
}
