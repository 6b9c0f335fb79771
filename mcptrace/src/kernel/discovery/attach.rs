//! Whether what a script attaches to is there, without compiling or attaching anything.

use std::path::Path;

use super::{Access, Family};
use crate::kernel::tracefs;

/// Why a script with these hooks, as bpftrace names them, cannot attach here; `None` if nothing speaks against it.
///
/// Patterns and functions are not looked up: whether those exist turns out when bpftrace attaches.
pub fn obstacle<'a>(hooks: impl IntoIterator<Item = &'a str>, access: Access) -> Option<String> {
    let at = match tracefs::ensure(access.allow_mount) {
        Ok(at) => at,
        Err(error) => return Some(error.to_string()),
    };
    let refused = access.fentry_works == Some(false);
    hooks.into_iter().find_map(|hook| missing(hook, &at, refused))
}

fn missing(hook: &str, tracefs: &Path, fentry_refused: bool) -> Option<String> {
    let (first, rest) = hook.split_once(':')?;
    // A return probe needs what its entry needs.
    match Family::of(first)? {
        Family::Tracepoint => missing_tracepoint(rest, tracefs),
        Family::Kprobe => {
            let there = tracefs.join("kprobe_events").exists();
            (!there).then(|| "needs kprobes, which this kernel lacks".into())
        }
        Family::Kfunc => fentry_refused.then(|| "needs fentry programs, which this kernel refuses".into()),
        Family::Uprobe | Family::Usdt => missing_binary(rest),
        Family::Hardware => {
            let there = Path::new("/sys/bus/event_source/devices/cpu").exists();
            (!there).then(|| "needs hardware counters, which this machine does not show".into())
        }
        _ => None,
    }
}

fn missing_tracepoint(name: &str, tracefs: &Path) -> Option<String> {
    let (category, event) = name.split_once(':')?;
    let literal = |part: &str| !part.contains(['*', '?', '[', '/', '.']);
    let known = !literal(category) || !literal(event) || tracefs.join("events").join(category).join(event).is_dir();
    (!known).then(|| format!("this kernel has no tracepoint {category}:{event}"))
}

fn missing_binary(rest: &str) -> Option<String> {
    let path = rest.split(':').next()?;
    (path.starts_with('/') && !Path::new(path).exists()).then(|| format!("there is no {path} here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("events/sched/sched_switch")).unwrap();
        let reason = |hook: &str| missing(hook, folder.path(), true);
        for there in ["tracepoint:sched:sched_switch", "t:sched:sched_*", "interval:s:1", "uprobe:libc:malloc", "BEGIN"]
        {
            assert_eq!(reason(there), None, "{there}");
        }
        assert_eq!(reason("tracepoint:sched:swich").unwrap(), "this kernel has no tracepoint sched:swich");
        assert!(reason("kretprobe:vfs_read").unwrap().starts_with("needs kprobes"));
        assert!(reason("kfunc:vfs_read").unwrap().starts_with("needs fentry"));
        assert_eq!(reason("uprobe:/no/such:f").unwrap(), "there is no /no/such here");
        std::fs::write(folder.path().join("kprobe_events"), "").unwrap();
        assert_eq!(reason("kprobe:vfs_read"), None);
    }
}
