//! What the kernel and a binary could be traced by, read without bpftrace and without running anything.
//!
//! Names are written as bpftrace writes them (`tracepoint:sched:sched_switch`, `kfunc:vmlinux:vfs_read`,
//! `usdt:/path:provider:name`). Filters are patterns over those names and nothing else.

mod attach;
pub mod binary;
mod describe;
mod filter;
mod format;
mod sources;
mod suggest;
pub mod usdt;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::format::check as check_format;
use serde::{Deserialize, Serialize};

use super::btf::BtfError;
use super::tracefs::TracefsError;
pub use attach::obstacle;
use binary::{Binary, BinaryError};
pub use describe::describe;
use filter::{Filter, hash};
use sources::Sources;

/// How many names a page has unless the caller says otherwise.
pub const DEFAULT_LIMIT: usize = 100;
/// The most names of one page.
pub const MAX_LIMIT: usize = 1000;
/// The longest filter or name that is looked at, in bytes: a path and a symbol.
pub const MAX_FILTER: usize = 4096 + 1024;

/// What to list.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// A glob over the names, with or without the probe type; `binary:/path[:glob]` for a program or library.
    pub filter: Option<&'a str>,
    /// How many names at most, 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// `next` of the page before.
    pub cursor: Option<&'a str>,
}

impl Default for Query<'_> {
    fn default() -> Self {
        Self { filter: None, limit: DEFAULT_LIMIT, cursor: None }
    }
}

/// What discovery may do, and what others have found out about this kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Whether tracefs may be mounted when it is not.
    pub allow_mount: bool,
    /// Whether this kernel lets fentry programs attach, where that was tried.
    pub fentry_works: Option<bool>,
}

/// A page of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The names, in an order that stays the same.
    pub names: Vec<String>,
    /// How many names match, on all pages.
    pub total: u64,
    /// The cursor of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// What could not be listed and why; what was near when nothing matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One thing that can be traced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelProbe {
    /// Its name, whole.
    pub name: String,
    /// Its probe type: `tracepoint`, `kfunc`…
    pub kind: String,
    /// What it gives, in order.
    pub arguments: Vec<Argument>,
    /// The C type of what the function returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returns: Option<String>,
    /// How the kernel itself prints the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Where it is in the binary; a USDT probe may be in several places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
    /// What a reader must know to use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// An argument of a kernel function or USDT probe, or a field of a tracepoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its C type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Bytes from the start of the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Its size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Whether it is a signed number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<bool>,
    /// The register, memory or constant that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operand: Option<String>,
}

/// A place in a binary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The virtual address in the file.
    pub address: u64,
    /// The offset in the file, which is what a uprobe attaches to. Absent when no segment holds the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The size of the function in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The offset in the file of the semaphore that switches the probe on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semaphore_offset: Option<u64>,
}

/// Why something could not be listed or described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The limit is no possible size of a page.
    #[error("`limit` is {0}: it must be 1 to {MAX_LIMIT}")]
    Limit(usize),
    /// The filter or name is longer than any name can be.
    #[error("the filter or name has {0} bytes: at most {MAX_FILTER} are looked at")]
    TooLong(usize),
    /// Not a cursor at all.
    #[error(
        "`cursor` is not one: pass `next_cursor` of the page before, unchanged, or leave it out to start at the beginning"
    )]
    BadCursor,
    /// The cursor of another listing.
    #[error("`cursor` belongs to a listing with another filter: pass the same filter, or leave the cursor out")]
    ForeignCursor,
    /// What the cursor names is gone.
    #[error("the list has changed since this `cursor` was given: leave it out to start at the beginning")]
    StaleCursor,
    /// There is no such probe.
    #[error("there is no `{name}` here{}", suggestion(did_you_mean))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest names.
        did_you_mean: Vec<String>,
    },
    /// The name has no probe type that is known.
    #[error(
        "`{0}` is not the name of a kernel probe: write tracepoint:CATEGORY:EVENT, rawtracepoint:NAME, \
         kfunc:vmlinux:FUNCTION, kprobe:FUNCTION, uprobe:/path:SYMBOL or usdt:/path:PROVIDER:NAME"
    )]
    Unnamed(String),
    /// The trace file system is out of reach.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// The kernel's types are out of reach.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The binary cannot be read.
    #[error(transparent)]
    Binary(#[from] BinaryError),
}

fn suggestion(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(": did you mean {}?", names.join(", ")) }
}

/// A probe type, in the order in which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Tracepoint,
    Rawtracepoint,
    Kfunc,
    Kprobe,
    Uprobe,
    Usdt,
    Software,
    Hardware,
    Profile,
    Interval,
}

impl Family {
    /// Those whose names the kernel knows; the names of the two others are in a binary.
    const OF_THE_KERNEL: [Self; 8] = [
        Self::Tracepoint,
        Self::Rawtracepoint,
        Self::Kfunc,
        Self::Kprobe,
        Self::Software,
        Self::Hardware,
        Self::Profile,
        Self::Interval,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint",
            Self::Rawtracepoint => "rawtracepoint",
            Self::Kfunc => "kfunc",
            Self::Kprobe => "kprobe",
            Self::Uprobe => "uprobe",
            Self::Usdt => "usdt",
            Self::Software => "software",
            Self::Hardware => "hardware",
            Self::Profile => "profile",
            Self::Interval => "interval",
        }
    }

    /// Knows bpftrace's short names, its later name for kfunc, the names of the return probes, and libbpf's.
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "tracepoint" | "t" => Self::Tracepoint,
            "rawtracepoint" | "rt" | "raw_tp" | "tp_btf" => Self::Rawtracepoint,
            "kfunc" | "f" | "fentry" | "fexit" | "fr" | "kretfunc" => Self::Kfunc,
            "kprobe" | "k" | "kretprobe" | "kr" => Self::Kprobe,
            "uprobe" | "u" | "uretprobe" | "ur" => Self::Uprobe,
            "usdt" | "U" => Self::Usdt,
            "software" | "s" => Self::Software,
            "hardware" | "h" => Self::Hardware,
            "profile" | "p" => Self::Profile,
            "interval" | "i" => Self::Interval,
            _ => return None,
        })
    }

    /// The name or filter with its probe type in full.
    fn expand(name: &str) -> String {
        match name.split_once(':') {
            Some((first, rest)) => {
                Self::of(first).map_or_else(|| name.to_owned(), |family| format!("{}:{rest}", family.name()))
            }
            None => name.to_owned(),
        }
    }
}

/// Lists what matches the filter, a page at a time.
pub fn list(query: &Query<'_>, access: Access) -> Result<Page, DiscoveryError> {
    check(query)?;
    let filter = Filter::new(query.filter);
    let mut collector = Collector::new(query, filter.text())?;
    match BinaryFilter::of(filter.text()) {
        Some(wanted) => list_binary(&wanted, &mut collector)?,
        None => list_kernel(&filter, &Sources::new(access), &mut collector),
    }
    collector.into_page()
}

fn check(query: &Query<'_>) -> Result<(), DiscoveryError> {
    if !(1..=MAX_LIMIT).contains(&query.limit) {
        return Err(DiscoveryError::Limit(query.limit));
    }
    match query.filter {
        Some(filter) if filter.len() > MAX_FILTER => Err(DiscoveryError::TooLong(filter.len())),
        _ => Ok(()),
    }
}

fn list_kernel(filter: &Filter, sources: &Sources, collector: &mut Collector) {
    for family in Family::OF_THE_KERNEL {
        if filter.may_match(family) {
            list_family(family, filter, sources, collector);
        }
    }
    if matches!(filter.text(), "uprobe:*" | "usdt:*") {
        collector.note("uprobes and USDT probes are listed per binary: filter `binary:/path/to/program`".into());
    } else if collector.total == 0 {
        collector.note(sources.nothing_matched(filter));
    }
}

fn list_family(family: Family, filter: &Filter, sources: &Sources, collector: &mut Collector) {
    let mut name = String::new();
    let listed = sources.each(family, &mut |rest| {
        name.clear();
        name.push_str(family.name());
        name.push(':');
        name.push_str(rest);
        if filter.matches(&name) {
            collector.offer(&name);
        }
    });
    match listed {
        Ok(notes) => notes.into_iter().for_each(|note| collector.note(note)),
        Err(reason) => collector.note(format!("{} probes are not listed: {reason}", family.name())),
    }
}

/// A filter that names a binary: its path (or library name), what to list of it, and a glob over that.
#[derive(Debug, PartialEq, Eq)]
struct BinaryFilter<'a> {
    path: &'a str,
    glob: &'a str,
    functions: bool,
    probes: bool,
}

impl<'a> BinaryFilter<'a> {
    fn of(filter: &'a str) -> Option<Self> {
        let (first, rest) = filter.split_once(':')?;
        let (functions, probes) = match first {
            "binary" => (true, true),
            "uprobe" if !rest.starts_with('*') => (true, false),
            "usdt" if !rest.starts_with('*') => (false, true),
            _ => return None,
        };
        let (path, glob) = split_path(rest);
        Some(Self { path, glob, functions, probes })
    }
}

/// Splits `/path:glob`. A colon may be part of a path: the shortest front that is a file is the path.
fn split_path(text: &str) -> (&str, &str) {
    let colons: Vec<usize> = text.match_indices(':').map(|(at, _)| at).collect();
    let is_file = |at: &&usize| std::path::Path::new(&text[..**at]).is_file();
    match colons.iter().find(is_file) {
        Some(&at) => (&text[..at], &text[at + 1..]),
        None if std::path::Path::new(text).is_file() => (text, ""),
        None => text.split_once(':').unwrap_or((text, "")),
    }
}

fn list_binary(wanted: &BinaryFilter<'_>, collector: &mut Collector) -> Result<(), DiscoveryError> {
    let file = binary::open(wanted.path)?;
    let binary = Binary::parse(&file)?;
    let path = file.path().display().to_string();
    let glob = filter::Glob::new(if wanted.glob.is_empty() { "*" } else { wanted.glob });
    if wanted.functions {
        list_functions(&path, &binary, &glob, collector);
    }
    if wanted.probes {
        list_probes(&path, &binary, &glob, collector);
    }
    binary.notes.iter().for_each(|note| collector.note(note.clone()));
    if collector.total == 0 {
        collector.note(sources::nothing_in_binary(&path, &binary, wanted));
    }
    Ok(())
}

fn list_functions(path: &str, binary: &Binary<'_>, glob: &filter::Glob, collector: &mut Collector) {
    for function in &binary.functions {
        let name = function.name();
        if glob.matches(&name) {
            collector.offer(&format!("uprobe:{path}:{name}"));
        }
    }
}

fn list_probes(path: &str, binary: &Binary<'_>, glob: &filter::Glob, collector: &mut Collector) {
    let mut last = None;
    for probe in &binary.probes {
        let key = (&probe.provider, &probe.name);
        let whole = format!("{}:{}", probe.provider, probe.name);
        if last.replace(key) != Some(key) && (glob.matches(&whole) || glob.matches(&probe.name)) {
            collector.offer(&format!("usdt:{path}:{whole}"));
        }
    }
}

/// Takes all matching names, keeps those of one page and counts the rest.
struct Collector {
    limit: usize,
    filter_hash: u32,
    /// The hash of the name after which the page begins, until that has come.
    after: Option<u64>,
    names: Vec<String>,
    total: u64,
    more: bool,
    notes: Vec<String>,
}

impl Collector {
    fn new(query: &Query<'_>, filter: &str) -> Result<Self, DiscoveryError> {
        let filter_hash = hash(filter) as u32;
        let after = query.cursor.map(|cursor| read_cursor(cursor, filter_hash)).transpose()?;
        Ok(Self { limit: query.limit, filter_hash, after, names: Vec::new(), total: 0, more: false, notes: Vec::new() })
    }

    fn offer(&mut self, name: &str) {
        self.total += 1;
        match self.after {
            Some(last) if hash(name) == last => self.after = None,
            Some(_) => {}
            None if self.names.len() < self.limit => self.names.push(name.to_owned()),
            None => self.more = true,
        }
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn into_page(self) -> Result<Page, DiscoveryError> {
        if self.after.is_some() {
            return Err(DiscoveryError::StaleCursor);
        }
        let last = self.names.last().filter(|_| self.more);
        let next = last.map(|last| format!("{:08x}{:016x}", self.filter_hash, hash(last)));
        Ok(Page { names: self.names, total: self.total, next, notes: self.notes })
    }
}

/// A cursor is the hash of its filter and of the last name of the page: names that come or go elsewhere in the list
/// between two pages then neither repeat nor hide others.
fn read_cursor(cursor: &str, filter_hash: u32) -> Result<u64, DiscoveryError> {
    if cursor.len() != 24 || !cursor.bytes().all(|each| each.is_ascii_hexdigit()) {
        return Err(DiscoveryError::BadCursor);
    }
    let (filter, name) = cursor.split_at(8);
    match u32::from_str_radix(filter, 16) {
        Ok(filter) if filter == filter_hash => u64::from_str_radix(name, 16).map_err(|_| DiscoveryError::BadCursor),
        _ => Err(DiscoveryError::ForeignCursor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(names: &[&str], limit: usize, cursor: Option<&str>) -> Result<Page, DiscoveryError> {
        let mut collector = Collector::new(&Query { filter: None, limit, cursor }, "x")?;
        for name in names {
            collector.offer(name);
        }
        collector.into_page()
    }

    #[test]
    fn pages_show_everything_once() {
        let names = ["a", "b", "c", "d", "e"];
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let page = page(&names, 2, cursor.as_deref()).unwrap();
            assert_eq!(page.total, 5);
            seen.extend(page.names);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, names);
        assert_eq!(page(&names, 5, None).unwrap().next, None);
    }

    #[test]
    fn a_changed_list_moves_no_page() {
        let next = page(&["a", "c", "e"], 2, None).unwrap().next;
        assert_eq!(page(&["a", "b", "c", "d", "e"], 2, next.as_deref()).unwrap().names, ["d", "e"]);
        assert_eq!(page(&["a", "e"], 2, next.as_deref()), Err(DiscoveryError::StaleCursor));
    }

    #[test]
    fn a_wrong_cursor_is_refused() {
        for cursor in ["", "zz", "0", "00000000000000000000000g", "ääääääääääää", "+00000000000000000000000"]
        {
            assert_eq!(page(&["a"], 1, Some(cursor)), Err(DiscoveryError::BadCursor), "{cursor}");
        }
        assert_eq!(page(&["a"], 1, Some("000000000000000000000000")), Err(DiscoveryError::ForeignCursor));
    }

    #[test]
    fn a_wrong_limit_or_filter_is_refused() {
        let access = Access::default();
        for limit in [0, MAX_LIMIT + 1] {
            let refused = list(&Query { limit, ..Query::default() }, access);
            assert_eq!(refused, Err(DiscoveryError::Limit(limit)));
        }
        let filter = "x".repeat(MAX_FILTER + 1);
        let refused = list(&Query { filter: Some(&filter), ..Query::default() }, access);
        assert_eq!(refused, Err(DiscoveryError::TooLong(filter.len())));
    }

    #[test]
    fn a_path_is_split_from_its_glob() {
        assert_eq!(split_path("/proc/self/exe:main*"), ("/proc/self/exe", "main*"));
        assert_eq!(split_path("/proc/self/exe"), ("/proc/self/exe", ""));
        assert_eq!(split_path("/no/such:a:b"), ("/no/such", "a:b"));
        assert_eq!(split_path("libc"), ("libc", ""));
        assert_eq!(BinaryFilter::of("tracepoint:x:y"), None);
        assert_eq!(
            BinaryFilter::of("usdt:libc:memory_*"),
            Some(BinaryFilter { path: "libc", glob: "memory_*", functions: false, probes: true })
        );
    }
}
