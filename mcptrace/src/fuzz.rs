//! Inputs that nobody meant, for tests of whatever reads what others wrote: pieces of a corpus cut, joined, repeated and changed. The same
//! ones on every run, so that what fails fails again; `FUZZ_ROUNDS` asks for more of them than a test has time for.

/// Bytes that mean something to some parser.
const TELLING: &[u8] = b"\0\n\r\t\"\\'{}[]()<>:;,/*#@$&|!=+-.%09eE\x1b\x7f\x80\xff";
/// Numbers at which counters and lengths turn over.
const NUMBERS: [&str; 8] = ["-1", "0", "2147483648", "4294967296", "18446744073709551615", "1e999", "-0.0", "0x"];
/// The longest input.
const LONGEST: usize = 1 << 14;

/// Every input of a corpus and so many more made of it.
pub(crate) fn inputs(corpus: &[&[u8]], rounds: usize) -> impl Iterator<Item = Vec<u8>> {
    let rounds = std::env::var("FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(rounds);
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|seed| seed.to_vec()).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let made = corpus.clone();
    corpus.into_iter().chain((0..rounds).map(move |_| random.mutated(&made)))
}

/// xorshift64* (Vigna, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % most.max(1)
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    fn mutated(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(6) {
            self.change(&mut bytes, corpus);
            bytes.truncate(LONGEST);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let to = at + self.below(bytes.len() - at + 1);
        match self.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..to)),
            2 => drop(bytes.splice(at..at, [TELLING[self.below(TELLING.len())]])),
            3 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.below(8)),
            4 => drop(bytes.splice(at..at, self.one(&NUMBERS).bytes())),
            5 => {
                let piece = bytes[at..to].to_vec();
                let times = 1 + self.below(64);
                drop(bytes.splice(at..at, piece.repeat(times)));
            }
            6 => {
                let other = &corpus[self.below(corpus.len())];
                let start = self.below(other.len() + 1);
                drop(bytes.splice(at..to, other[start..].iter().copied()));
            }
            _ => bytes.iter_mut().skip(at).take(to - at).for_each(|byte| *byte = self.below(256) as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn inputs_are_many_and_the_same_each_time() {
        let corpus: &[&[u8]] = &[b"{\"a\":1}", b"kprobe:f { }"];
        let first: Vec<_> = super::inputs(corpus, 500).collect();
        assert_eq!(first, super::inputs(corpus, 500).collect::<Vec<_>>());
        let different: std::collections::BTreeSet<_> = first.iter().collect();
        assert!(first.len() >= 500 && different.len() > 300, "{}", different.len());
    }
}
