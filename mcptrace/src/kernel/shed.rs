//! Letting go of what a server does not need: capabilities, and the way to get new ones.
//!
//! Called before there is a second thread, because capabilities belong to threads.

use std::{fs, io, sync::OnceLock};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::privilege::{CAPABILITIES, Capability, FOR_SCRIPTS, FOR_SCRIPTS_OF_OTHERS, Held, for_scripts, locks_memory};

/// Whether `no_new_privs` was set before this process set it itself.
static AT_START: OnceLock<bool> = OnceLock::new();

/// Whether whoever started this process has set `no_new_privs`, which keeps setcap and sudo from helping it.
pub(super) fn came_with_no_new_privs() -> bool {
    *AT_START.get_or_init(|| rustix::thread::no_new_privs().unwrap_or(false))
}

/// What a server keeps: what native probes can make use of here.
pub fn needed() -> CapabilitySet {
    set(CAPABILITIES)
}

/// What the daemon keeps: its folders may belong to a user of their own.
pub fn needed_by_daemon() -> CapabilitySet {
    needed() | CapabilitySet::DAC_OVERRIDE
}

fn set(capabilities: &[Capability]) -> CapabilitySet {
    let here = capabilities.iter().filter(|one| one.name != "CAP_SYS_RESOURCE" || locks_memory());
    here.fold(CapabilitySet::empty(), |all, one| all | CapabilitySet::from_bits_retain(1 << one.number))
}

/// What the launcher of scripts keeps.
fn needed_for_scripts(is_root: bool) -> CapabilitySet {
    set(FOR_SCRIPTS) | if is_root { CapabilitySet::empty() } else { set(FOR_SCRIPTS_OF_OTHERS) }
}

/// The capabilities without which a launcher of this user builds no box. Root is taken at its word: what its box lacks is said.
pub fn lacks_for_scripts() -> Vec<String> {
    if rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    for_scripts(permitted(), false).into_iter().filter(|one| !one.held).map(|one| one.name).collect()
}

/// What this thread could take up: `CapPrm`.
pub fn permitted() -> u64 {
    rustix::thread::capabilities(None).map_or(0, |sets| sets.permitted.bits())
}

/// The same of another process; nothing, where it has ended.
pub fn permitted_of(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Which of a set are held of what a launcher of this user takes, and what for.
pub fn held_for_scripts(set: u64) -> Vec<Held> {
    for_scripts(set, rustix::process::geteuid().is_root())
}

/// Lays down what only the launcher takes up, in a program that others than root can start: what it does for them is then what they or
/// native probes may do. Nothing is let go of.
pub fn lay_down() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    effective_only(needed());
}

/// Runs something that reads files which the caller has named, by the caller's own right to read them.
pub fn by_own_right<T>(read: impl FnOnce() -> T) -> T {
    if rustix::process::geteuid().is_root() {
        return read();
    }
    let before = rustix::thread::capabilities(None).map(|sets| sets.effective);
    effective_only(CapabilitySet::empty());
    let found = read();
    before.into_iter().for_each(effective_only);
    found
}

/// Fails where nothing is permitted, and then nothing changes.
fn effective_only(kept: CapabilitySet) {
    if let Ok(held) = rustix::thread::capabilities(None) {
        let _ = rustix::thread::set_capabilities(None, CapabilitySets { effective: held.permitted & kept, ..held });
    }
}

/// Drops for good all capabilities but these, from the bounding set too where that is allowed, and sets `no_new_privs`.
///
/// # Errors
///
/// If the kernel refuses; then nothing may be served.
pub fn shed(kept: CapabilitySet) -> io::Result<()> {
    came_with_no_new_privs();
    rustix::thread::set_no_new_privs(true)?;
    keep(kept)
}

/// Drops all but what building the box of scripts takes. What is started may gain nothing beyond that either.
///
/// # Errors
///
/// If the kernel refuses.
pub fn keep_for_scripts() -> io::Result<()> {
    keep(needed_for_scripts(rustix::process::geteuid().is_root()))
}

/// Drops everything. What is started may gain privileges, as sudo does.
///
/// # Errors
///
/// If the kernel refuses.
pub fn drop_all() -> io::Result<()> {
    Ok(rustix::thread::set_capabilities(None, sets(CapabilitySet::empty()))?)
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    let held = rustix::thread::capabilities(None)?;
    // Among what was laid down may be what the bounding set takes.
    rustix::thread::set_capabilities(None, CapabilitySets { effective: held.permitted, ..held })?;
    let unwanted = CapabilitySet::from_bits_retain(!kept.bits());
    for bit in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)).filter(|bit| unwanted.contains(*bit)) {
        match rustix::thread::capability_is_in_bounding_set(bit) {
            Ok(true) if held.permitted.contains(CapabilitySet::SETPCAP) => {
                rustix::thread::remove_capability_from_bounding_set(bit)?;
            }
            // Without CAP_SETPCAP it stays there, which gives nothing to a process that may gain nothing. Errors: there is no such one.
            _ => {}
        }
    }
    Ok(rustix::thread::set_capabilities(None, sets(held.permitted & kept))?)
}

/// Nothing inheritable: ambient ones go with that.
fn sets(kept: CapabilitySet) -> CapabilitySets {
    CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_the_machine_is_never_kept() {
        let all = needed() | needed_by_daemon() | needed_for_scripts(true) | needed_for_scripts(false);
        for never in [
            CapabilitySet::SYS_MODULE,
            CapabilitySet::SYS_RAWIO,
            CapabilitySet::SYS_BOOT,
            CapabilitySet::SYS_TIME,
            CapabilitySet::NET_ADMIN,
            CapabilitySet::NET_RAW,
            CapabilitySet::MKNOD,
            CapabilitySet::SETFCAP,
        ] {
            assert!(!all.contains(never), "{never:?}");
        }
        let of_the_launcher =
            CapabilitySet::SETPCAP | CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
        assert!(!needed_by_daemon().intersects(of_the_launcher), "no server builds a box");
        let of_the_start = CapabilitySet::CHOWN | CapabilitySet::NET_BIND_SERVICE;
        assert!(!needed_by_daemon().intersects(of_the_start), "its socket and port are there by then");
        assert!(needed().contains(CapabilitySet::BPF | CapabilitySet::PERFMON));
        let to_be_root = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
        assert!(!needed_for_scripts(true).intersects(to_be_root), "root is root already");
    }

    /// On a thread of its own: what is shed stays shed.
    #[test]
    fn what_is_not_kept_is_gone() {
        std::thread::spawn(|| {
            let before = rustix::thread::capabilities(None).unwrap();
            shed(needed()).unwrap();
            let after = rustix::thread::capabilities(None).unwrap();
            assert_eq!(after.permitted, before.permitted & needed());
            assert_eq!(after.effective, before.effective & needed());
            assert!(rustix::thread::no_new_privs().unwrap());
            if before.effective.contains(CapabilitySet::SETPCAP) {
                assert!(!rustix::thread::capability_is_in_bounding_set(CapabilitySet::SYS_MODULE).unwrap());
            }
            assert!(rustix::thread::set_capabilities(None, before).is_err() || before.permitted == after.permitted);
        })
        .join()
        .unwrap();
    }
}
