//! What this process may do, and how it gets what it lacks.

use std::{fs, path::Path};

use rustix::thread::CapabilitySet;
use schemars::JsonSchema;
use serde::Serialize;

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

/// What building the box of a script takes, and what bpftrace has in it: the launcher's, not the server's.
pub const FOR_SCRIPTS: &[Capability] = &[
    Capability { name: "CAP_SYS_ADMIN", number: 21, purpose: "make the namespaces of the box and mount what it shows" },
    Capability { name: "CAP_SETPCAP", number: 8, purpose: "take from bpftrace for good what it does not need" },
    Capability {
        name: "CAP_DAC_OVERRIDE",
        number: 1,
        purpose: "make control groups, in folders that are read-only even for root",
    },
    Capability { name: "CAP_BPF", number: 39, purpose: "bpftrace: load eBPF programs and maps" },
    Capability { name: "CAP_PERFMON", number: 38, purpose: "bpftrace: attach programs" },
    Capability { name: "CAP_DAC_READ_SEARCH", number: 2, purpose: "bpftrace: read tracefs and binaries" },
    Capability { name: "CAP_SYSLOG", number: 34, purpose: "bpftrace: resolve kernel addresses to symbols" },
    Capability { name: "CAP_SYS_PTRACE", number: 19, purpose: "bpftrace: attach to functions of others' processes" },
    Capability { name: "CAP_IPC_LOCK", number: 14, purpose: "bpftrace: buffers beyond the limit of locked memory" },
    Capability { name: "CAP_SYS_RESOURCE", number: 24, purpose: "bpftrace: lock memory before kernel 5.11" },
];

/// What it takes beyond that where the launcher is not root's.
pub const FOR_SCRIPTS_OF_OTHERS: &[Capability] = &[
    Capability { name: "CAP_SETUID", number: 7, purpose: "start bpftrace as root, which it insists on" },
    Capability { name: "CAP_SETGID", number: 6, purpose: "the same for its group" },
    Capability { name: "CAP_KILL", number: 5, purpose: "end a bpftrace that is root's" },
];

/// The inode numbers of the initial namespaces (`PROC_USER_INIT_INO` and others, include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Namespaces of which a container has at least one of its own.
const NAMESPACES: &[(&str, &str)] = &[
    ("/proc/self/ns/pid", INITIAL_PID_NAMESPACE),
    ("/proc/self/ns/uts", "uts:[4026531838]"),
    ("/proc/self/ns/ipc", "ipc:[4026531839]"),
    ("/proc/self/ns/cgroup", "cgroup:[4026531835]"),
];

/// What this process may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Process {
    /// The effective user
    pub uid: u32,
    /// Capabilities that mcptrace can make use of
    pub capabilities: Vec<Held>,
    /// Neither setcap nor sudo give it more than it has
    pub no_new_privs: bool,
    /// It is in a user namespace of its own, where capabilities do not reach the kernel's tracing
    pub in_user_namespace: bool,
    /// It is in a pid namespace of its own: pids in results are the host's
    pub in_pid_namespace: bool,
    /// What kind of container it is in, as far as it shows
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub container: Option<String>,
    /// The program's file, which setcap takes
    pub program: String,
    /// `CapEff`.
    #[serde(skip)]
    pub effective: u64,
    /// `CapPrm`.
    #[serde(skip)]
    pub permitted: u64,
    /// `CapBnd`.
    #[serde(skip)]
    pub bounding: u64,
}

/// A capability, and whether this process has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Held {
    /// As the kernel's header names it
    pub name: String,
    /// Whether it is in the effective set
    pub held: bool,
    /// What mcptrace needs it for
    pub purpose: String,
}

impl Process {
    /// Whether it has a capability.
    pub fn holds(&self, name: &str) -> bool {
        by_name(name).is_some_and(|capability| has(self.effective, capability))
    }

    /// The names of the capabilities that native probes need and it lacks.
    pub fn missing_for_native(&self) -> Vec<&'static str> {
        missing_of(self.effective)
    }

    /// How it gets capabilities, in words that start with a command.
    pub fn grant(&self, names: &[&str]) -> String {
        let lower = names.join(",").to_lowercase();
        let short: Vec<_> = names.iter().map(|name| format!("--cap-add {}", name.trim_start_matches("CAP_"))).collect();
        let bound = |name: &&str| by_name(name).is_some_and(|capability| !has(self.bounding, capability));
        if let Some(container) = &self.container {
            return format!("start the {container} container with {} (or --privileged)", short.join(" "));
        }
        if names.iter().any(bound) {
            return format!(
                "start it where its bounding set has {lower} (a systemd unit's CapabilityBoundingSet=, another login): \
                 neither setcap nor sudo can add to it here"
            );
        }
        if self.no_new_privs {
            return format!(
                "start it without no_new_privs (a systemd unit's NoNewPrivileges=no), as root or with {lower}: neither \
                 setcap nor sudo work under it"
            );
        }
        format!(
            "sudo setcap {}+ep {} (or run it as root; or run `mcptrace daemon` as root, whose socket this program then uses)",
            self.with(names),
            quoted(&self.program)
        )
    }

    /// Those names, and what it has or needs anyway: setcap takes away what it is not told.
    fn with(&self, names: &[&str]) -> String {
        let needed = self.missing_for_native();
        let wanted = |one: &&Capability| {
            names.contains(&one.name) || needed.contains(&one.name) || has(self.effective | self.permitted, one)
        };
        let mut all: Vec<_> = everything().filter(wanted).map(|one| one.name.to_lowercase()).collect();
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|name| seen.insert(name.clone()));
        all.join(",")
    }
}

/// The calling thread, which is what the kernel looks at. Asked by system calls, so that it is known without /proc.
pub fn process() -> Process {
    let program = std::env::current_exe().map_or_else(|_| "mcptrace".to_owned(), |path| path.display().to_string());
    let isolated = NAMESPACES.iter().any(|(link, initial)| elsewhere(link, initial));
    let marked = || container(|path| Path::new(path).exists(), std::env::var("container").ok());
    let effective = effective();
    Process {
        uid: rustix::process::geteuid().as_raw(),
        capabilities: held(effective, bounding().1, CAPABILITIES.iter()),
        no_new_privs: super::shed::came_with_no_new_privs(),
        in_user_namespace: elsewhere("/proc/self/ns/user", INITIAL_USER_NAMESPACE),
        in_pid_namespace: elsewhere("/proc/self/ns/pid", INITIAL_PID_NAMESPACE),
        // The marks alone do not tell: images made from containers keep them.
        container: isolated.then(marked).flatten(),
        program,
        effective,
        permitted: rustix::thread::capabilities(None).map_or(0, |sets| sets.permitted.bits()),
        bounding: bounding().0,
    }
}

/// Those of the capabilities that building the box of scripts takes that a set has, for root or for another user.
pub fn for_scripts(set: u64, is_root: bool) -> Vec<Held> {
    let others = FOR_SCRIPTS_OF_OTHERS.iter().filter(|_| !is_root);
    held(set, bounding().1, FOR_SCRIPTS.iter().chain(others))
}

/// Whether this program has capabilities of its file (setcap): whoever started it, and set its environment, may have less privilege.
pub fn is_by_file() -> bool {
    // SAFETY: getauxval reads a table that the kernel gave to the process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The effective capabilities of the calling thread, as a bit set.
pub fn effective() -> u64 {
    rustix::thread::capabilities(None).map_or(0, |sets| sets.effective.bits())
}

/// Whether the kernel shows its addresses to this thread.
pub fn has_syslog() -> bool {
    by_name("CAP_SYSLOG").is_some_and(|capability| has(effective(), capability))
}

/// The bounding set, and the set of capabilities that the kernel knows.
fn bounding() -> (u64, u64) {
    let asked = everything().map(|capability| CapabilitySet::from_bits_retain(1 << capability.number));
    asked.fold((0, 0), |(bounding, known), set| match rustix::thread::capability_is_in_bounding_set(set) {
        Ok(true) => (bounding | set.bits(), known | set.bits()),
        Ok(false) => (bounding, known | set.bits()),
        Err(_) => (bounding, known),
    })
}

/// Whether a set has a capability.
pub fn has(set: u64, capability: &Capability) -> bool {
    set & (1 << capability.number) != 0
}

/// The names of the capabilities that native probes need and this process lacks. `CAP_SYS_ADMIN` stands in for both, as
/// it did before 5.8.
pub fn missing_for_native() -> Vec<&'static str> {
    missing_of(effective())
}

fn by_name(name: &str) -> Option<&'static Capability> {
    everything().find(|capability| capability.name == name)
}

/// All that is known by name; some several times, for several purposes.
fn everything() -> impl Iterator<Item = &'static Capability> {
    CAPABILITIES.iter().chain(FOR_SCRIPTS).chain(FOR_SCRIPTS_OF_OTHERS)
}

fn missing_of(set: u64) -> Vec<&'static str> {
    let admin = CAPABILITIES.iter().any(|capability| capability.name == "CAP_SYS_ADMIN" && has(set, capability));
    let needed = |capability: &&Capability| matches!(capability.name, "CAP_BPF" | "CAP_PERFMON");
    let lacking = CAPABILITIES.iter().filter(needed).filter(|capability| !admin && !has(set, capability));
    lacking.map(|capability| capability.name).collect()
}

/// Capabilities that the kernel does not know yet (`CAP_BPF` before 5.8), or does not ask for any more, are left out.
fn held(effective: u64, known: u64, all: impl Iterator<Item = &'static Capability>) -> Vec<Held> {
    let row = |one: &Capability| Held {
        name: one.name.to_owned(),
        held: has(effective, one),
        purpose: one.purpose.to_owned(),
    };
    all.filter(|one| has(known, one) && (one.name != "CAP_SYS_RESOURCE" || locks_memory())).map(row).collect()
}

/// Whether maps count as locked memory: before Linux 5.11.
pub fn locks_memory() -> bool {
    let release = rustix::system::uname();
    let mut numbers = release.release().to_str().unwrap_or_default().split(['.', '-']).map(str::parse::<u32>);
    let (major, minor) = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    major.zip(minor).is_none_or(|version| version < (5, 11))
}

/// Whether a namespace is another than the initial one. Not, where it cannot be read.
fn elsewhere(link: &str, initial: &str) -> bool {
    fs::read_link(link).is_ok_and(|target| target != Path::new(initial))
}

/// The files and the variable by which container engines mark their containers.
fn container(exists: impl Fn(&str) -> bool, variable: Option<String>) -> Option<String> {
    let kinds =
        [("/.dockerenv", "docker"), ("/run/.containerenv", "podman"), ("/var/run/secrets/kubernetes.io", "kubernetes")];
    let kind = kinds.iter().find(|(file, _)| exists(file)).map(|(_, kind)| (*kind).to_owned());
    let named = |name: &String| {
        !name.is_empty()
            && name.len() <= 32
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
    };
    kind.or_else(|| variable.filter(named))
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    if path.chars().all(plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0x1ff_ffff_ffff;

    #[test]
    fn sys_admin_stands_in_for_what_native_probes_need() {
        assert_eq!(missing_of(0), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_of(1 << 39), ["CAP_PERFMON"]);
        assert!(missing_of(1 << 21).is_empty());
    }

    #[test]
    fn the_sets_are_those_of_the_status_file() {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let ours = everything().fold(0, |all, one| all | 1 << one.number);
        let process = process();
        assert_eq!(process.effective, set("CapEff:"));
        assert_eq!(process.bounding, set("CapBnd:") & ours);
    }

    #[test]
    fn capabilities_that_the_kernel_does_not_know_are_left_out() {
        let rows = held(1 << 21, ALL >> 3, CAPABILITIES.iter());
        assert!(rows.iter().all(|row| row.name != "CAP_BPF" && row.name != "CAP_PERFMON"));
        assert!(rows.iter().find(|row| row.name == "CAP_SYS_ADMIN").unwrap().held);
        let here = CAPABILITIES.len() - usize::from(!locks_memory());
        assert_eq!(held(0, ALL, CAPABILITIES.iter()).len(), here);
    }

    #[test]
    fn the_remedy_is_one_that_works_here() {
        let process = Process { bounding: ALL, program: "/opt/it's".into(), ..Process::default() };
        assert!(
            process
                .grant(&["CAP_BPF", "CAP_PERFMON"])
                .starts_with(r"sudo setcap cap_bpf,cap_perfmon+ep '/opt/it'\''s'")
        );
        let stuck = Process { no_new_privs: true, ..process.clone() };
        assert!(stuck.grant(&["CAP_BPF"]).contains("NoNewPrivileges=no"));
        let bound = Process { bounding: 1, ..process.clone() };
        assert!(bound.grant(&["CAP_BPF"]).contains("bounding set"));
        let boxed = Process { container: Some("docker".into()), ..process };
        assert!(boxed.grant(&["CAP_BPF", "CAP_SYS_ADMIN"]).contains("--cap-add BPF --cap-add SYS_ADMIN"));
    }

    #[test]
    fn what_setcap_gave_before_is_not_taken_away() {
        let grant = |effective| Process { effective, bounding: ALL, ..Process::default() }.grant(&["CAP_SYSLOG"]);
        assert!(grant(0).starts_with("sudo setcap cap_bpf,cap_perfmon,cap_syslog+ep "), "{}", grant(0));
        assert!(grant(1 << 39 | 1 << 38 | 1 << 2).contains("cap_bpf,cap_perfmon,cap_syslog,cap_dac_read_search+ep"));
    }

    #[test]
    fn containers_are_known_by_their_marks() {
        assert_eq!(container(|path| path == "/.dockerenv", None).as_deref(), Some("docker"));
        assert_eq!(container(|_| false, Some("systemd-nspawn".into())).as_deref(), Some("systemd-nspawn"));
        assert_eq!(container(|_| false, Some("a b; rm".into())), None);
        assert_eq!(container(|_| false, None), None);
    }
}
