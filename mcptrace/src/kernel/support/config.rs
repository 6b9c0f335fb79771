//! The options that the running kernel was built with.

use std::{collections::BTreeMap, fs::File, io::Read as _};

/// The longest configuration that is read, in bytes; a distribution's has 300 KB.
const LONGEST: u64 = 4 << 20;

/// The kernel's own copy (`CONFIG_IKCONFIG_PROC`).
const COMPRESSED: &str = "/proc/config.gz";

/// The options that decide what can be traced.
const MATTER: &[&str] = &[
    "BPF_SYSCALL",
    "BPF_JIT",
    "BPF_EVENTS",
    "BPF_LSM",
    "BPF_KPROBE_OVERRIDE",
    "BPF_UNPRIV_DEFAULT_OFF",
    "DEBUG_INFO_BTF",
    "PERF_EVENTS",
    "KPROBES",
    "KPROBE_EVENTS",
    "UPROBES",
    "UPROBE_EVENTS",
    "FPROBE",
    "FUNCTION_TRACER",
    "DYNAMIC_FTRACE",
    "DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
    "FTRACE_SYSCALLS",
    "CGROUPS",
    "CGROUP_BPF",
    "KALLSYMS_ALL",
    "SCHEDSTATS",
    "STACKTRACE",
    "PREEMPT_RT",
    "LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
    "LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY",
];

/// What was found; empty, and without a source, where the kernel does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// The file.
    pub(super) source: Option<String>,
    options: BTreeMap<String, String>,
}

impl Config {
    /// Reads it from where kernels and distributions put it.
    pub(super) fn read(release: &str) -> Self {
        let files = [
            COMPRESSED.to_owned(),
            format!("/boot/config-{release}"),
            format!("/lib/modules/{release}/config"),
            format!("/usr/lib/modules/{release}/config"),
        ];
        files.into_iter().find_map(|file| Some(Self::parse(&text(&file)?, file))).unwrap_or_default()
    }

    fn parse(text: &str, source: String) -> Self {
        let option = |line: &str| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            MATTER.contains(&name).then(|| (name.to_owned(), value.trim_matches('"').to_owned()))
        };
        Self { options: text.lines().filter_map(option).collect(), source: Some(source) }
    }

    /// Whether an option is off. `None` where the kernel does not tell.
    pub(super) fn is_off(&self, name: &str) -> Option<bool> {
        debug_assert!(MATTER.contains(&name), "{name} is not kept");
        self.source.as_ref().map(|_| !self.options.contains_key(name))
    }

    /// All options that matter, `n` for those that are off.
    pub(super) fn facts(&self) -> BTreeMap<String, String> {
        if self.source.is_none() {
            return BTreeMap::new();
        }
        let value = |name: &str| self.options.get(name).cloned().unwrap_or_else(|| "n".to_owned());
        MATTER.iter().map(|name| (format!("CONFIG_{name}"), value(name))).collect()
    }
}

fn text(path: &str) -> Option<String> {
    let file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    if path == COMPRESSED {
        flate2::read::GzDecoder::new(file).take(LONGEST).read_to_end(&mut bytes).ok()?;
    } else {
        file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    }
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_on_off_or_unknown() {
        let text = "# CONFIG_KPROBES is not set\nCONFIG_UPROBES=y\nCONFIG_LSM=\"bpf\"\nCONFIG_KPROBES_ON_FTRACE=y\n";
        let config = Config::parse(text, "file".to_owned());
        assert_eq!((config.is_off("KPROBES"), config.is_off("UPROBES")), (Some(true), Some(false)));
        assert_eq!(config.facts()["CONFIG_UPROBES"], "y");
        assert_eq!(config.facts()["CONFIG_KPROBES"], "n");
        assert_eq!(config.facts().len(), MATTER.len());
        assert_eq!(Config::default().is_off("KPROBES"), None);
        assert!(Config::default().facts().is_empty());
    }

    #[test]
    fn a_kernel_that_tells_nothing_is_no_error() {
        assert!(text("/no/such/file").is_none());
        assert!(text("/dev/null").is_none());
    }
}
