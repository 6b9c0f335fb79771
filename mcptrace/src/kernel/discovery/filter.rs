//! Which names a filter means: a glob over the name as bpftrace writes it, with or without its probe type.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use super::Family;

/// A glob: `*` any text, `?` one character, `[a-z]` and `[!a-z]` one of a set. Case matters; all else is literal.
#[derive(Clone, Debug)]
pub(super) struct Glob {
    pattern: Vec<char>,
}

impl Glob {
    /// A run of stars means what one means; outside brackets nothing else is the same twice.
    pub(super) fn new(pattern: &str) -> Self {
        let mut pattern: Vec<char> = pattern.chars().collect();
        if !pattern.contains(&'[') {
            pattern.dedup_by(|next, before| *next == '*' && *before == '*');
        }
        Self { pattern }
    }

    /// Goes back to the last `*` only, so the time is bounded by the product of both lengths.
    pub(super) fn matches(&self, text: &str) -> bool {
        let mut rest = text;
        let mut at = 0;
        let mut star: Option<(usize, &str)> = None;
        loop {
            if self.pattern.get(at) == Some(&'*') {
                at += 1;
                star = Some((at, rest));
                continue;
            }
            let mut chars = rest.chars();
            match (chars.next(), self.one(at)) {
                (None, None) => return true,
                (Some(found), Some(one)) if one.accepts(found) => {
                    at += one.length();
                    rest = chars.as_str();
                    continue;
                }
                _ => {}
            }
            let Some((behind, from)) = star else { return false };
            let mut chars = from.chars();
            if chars.next().is_none() {
                return false;
            }
            (at, rest) = (behind, chars.as_str());
            star = Some((behind, rest));
        }
    }

    fn one(&self, at: usize) -> Option<One<'_>> {
        match *self.pattern.get(at)? {
            '?' => Some(One::Any),
            '[' => Some(self.set(at).unwrap_or(One::Literal('['))),
            other => Some(One::Literal(other)),
        }
    }

    /// A bracket that is never closed is literal.
    fn set(&self, at: usize) -> Option<One<'_>> {
        let inside = &self.pattern[at + 1..];
        let negated = matches!(inside.first(), Some('!' | '^'));
        let first = usize::from(negated);
        let end = first + 1 + inside.get(first + 1..)?.iter().position(|&each| each == ']')?;
        Some(One::Set { members: &inside[first..end], negated, length: end + 2 })
    }
}

/// What stands for one character in a glob.
enum One<'a> {
    Any,
    Literal(char),
    Set { members: &'a [char], negated: bool, length: usize },
}

impl One<'_> {
    fn accepts(&self, found: char) -> bool {
        match *self {
            Self::Any => true,
            Self::Literal(one) => one == found,
            Self::Set { members, negated, .. } => contains(members, found) != negated,
        }
    }

    fn length(&self) -> usize {
        match *self {
            Self::Any | Self::Literal(_) => 1,
            Self::Set { length, .. } => length,
        }
    }
}

fn contains(mut members: &[char], found: char) -> bool {
    while let Some((&first, rest)) = members.split_first() {
        if let [&'-', last, ..] = rest.iter().collect::<Vec<_>>()[..] {
            if (first..=*last).contains(&found) {
                return true;
            }
            members = &rest[2..];
        } else {
            if first == found {
                return true;
            }
            members = rest;
        }
    }
    false
}

/// A filter over the kernel's names.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    text: String,
    glob: Option<Glob>,
    /// Whether it has no colon: then it may also mean the last part of a name alone.
    bare: bool,
}

impl Filter {
    /// Takes every name when the filter is absent or empty. A known short probe type (`t:`) is written out.
    pub(super) fn new(filter: Option<&str>) -> Self {
        let text = filter.map(Family::expand).unwrap_or_default();
        let glob = (!text.is_empty() && text != "*").then(|| Glob::new(&text));
        Self { bare: !text.contains(':'), text, glob }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The filter without its probe type, where it has a known one.
    pub(super) fn without_family(&self) -> &str {
        match self.text.split_once(':') {
            Some((first, rest)) if Family::of(first).is_some() => rest,
            _ => &self.text,
        }
    }

    /// Whether any name of the family may match. When none can, the family is not read at all.
    pub(super) fn may_match(&self, family: Family) -> bool {
        if self.glob.is_none() || self.bare {
            return true;
        }
        let first = self.text.split(':').next().unwrap_or_default();
        if Family::of(first).is_some() {
            return first == family.name();
        }
        match family {
            Family::Tracepoint => true,
            _ if first.contains(['*', '?', '[']) => true,
            Family::Kfunc => first == "vmlinux",
            _ => false,
        }
    }

    /// Whether a whole name (`tracepoint:sched:sched_switch`) is meant: by all of it, by what follows the probe type,
    /// or, by a filter without a colon, by its last part.
    pub(super) fn matches(&self, name: &str) -> bool {
        let Some(glob) = &self.glob else { return true };
        let rest = name.split_once(':').map_or(name, |(_, rest)| rest);
        glob.matches(name)
            || glob.matches(rest)
            || (self.bare && glob.matches(name.trim_end_matches(':').rsplit(':').next().unwrap_or_default()))
            || self.matches_function(name, glob)
    }

    /// `kfunc:vfs_read` means `kfunc:vmlinux:vfs_read`, as in bpftrace.
    fn matches_function(&self, name: &str, glob: &Glob) -> bool {
        let Some(function) = name.strip_prefix("kfunc:vmlinux:") else { return false };
        self.text.matches(':').count() == 1
            && self.text.starts_with("kfunc:")
            && (glob.matches(function) || Glob::new(self.without_family()).matches(function))
    }
}

/// A hash that names a filter or a name inside a cursor.
pub(super) fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).matches(text)
    }

    #[test]
    fn a_glob_matches_as_a_shell_does() {
        for (pattern, text) in [
            ("*", ""),
            ("*read*", "sys_enter_readv"),
            ("**", "x"),
            ("a*b*c", "aXbYbZc"),
            ("?", "ä"),
            ("s[xy]z", "syz"),
            ("s[!xy]z", "saz"),
            ("[a-c]?", "b1"),
            ("[]]", "]"),
            ("a[", "a["),
            ("a[b", "a[b"),
            ("-x", "-x"),
            ("a\0b", "a\0b"),
            ("[a-]", "-"),
        ] {
            assert!(matches(pattern, text), "{pattern} should match {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("Read", "read"),
            ("a*b", "aXbY"),
            ("s[!xy]z", "sxz"),
            ("[a-c]", "d"),
            ("*a", "b"),
            ("a\\*", "ab"),
        ] {
            assert!(!matches(pattern, text), "{pattern} should not match {text}");
        }
    }

    #[test]
    fn a_hostile_glob_ends() {
        assert!(!matches(&"*a".repeat(2000), &"a".repeat(1999)));
        assert!(!matches(&format!("*{}b", "a".repeat(1000)), &"a".repeat(4000)));
        assert_eq!(Glob::new(&format!("{}q*", "*".repeat(3000))).pattern, ['*', 'q', '*']);
    }

    #[test]
    fn a_filter_works_with_and_without_the_probe_type() {
        let name = "tracepoint:syscalls:sys_enter_read";
        for filter in [
            "syscalls:*read*",
            "tracepoint:syscalls:*read*",
            "t:syscalls:*read*",
            "*read*",
            "sys_enter_read",
            "*:*:*read*",
            "",
            "*",
        ] {
            assert!(Filter::new(Some(filter)).matches(name), "{filter}");
        }
        for filter in ["rawtracepoint:*read*", "sched:*", "read", "tracepoint:syscalls", "SYSCALLS:*"] {
            assert!(!Filter::new(Some(filter)).matches(name), "{filter}");
        }
        assert!(Filter::new(Some("kfunc:vfs_*")).matches("kfunc:vmlinux:vfs_read"));
        assert!(Filter::new(Some("vfs_*")).matches("kfunc:vmlinux:vfs_read"));
        assert!(Filter::new(Some("fentry:vfs_read")).matches("kfunc:vmlinux:vfs_read"));
        assert!(!Filter::new(Some("kfunc:vfs_")).matches("kfunc:vmlinux:vfs_read"));
        assert!(Filter::new(Some("cpu-clock")).matches("software:cpu-clock:"));
    }

    #[test]
    fn a_family_that_cannot_match_is_not_read() {
        let may = |filter: &str, family| Filter::new(Some(filter)).may_match(family);
        assert!(!may("syscalls:*read*", Family::Kfunc));
        assert!(!may("tracepoint:*", Family::Kfunc));
        assert!(!may("kfunc:*", Family::Tracepoint));
        assert!(may("kfunc:*", Family::Kfunc));
        assert!(may("*:vfs_read", Family::Kfunc));
        assert!(may("vmlinux:*", Family::Kfunc));
        assert!(may("vfs_*", Family::Kfunc));
    }
}
