//! Letting go of what a server does not need: capabilities, and the way to get new ones.
//!
//! Called before there is a second thread, because capabilities belong to threads.

use std::{io, sync::OnceLock};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::privilege::CAPABILITIES;
use crate::bpftrace::policy::Level;

/// What building the box of a script needs beside what tracing does: namespaces and a root of its own, control groups, dropping
/// capabilities, and what is then left to bpftrace.
const BOX: CapabilitySet = CapabilitySet::SETPCAP
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::IPC_LOCK);

/// Whether `no_new_privs` was set before this process set it itself.
static AT_START: OnceLock<bool> = OnceLock::new();

/// Whether whoever started this process has set `no_new_privs`, which keeps setcap and sudo from helping it.
pub(super) fn came_with_no_new_privs() -> bool {
    *AT_START.get_or_init(|| rustix::thread::no_new_privs().unwrap_or(false))
}

/// What a server keeps, for the scripts that it may run.
pub fn needed(scripts: Level) -> CapabilitySet {
    let native = CAPABILITIES
        .iter()
        .fold(CapabilitySet::empty(), |all, one| all | CapabilitySet::from_bits_retain(1 << one.number));
    if scripts == Level::Never { native } else { native | BOX }
}

/// What the daemon keeps: it gives its socket to a group, and its folders may belong to a user of their own.
pub fn needed_by_daemon(scripts: Level) -> CapabilitySet {
    needed(scripts) | CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE
}

/// What a server over HTTP keeps: its port may be one of the first 1024.
pub fn needed_over_http(scripts: Level) -> CapabilitySet {
    needed(scripts) | CapabilitySet::NET_BIND_SERVICE
}

/// Drops for good all capabilities but these, from the bounding set too where that is allowed, and sets `no_new_privs`.
///
/// # Errors
///
/// If the kernel refuses; then nothing may be served.
pub fn shed(kept: CapabilitySet) -> io::Result<()> {
    came_with_no_new_privs();
    rustix::thread::set_no_new_privs(true)?;
    let held = rustix::thread::capabilities(None)?;
    let unwanted = CapabilitySet::from_bits_retain(!kept.bits());
    for bit in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)).filter(|bit| unwanted.contains(*bit)) {
        match rustix::thread::capability_is_in_bounding_set(bit) {
            Ok(true) if held.effective.contains(CapabilitySet::SETPCAP) => {
                rustix::thread::remove_capability_from_bounding_set(bit)?;
            }
            // Without CAP_SETPCAP it stays there, which gives nothing to a process that may gain nothing. Errors: there is no such one.
            _ => {}
        }
    }
    let left = CapabilitySets {
        effective: held.effective & kept,
        permitted: held.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, left)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_the_machine_is_never_kept() {
        for level in [Level::Never, Level::Policy, Level::Any] {
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
                assert!(!needed(level).contains(never), "{never:?}");
            }
        }
        assert!(!needed(Level::Never).intersects(BOX), "no script, no box");
        assert!(needed(Level::Never).contains(CapabilitySet::BPF | CapabilitySet::PERFMON));
    }

    /// On a thread of its own: what is shed stays shed.
    #[test]
    fn what_is_not_kept_is_gone() {
        std::thread::spawn(|| {
            let before = rustix::thread::capabilities(None).unwrap();
            shed(needed(Level::Never)).unwrap();
            let after = rustix::thread::capabilities(None).unwrap();
            assert_eq!(after.permitted, before.permitted & needed(Level::Never));
            assert_eq!(after.effective, before.effective & needed(Level::Never));
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
