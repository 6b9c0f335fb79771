//! What the kernel shows in /proc and /sys. Every file may be missing.

use std::{
    fs::{self, File},
    io::{self, Read as _},
};

use super::{Btf, Cpus, Place, Security, config::Config, explain::Facts};
use crate::kernel::{
    btf::VMLINUX,
    privilege::{self, Process},
    tracefs::{self, MOUNT_COMMAND, Tracefs},
};

/// The longest file that is read whole, in bytes: a mount table of a host with thousands of containers.
const LONGEST: u64 = 4 << 20;

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) release: String,
    pub(super) btf: Btf,
    pub(super) config: Config,
    pub(super) security: Security,
    pub(super) tracefs: Place,
    pub(super) cgroup2: Place,
    process: Process,
}

impl Machine {
    /// Reads the running system.
    pub(super) fn read() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let config = Config::read(&release);
        let mounts = file("/proc/self/mounts").unwrap_or_default();
        let process = privilege::process();
        Self {
            btf: btf(),
            security: security(&config),
            tracefs: tracefs(tracefs::state(), &process),
            cgroup2: cgroup2(&mounts),
            release,
            config,
            process,
        }
    }

    /// What reasons are made of.
    pub(super) fn facts(&self, no_kernel: Option<String>) -> Facts {
        Facts {
            version: version(&self.release),
            release: self.release.clone(),
            process: self.process.clone(),
            config: self.config.clone(),
            lockdown: self.security.lockdown.clone(),
            modules: self.security.modules.clone(),
            memlock_bytes: self.security.memlock_bytes,
            tracefs: self.tracefs.clone(),
            no_kernel,
        }
    }
}

/// Processors that run and that there may be.
pub(super) fn cpus() -> Cpus {
    let online = aya::util::online_cpus().map_or(1, |cpus| cpus.len() as u32);
    Cpus { online, possible: crate::kernel::attached::possible_cpus() }
}

fn btf() -> Btf {
    let size_bytes = fs::metadata(VMLINUX).map_or(0, |data| data.len());
    let mut magic = [0_u8; 2];
    // `BTF_MAGIC` (include/uapi/linux/btf.h), in the byte order of the machine.
    let read = File::open(VMLINUX).and_then(|mut file| file.read_exact(&mut magic));
    let reason = match read {
        Ok(()) if u16::from_ne_bytes(magic) == 0xeb9f => None,
        Ok(()) => Some(format!("{VMLINUX} is not BTF")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Some(format!("{VMLINUX} is empty")),
        Err(error) => Some(format!("{VMLINUX}: {error}")),
    };
    Btf { present: reason.is_none(), path: VMLINUX.to_owned(), size_bytes, reason }
}

fn security(config: &Config) -> Security {
    let (lockdown, lockdown_source) = lockdown(file("/sys/kernel/security/lockdown").as_deref(), config);
    Security {
        lockdown,
        lockdown_source: Some(lockdown_source),
        modules: file("/sys/kernel/security/lsm").map(|list| list.trim().to_owned()),
        unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
        kptr_restrict: number("/proc/sys/kernel/kptr_restrict"),
        memlock_bytes: rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
    }
}

/// The state of lockdown and how it is known. The file has the state in brackets: `none [integrity] confidentiality`.
fn lockdown(text: Option<&str>, config: &Config) -> (String, String) {
    if let Some(state) = text.and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0)) {
        return (state.to_owned(), "/sys/kernel/security/lockdown".to_owned());
    }
    let forced = |option| config.is_off(option) == Some(false);
    let unmounted = "/sys/kernel/security/lockdown cannot be read";
    for (option, state) in [
        ("LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY", "confidentiality"),
        ("LOCK_DOWN_KERNEL_FORCE_INTEGRITY", "integrity"),
    ] {
        if forced(option) {
            return (state.to_owned(), format!("{unmounted}, but the kernel is built with CONFIG_{option}"));
        }
    }
    ("unknown".to_owned(), format!("{unmounted} (mount -t securityfs securityfs /sys/kernel/security)"))
}

fn tracefs(state: Tracefs, process: &Process) -> Place {
    match state {
        Tracefs::MountedAt(at) => {
            Place { mounted_at: Some(at.display().to_string()), readable: true, ..Place::default() }
        }
        Tracefs::NotReadable { at, reason } => Place {
            reason: Some(format!("tracefs at {} cannot be read: {reason}", at.display())),
            remedy: Some(process.grant(&["CAP_DAC_READ_SEARCH"])),
            mounted_at: Some(at.display().to_string()),
            readable: false,
        },
        Tracefs::NotMounted => Place {
            reason: Some("tracefs is not mounted: classic tracepoints cannot be listed or attached".to_owned()),
            remedy: Some(format!("sudo {MOUNT_COMMAND}")),
            ..Place::default()
        },
    }
}

fn cgroup2(mounts: &str) -> Place {
    match mount_of(mounts, "cgroup2") {
        Some(mount) => Place {
            readable: fs::read_dir(&mount).is_ok(),
            mounted_at: Some(mount),
            reason: mount_of(mounts, "cgroup").map(|first| {
                format!(
                    "control groups of version 1 are mounted too ({first}): containers in them are named only while their processes run, and filters cannot tell them apart (filter by pid with descendants)"
                )
            }),
            remedy: mount_of(mounts, "cgroup").map(|_| "boot with systemd.unified_cgroup_hierarchy=1, if containers run here".to_owned()),
        },
        None => Place {
            reason: Some("cgroup2 is not mounted: filters by control group or container do not work".to_owned()),
            remedy: Some("sudo mount -t cgroup2 none /sys/fs/cgroup".to_owned()),
            ..Place::default()
        },
    }
}

/// Where the first file system of a type is mounted (`proc_pid_mounts(5)`).
fn mount_of(mounts: &str, kind: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let mount = fields.nth(1)?;
        (fields.next() == Some(kind)).then(|| mount.replace("\\040", " "))
    })
}

/// Major and minor of a release such as `6.18.44-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn number(path: &str) -> Option<i64> {
    file(path)?.trim().parse().ok()
}

fn file(path: &str) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdown_is_what_stands_in_brackets() {
        let config = Config::default();
        assert_eq!(lockdown(Some("none [integrity] confidentiality\n"), &config).0, "integrity");
        assert_eq!(lockdown(Some("[none] integrity confidentiality\n"), &config).0, "none");
        let (state, why) = lockdown(None, &config);
        assert_eq!(state, "unknown");
        assert!(why.contains("mount -t securityfs"), "{why}");
    }

    #[test]
    fn mounts_are_found_by_type() {
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /a\\040b cgroup2 rw 0 0\nx /y securityfs rw 0 0\n";
        assert_eq!(mount_of(mounts, "cgroup2").as_deref(), Some("/a b"));
        assert_eq!(mount_of(mounts, "securityfs").as_deref(), Some("/y"));
        assert_eq!(mount_of(mounts, "bpf"), None);
        assert_eq!(mount_of("broken\n\n", "bpf"), None);
    }

    #[test]
    fn an_unmounted_tracefs_has_a_remedy() {
        let place = tracefs(Tracefs::NotMounted, &Process::default());
        assert!(!place.readable && place.mounted_at.is_none());
        assert!(place.remedy.unwrap().contains("mount -t tracefs tracefs /sys/kernel/tracing"));
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("6.18.44-fc-v445"), (6, 18));
        assert_eq!(version("5.10.0-46-amd64"), (5, 10));
        assert_eq!(version("7"), (7, 0));
        assert_eq!(version(""), (0, 0));
    }
}
