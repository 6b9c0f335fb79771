//! Names of functions, of the kernel and of files, by blazesym.
//!
//! Its symbolizer is kept on a thread of its own, because it may not leave the thread that made it: so what it read serves all
//! executions, and nobody waits longer for it than they want to. A while after the last question the thread ends and frees all.
//!
//! Only symbol tables are read, not DWARF: that is bounded work, and inlined functions count for the one they are in.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use blazesym::{
    MaybeDefault,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Elf, Kernel, Source},
    },
};

use cpp_demangle::DemangleOptions;

use super::privilege;
use crate::{memory, text::untrusted};

/// How long one question may take, at most. Who stops an execution waits for its names, and for those of whoever looks at it meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what was read is kept after the last question. Files stay open meanwhile, also those that are deleted.
const KEEP: Duration = Duration::from_secs(10);
/// Files whose symbols are kept, at most; one more, and all are let go.
const MOST_FILES: usize = 256;
/// By how many bytes the process may grow while symbols are kept, at most; then all are let go. Those of a large compiler take 20 MB.
const MOST_GROWTH: u64 = 64 << 20;
/// How far behind the beginning of a function of the kernel its code may be. kallsyms has no sizes: what lies behind the last symbol, such as
/// an eBPF program that was loaded later or is gone, would have that one's name.
const LARGEST_IN_KERNEL: usize = 1 << 20;
/// The longest name, in bytes.
const LONGEST_NAME: usize = 300;
/// The longest that is demangled, in bytes; a longer one stays as it is.
const LONGEST_DEMANGLED: usize = 8192;

/// What is to be named.
#[derive(Debug, Default)]
pub struct Question {
    /// Addresses in the kernel.
    pub kernel: Vec<u64>,
    /// Files, and offsets in them.
    pub files: Vec<(PathBuf, Vec<u64>)>,
}

/// Names, as far as there are any.
#[derive(Debug, Default)]
pub struct Names {
    /// Of addresses in the kernel.
    pub kernel: HashMap<u64, String>,
    /// Of offsets, for each file of the question.
    pub files: Vec<HashMap<u64, String>>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// Answers a question, with what is there when its time is up.
pub fn ask(question: Question) -> Names {
    let has_kernel = !question.kernel.is_empty();
    let mut names = ask_thread(question).unwrap_or_else(|| Names {
        notes: vec![format!("functions were not named: that takes more than {} s here", PATIENCE.as_secs())],
        ..Names::default()
    });
    if has_kernel && names.kernel.is_empty() {
        names.notes.push(hidden());
    }
    names
}

/// Why the kernel's symbols have no addresses (kernel/kallsyms.c, `kallsyms_show_value`).
fn hidden() -> String {
    let setting = std::fs::read_to_string("/proc/sys/kernel/kptr_restrict").unwrap_or_default();
    if setting.trim() == "2" {
        return "kernel functions have no names: kptr_restrict is 2, which hides their addresses from everybody".into();
    }
    if !privilege::has_syslog() {
        return "kernel functions have no names: their addresses are hidden without CAP_SYSLOG".into();
    }
    "kernel functions have no names: /proc/kallsyms cannot be read".into()
}

struct Job {
    question: Question,
    until: Instant,
    answer: SyncSender<Names>,
}

fn ask_thread(question: Question) -> Option<Names> {
    static THREAD: Mutex<Option<Sender<Job>>> = Mutex::new(None);
    let (answer, answered) = sync_channel(1);
    let job = Job { question, until: Instant::now() + PATIENCE, answer };
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let unsent = match thread.as_ref() {
        Some(jobs) => jobs.send(job).err().map(|unsent| unsent.0),
        None => Some(job),
    };
    if let Some(job) = unsent {
        let jobs = start()?;
        jobs.send(job).ok()?;
        *thread = Some(jobs);
    }
    drop(thread);
    // The thread looks at the clock between files; one file may take longer than all.
    answered.recv_timeout(PATIENCE + Duration::from_secs(1)).ok()
}

fn start() -> Option<Sender<Job>> {
    let (sender, jobs) = channel();
    thread::Builder::new().name("mcptrace-names".into()).spawn(move || serve(&jobs)).ok()?;
    Some(sender)
}

fn serve(jobs: &Receiver<Job>) {
    let mut kept = Kept::new();
    while let Ok(job) = jobs.recv_timeout(KEEP) {
        kept.files += job.question.files.len();
        if kept.files > MOST_FILES {
            kept = Kept { files: job.question.files.len(), ..Kept::new() };
        }
        // Nobody may be waiting any more.
        let _ = job.answer.send(names(&kept.symbolizer, &job));
        if memory::own() > kept.own + MOST_GROWTH {
            drop(kept);
            memory::release_free();
            kept = Kept::new();
        }
    }
    drop(kept);
    memory::release_free();
}

/// What was read, and how much there is of it.
struct Kept {
    symbolizer: Symbolizer,
    /// Files that were asked about, at least once each.
    files: usize,
    /// The process's own memory before.
    own: u64,
}

impl Kept {
    fn new() -> Self {
        Self { symbolizer: symbolizer(), files: 0, own: memory::own() }
    }
}

fn symbolizer() -> Symbolizer {
    Symbolizer::builder().enable_code_info(false).enable_inlined_fns(false).enable_demangling(false).build()
}

fn names(symbolizer: &Symbolizer, job: &Job) -> Names {
    let mut names = Names { kernel: of_kernel(symbolizer, &job.question.kernel), ..Names::default() };
    for (path, offsets) in &job.question.files {
        let in_time = Instant::now() < job.until;
        names.files.push(if in_time { of_file(symbolizer, path, offsets) } else { HashMap::new() });
        if !in_time && names.notes.is_empty() {
            names.notes.push(format!("naming functions took longer than {} s: some have no name", PATIENCE.as_secs()));
        }
    }
    names
}

fn of_kernel(symbolizer: &Symbolizer, addresses: &[u64]) -> HashMap<u64, String> {
    if addresses.is_empty() {
        return HashMap::new();
    }
    // Only kallsyms: it knows modules and eBPF programs, and an image would have to be found and matched.
    let kernel =
        Kernel { kallsyms: MaybeDefault::Default, vmlinux: MaybeDefault::None, debug_syms: false, ..Kernel::default() };
    named(symbolizer, &Source::Kernel(kernel), Input::AbsAddr(addresses), LARGEST_IN_KERNEL)
}

fn of_file(symbolizer: &Symbolizer, path: &PathBuf, offsets: &[u64]) -> HashMap<u64, String> {
    let elf = Elf { debug_syms: false, ..Elf::new(path) };
    named(symbolizer, &Source::Elf(elf), Input::FileOffset(offsets), usize::MAX)
}

/// A symbol as its language writes it. Only what is mangled: a function of C called `i` is no `int`, which is what a bare `i` means in the
/// encoding of types of C++.
pub(crate) fn demangled(symbol: &str) -> Cow<'_, str> {
    let mut name = Bounded(String::new());
    let written = if let Ok(mangled) = rustc_demangle::try_demangle(symbol) {
        write!(name, "{mangled:#}").is_ok()
    } else if is_mangled(symbol) {
        let mangled = cpp_demangle::Symbol::new(symbol);
        mangled.is_ok_and(|mangled| mangled.structured_demangle(&mut name, &DemangleOptions::default()).is_ok())
    } else {
        false
    };
    if written { name.0.into() } else { symbol.into() }
}

/// Whether a symbol has the form of Rust's or C++'s encodings.
pub(crate) fn is_mangled(symbol: &str) -> bool {
    ["_Z", "__Z", "_R"].iter().any(|start| symbol.starts_with(start))
}

/// Text that refuses to grow without end: a short symbol can stand for a name of gigabytes, by referring to its own parts.
struct Bounded(String);

impl std::fmt::Write for Bounded {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        if self.0.len() + part.len() > LONGEST_DEMANGLED {
            return Err(std::fmt::Error);
        }
        self.0.push_str(part);
        Ok(())
    }
}

fn named(symbolizer: &Symbolizer, source: &Source<'_>, input: Input<&[u64]>, largest: usize) -> HashMap<u64, String> {
    let places = input.into_inner();
    let symbols = match symbolizer.symbolize(source, input) {
        Ok(symbols) => symbols,
        Err(error) => {
            tracing::debug!(?source, %error, "no names");
            return HashMap::new();
        }
    };
    let name = |(place, symbol): (&u64, &Symbolized<'_>)| match symbol {
        Symbolized::Sym(symbol) if symbol.offset > largest => None,
        Symbolized::Sym(symbol) => Some((*place, untrusted(demangled(&symbol.name).as_bytes(), LONGEST_NAME))),
        Symbolized::Unknown(_) => None,
    };
    places.iter().zip(&symbols).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::demangled;

    #[test]
    fn only_what_is_mangled_is_demangled() {
        for (symbol, name) in [
            ("i", "i"),
            ("s", "s"),
            ("re", "re"),
            ("Pc", "Pc"),
            ("_Z3addii", "add(int, int)"),
            ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_Zbroken", "_Zbroken"),
        ] {
            assert_eq!(demangled(symbol), name);
        }
    }

    /// Each argument is a function of the one before, twice: the name doubles with each.
    #[test]
    fn a_symbol_that_stands_for_an_endless_name_stays_as_it_is() {
        let of = |depth: usize| {
            let digit = |index: usize| char::from_digit(index as u32, 36).unwrap().to_ascii_uppercase();
            let known = |index: usize| if index == 0 { "S_".to_owned() } else { format!("S{}_", digit(index - 1)) };
            (0..depth).fold("_Z1fFvvE".to_owned(), |symbol, index| format!("{symbol}Fv{0}{0}E", known(index)))
        };
        assert!(demangled(&of(3)).starts_with("f(") && demangled(&of(3)).len() < 300, "{}", demangled(&of(3)));
        assert_eq!(demangled(&of(30)), of(30));
    }
}
