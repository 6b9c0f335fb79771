//! Where programs attach. Pure but for [`Function::find`], which reads symbols.

use std::{
    borrow::Cow,
    fmt, fs,
    path::{Path, PathBuf},
};

use super::{
    discovery::binary::{self, Binary, BinaryError},
    layout::Layout,
};

/// A program of an object and where it attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The function in the object.
    pub program: &'static str,
    /// Where it attaches.
    pub hook: Hook,
    /// Whether the probe can do without it.
    pub need: Need,
}

/// Where a program attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A BTF tracepoint, by name.
    Tracepoint(&'static str),
    /// The return of a kernel function, by its name in BTF (fexit). Not for functions that a compiler may have inlined.
    Return(&'static str),
    /// The clock of every CPU (`PERF_COUNT_SW_CPU_CLOCK`), so many times a second. There is no clock of a single process: the
    /// kernel would sample only the thread that is named, so programs filter for themselves.
    Clock {
        /// Samples a second and CPU.
        hertz: u32,
    },
    /// Every page fault on every CPU that needed I/O, or every one that did not (`PERF_COUNT_SW_PAGE_FAULTS_MAJ` and `_MIN`).
    PageFaults {
        /// Those that did.
        major: bool,
    },
    /// A function in a program or library, at entry or return as the program's own kind says. A program may have several.
    Function(Function),
}

/// A function in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// What people call it: `libc:malloc`.
    pub label: Cow<'static, str>,
    /// The file. Empty in the catalogue, where only the run knows it.
    pub path: PathBuf,
    /// Its offset in the file.
    pub offset: u64,
    /// The process, else all that have mapped the file.
    pub pid: Option<u32>,
    /// What `bpf_get_attach_cookie` gives (5.15 and later).
    pub cookie: Option<u64>,
    /// The offset in the file of a counter that is raised while it is attached.
    pub semaphore: Option<u64>,
}

/// Whether a probe can do without a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it the probe cannot run.
    Required,
    /// Attached if this kernel has the hook.
    Optional,
    /// Attached if this kernel has the hook and not the one before it in the list.
    Alternative,
}

impl Attach {
    /// A program at a BTF tracepoint that it needs.
    pub const fn tracepoint(program: &'static str, tracepoint: &'static str) -> Self {
        Self { program, hook: Hook::Tracepoint(tracepoint), need: Need::Required }
    }

    /// A program at the return of a kernel function, for kernels that have no tracepoint there.
    pub const fn kernel_return(program: &'static str, function: &'static str) -> Self {
        Self { program, hook: Hook::Return(function), need: Need::Required }
    }

    /// A program that samples by the clock.
    pub const fn clock(program: &'static str, hertz: u32) -> Self {
        Self { program, hook: Hook::Clock { hertz }, need: Need::Required }
    }

    /// A program at page faults, major or minor.
    pub const fn page_faults(program: &'static str, major: bool) -> Self {
        Self { program, hook: Hook::PageFaults { major }, need: Need::Required }
    }

    /// A program at functions that only the run knows, for the catalogue.
    pub const fn functions(program: &'static str, label: &'static str) -> Self {
        let function = Function {
            label: Cow::Borrowed(label),
            path: PathBuf::new(),
            offset: 0,
            pid: None,
            cookie: None,
            semaphore: None,
        };
        Self { program, hook: Hook::Function(function), need: Need::Required }
    }

    /// A program at a function.
    pub fn function(program: &'static str, function: Function) -> Self {
        Self { program, hook: Hook::Function(function), need: Need::Required }
    }

    /// The same, attached if this kernel has the hook.
    #[must_use]
    pub const fn optional(mut self) -> Self {
        self.need = Need::Optional;
        self
    }

    /// The same, attached if this kernel does not have the one before it.
    #[must_use]
    pub const fn alternative(mut self) -> Self {
        self.need = Need::Alternative;
        self
    }
}

impl Hook {
    /// The tracepoint, if it is one.
    pub fn tracepoint(&self) -> Option<&'static str> {
        match self {
            Self::Tracepoint(name) => Some(name),
            Self::Return(_) | Self::Clock { .. } | Self::PageFaults { .. } | Self::Function(_) => None,
        }
    }

    /// The way to attach that it needs, as `bpf_info` names it.
    pub fn way(&self) -> &'static str {
        match self {
            Self::Tracepoint(_) => "tp_btf",
            Self::Return(_) => "fexit",
            Self::Clock { .. } | Self::PageFaults { .. } => "perf_event",
            Self::Function(_) => "uprobe",
        }
    }

    fn exists(&self, layout: &Layout) -> bool {
        match self {
            Self::Tracepoint(name) => layout.has_tracepoint(name),
            Self::Return(name) => layout.has_function(name),
            Self::Clock { .. } | Self::PageFaults { .. } | Self::Function(_) => true,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tracepoint(name) => write!(formatter, "tp_btf/{name}"),
            Self::Return(name) => write!(formatter, "fexit/{name}"),
            Self::Clock { .. } => write!(formatter, "perf_event/cpu-clock"),
            Self::PageFaults { major: true } => write!(formatter, "perf_event/major-faults"),
            Self::PageFaults { major: false } => write!(formatter, "perf_event/minor-faults"),
            Self::Function(function) => write!(formatter, "uprobe/{}", function.label),
        }
    }
}

/// Those that this kernel gets: of alternatives the first that it has. An error names the required hook that it lacks.
pub fn resolve(attach: &[Attach], layout: &Layout) -> Result<Vec<Attach>, String> {
    let mut resolved = Vec::new();
    for group in groups(attach) {
        match group.iter().find(|one| one.hook.exists(layout)) {
            Some(one) => resolved.push(one.clone()),
            None if group[0].need == Need::Required => return Err(missing(group)),
            None => {}
        }
    }
    Ok(resolved)
}

/// The hooks in words, one string for each with its alternatives.
pub fn names(attach: &[Attach]) -> Vec<String> {
    let name = |group: &[Attach]| {
        let hooks: Vec<_> = group.iter().map(|one| one.hook.to_string()).collect();
        let optional = if group[0].need == Need::Optional { " (optional)" } else { "" };
        hooks.join(" or ") + optional
    };
    groups(attach).map(name).collect()
}

fn groups(attach: &[Attach]) -> impl Iterator<Item = &[Attach]> {
    attach.chunk_by(|_, next| next.need == Need::Alternative)
}

fn missing(group: &[Attach]) -> String {
    let names: Vec<_> = group.iter().filter_map(|one| one.hook.tracepoint()).map(|name| format!("`{name}`")).collect();
    format!("it has no BTF tracepoint {}", names.join(" or "))
}

impl Function {
    /// A function of a program or library by its symbol. The file is a path, or a name such as `libc`: with a process, of the file
    /// that it has mapped under that name, in its own mount namespace.
    pub fn find(file: &str, symbol: &str, pid: Option<u32>) -> Result<Self, FunctionError> {
        let path = locate(file, pid)?;
        let opened = binary::open(&path.to_string_lossy())?;
        let binary = Binary::parse(&opened)?;
        let offset = binary.function(symbol).and_then(|function| binary.offset(function.address));
        let offset = offset.ok_or_else(|| FunctionError { message: format!("`{file}` has no function `{symbol}`") })?;
        let path = opened.path().to_owned();
        Ok(Self { label: format!("{file}:{symbol}").into(), path, offset, pid, cookie: None, semaphore: None })
    }
}

/// Why a function was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FunctionError {
    /// What is wrong.
    pub message: String,
}

impl From<BinaryError> for FunctionError {
    fn from(error: BinaryError) -> Self {
        Self { message: error.to_string() }
    }
}

/// The path by which this process reaches a file of another: relative ones from where that one works, names among what it has mapped.
/// Without a process the name itself, which is looked for in the usual directories.
pub fn locate(file: &str, pid: Option<u32>) -> Result<PathBuf, FunctionError> {
    let Some(pid) = pid else { return Ok(PathBuf::from(file)) };
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    if let Some(path) = file.strip_prefix('/') {
        return Ok(root.join(path));
    }
    if file.contains('/') {
        return Ok(PathBuf::from(format!("/proc/{pid}/cwd")).join(file));
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"));
    let maps =
        maps.map_err(|error| FunctionError { message: format!("cannot read the mappings of process {pid}: {error}") })?;
    let mapped = mapped_file(&maps, file).and_then(|path| path.strip_prefix("/").ok());
    let lacks = || FunctionError { message: format!("process {pid} has mapped no file `{file}`") };
    mapped.map(|path| root.join(path)).ok_or_else(lacks)
}

/// The first file of `/proc/PID/maps` that is called so, but for a version: `libc` is `libc.so.6` and `libc-2.31.so`.
fn mapped_file<'a>(maps: &'a str, name: &str) -> Option<&'a Path> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    paths.into_iter().find(|path| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        let rest = file.strip_prefix(name);
        rest.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(".so") || rest.starts_with('-') && rest.contains(".so")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOOKS: &[Attach] = &[
        Attach::tracepoint("switch", "sched_switch"),
        Attach::tracepoint("new", "block_io_start"),
        Attach::tracepoint("old", "block_rq_insert").alternative(),
        Attach::kernel_return("oldest", "blk_mq_start").alternative(),
        Attach::tracepoint("extra", "contention_begin").optional(),
        Attach::clock("tick", 99),
    ];

    fn programs(tracepoints: &[&'static str]) -> Result<Vec<&'static str>, String> {
        let resolved = resolve(HOOKS, &Layout::with_tracepoints(tracepoints))?;
        Ok(resolved.iter().map(|one| one.program).collect())
    }

    #[test]
    fn of_alternatives_the_first_wins_and_what_is_optional_may_lack() {
        assert_eq!(
            programs(&["sched_switch", "block_rq_insert", "block_io_start"]).unwrap(),
            ["switch", "new", "tick"]
        );
        assert_eq!(
            programs(&["sched_switch", "block_rq_insert", "contention_begin"]).unwrap(),
            ["switch", "old", "extra", "tick"]
        );
    }

    #[test]
    fn a_required_hook_that_lacks_is_named_with_its_alternatives() {
        let error = programs(&["sched_switch"]).unwrap_err();
        assert_eq!(error, "it has no BTF tracepoint `block_io_start` or `block_rq_insert`");
    }

    #[test]
    fn hooks_are_named_with_their_kind() {
        assert_eq!(
            names(HOOKS),
            [
                "tp_btf/sched_switch",
                "tp_btf/block_io_start or tp_btf/block_rq_insert or fexit/blk_mq_start",
                "tp_btf/contention_begin (optional)",
                "perf_event/cpu-clock"
            ]
        );
    }

    #[test]
    fn a_library_is_found_among_what_a_process_has_mapped() {
        let maps = "7f00-7f01 r--p 0 00:1 1   /usr/lib/libcap.so.2\n7f01-7f02 r-xp 0 00:1 2   /usr/lib/libc.so.6\n";
        assert_eq!(mapped_file(maps, "libc"), Some(Path::new("/usr/lib/libc.so.6")));
        assert_eq!(mapped_file("1-2 r--p 0 0:1 1 /lib/libc-2.31.so", "libc"), Some(Path::new("/lib/libc-2.31.so")));
        assert_eq!(mapped_file(maps, "libm"), None);
    }
}
