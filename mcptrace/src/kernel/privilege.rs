//! What this process may do.

use std::fs;

/// A capability: its name and its number (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As the kernel's header names it.
    pub name: &'static str,
    /// Its bit in `CapEff`.
    pub number: u32,
    /// What mcptrace needs it for.
    pub purpose: &'static str,
}

/// What mcptrace can make use of.
pub const CAPABILITIES: &[Capability] = &[
    Capability { name: "CAP_BPF", number: 39, purpose: "load eBPF programs and maps" },
    Capability {
        name: "CAP_PERFMON",
        number: 38,
        purpose: "attach programs to tracepoints and read kernel memory in them",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        number: 21,
        purpose: "measure overhead, mount tracefs, list other eBPF programs",
    },
    Capability { name: "CAP_SYSLOG", number: 34, purpose: "resolve kernel addresses to symbols" },
    Capability { name: "CAP_DAC_READ_SEARCH", number: 2, purpose: "read tracefs and other users' binaries" },
    Capability { name: "CAP_SYS_PTRACE", number: 19, purpose: "read other users' process maps" },
    Capability { name: "CAP_SYS_RESOURCE", number: 24, purpose: "lock memory for eBPF maps before kernel 5.11" },
];

/// The effective capabilities of this process, as a bit set.
pub fn effective() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_effective(&status)
}

/// Whether a set has a capability.
pub fn has(set: u64, capability: &Capability) -> bool {
    set & (1 << capability.number) != 0
}

/// The names of the capabilities that native probes need and this process lacks. `CAP_SYS_ADMIN` stands in for both, as it did
/// before 5.8.
pub fn missing_for_native() -> Vec<&'static str> {
    missing_of(effective())
}

fn missing_of(set: u64) -> Vec<&'static str> {
    let admin = CAPABILITIES.iter().any(|capability| capability.name == "CAP_SYS_ADMIN" && has(set, capability));
    let needed = |capability: &&Capability| matches!(capability.name, "CAP_BPF" | "CAP_PERFMON");
    let lacking = CAPABILITIES.iter().filter(needed).filter(|capability| !admin && !has(set, capability));
    lacking.map(|capability| capability.name).collect()
}

fn parse_effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_from_the_status_file() {
        assert_eq!(parse_effective("Name:\tx\nCapEff:\t000001fffffeffff\nCapBnd:\t0\n"), 0x1ff_fffe_ffff);
        assert_eq!(parse_effective(""), 0);
    }

    #[test]
    fn sys_admin_stands_in_for_what_native_probes_need() {
        assert_eq!(missing_of(0), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_of(1 << 39), ["CAP_PERFMON"]);
        assert!(missing_of(1 << 21).is_empty());
    }
}
