//! What the machine says about the hooks of a program: how many a wildcard stands for, and how often they fire.

use std::{
    cell::LazyCell,
    ffi::CString,
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Fault, Hook, Output,
    lexer::clip,
    rules::{PROBES, is_counter, known_rate, too_many},
};
use crate::{
    bpftrace::Bpftrace,
    kernel::{attached::possible_cpus, tracefs},
    text::matches_glob,
};

/// Events a second that may be printed one by one. bpftrace's buffers hold some 100,000 short lines, and nobody reads more.
const PRINTED: f64 = 1000.0;
/// Events a second of a hook that prints under a condition: it may be true for few of them, and each costs its test.
const TESTED: f64 = 50_000.0;
/// Counters that are open at once, and how often so many are.
const COUNTERS: usize = 512;
const ROUNDS: usize = 8;

/// Refuses hooks that are too many, and those that print too often.
pub(super) fn check(bpftrace: &Bpftrace, hooks: &[Hook], time: Duration) -> Result<(), Fault> {
    let mut count = 0;
    for hook in hooks {
        let found = number(bpftrace, &hook.text);
        count += found.unwrap_or(PROBES + 1);
        if count > PROBES {
            return Err(too_many(hook.at, count));
        }
    }
    let mut sent = Sent::default();
    let cpus = online_cpus();
    hooks.iter().try_for_each(|hook| {
        // Counted once, and only if it matters.
        let rate = LazyCell::new(|| fires(&hook.text, cpus, time));
        hook.outputs.iter().try_for_each(|output| quiet(hook, output, || *rate, &mut sent))
    })
}

/// CPUs on which clocks tick now.
fn online_cpus() -> u64 {
    // SAFETY: takes a number.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u64::try_from(online).unwrap_or_else(|_| possible_cpus().into())
}

/// What a program prints a second, by what has been looked at of it so far.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    /// At each event.
    always: f64,
    /// Under a condition, if that were always true.
    perhaps: f64,
}

/// How often a hook fires a second: by its name, or as it is counted now.
fn fires(hook: &str, cpus: u64, time: Duration) -> Rate {
    match known_rate(hook, cpus) {
        Some(rate) => Rate::Known(rate as f64),
        None => rate(hook, time).map_or(Rate::Unknown, Rate::Counted),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rate {
    /// A clock's.
    Known(f64),
    /// Here, just now.
    Counted(f64),
    /// Nothing counts it.
    Unknown,
}

/// How many hooks a name stands for; `None`: more than are worth counting. One that cannot be looked up is left to bpftrace, whose own
/// bound is the same.
fn number(bpftrace: &Bpftrace, hook: &str) -> Option<usize> {
    if !hook.contains('*') {
        return Some(1);
    }
    match tracepoints(hook) {
        Some(found) => Some(found.len()),
        None => bpftrace.count(hook).unwrap_or(Some(1)),
    }
}

fn quiet(hook: &Hook, output: &Output, fires: impl FnOnce() -> Rate, sent: &mut Sent) -> Result<(), Fault> {
    let kind = hook.text.split(':').next().unwrap_or_default();
    let (most, so_far) = if output.conditional { (TESTED, &mut sent.perhaps) } else { (PRINTED, &mut sent.always) };
    let rate = fires();
    let (per_second, place) = match rate {
        Rate::Known(rate) => (rate, "on all CPUs together"),
        Rate::Counted(rate) => (rate, "here, now"),
        Rate::Unknown if is_counter(kind) && !output.conditional => {
            return Err(hot(hook, output, "is a counter, and how often it runs over is not known beforehand"));
        }
        Rate::Unknown if hook.text.contains('*') && !output.conditional => {
            return Err(hot(hook, output, "stands for hooks that cannot be counted beforehand"));
        }
        Rate::Unknown => return Ok(()),
    };
    let lines = per_second * output.times as f64;
    *so_far += lines;
    if *so_far <= most {
        return Ok(());
    }
    let unrolled =
        if output.times > 1 { format!(", and each time it is reached {} times", output.times) } else { String::new() };
    let others =
        if *so_far > lines { format!("; with the hooks before it that is {:.0}", *so_far) } else { String::new() };
    Err(hot(
        hook,
        output,
        &format!("fires {per_second:.0} times a second {place}{unrolled}{others}; at most {most} are taken"),
    ))
}

fn hot(hook: &Hook, output: &Output, reason: &str) -> Fault {
    let (name, function) = (clip(&hook.text), &output.function);
    Fault::policy(output.at, format!("{function}() at each event is refused: `{name}` {reason}"))
        .remedy("aggregate in the kernel and print at the end: @[comm] = count(), hist() or sum(); or narrow it with a predicate such as /pid == 123/")
}

/// How often a hook fires a second, on all CPUs; `None` where nothing counts it.
fn rate(hook: &str, time: Duration) -> Option<f64> {
    let events = match tracepoints(hook) {
        Some(names) => names.iter().filter_map(|name| tracepoint(name)).collect(),
        None => vec![function(hook)?],
    };
    let cpus = possible_cpus() as usize;
    let rounds: Vec<_> = events.chunks((COUNTERS / cpus.max(1)).max(1)).take(ROUNDS).collect();
    let rates: Vec<f64> = rounds.iter().filter_map(|events| count(events, cpus, time)).collect();
    (!rates.is_empty()).then(|| rates.iter().sum())
}

/// Events a second of all of them together.
fn count(events: &[Event], cpus: usize, time: Duration) -> Option<f64> {
    let began = Instant::now();
    let open = |event: &Event| (0..cpus).filter_map(|cpu| event.open(cpu).ok()).collect::<Vec<_>>();
    let counters: Vec<OwnedFd> = events.iter().flat_map(open).collect();
    if counters.is_empty() {
        return None;
    }
    std::thread::sleep(time);
    let total: u64 = counters.iter().filter_map(read).sum();
    Some(total as f64 / began.elapsed().as_secs_f64())
}

fn read(counter: &OwnedFd) -> Option<u64> {
    let mut value = [0; 8];
    let length = rustix::io::read(counter, &mut value).ok()?;
    (length == value.len()).then(|| u64::from_ne_bytes(value))
}

/// `group:name` of the tracepoints that a hook stands for; `None` for other types of hooks, and where they cannot be listed.
fn tracepoints(hook: &str) -> Option<Vec<String>> {
    let (kind, rest) = hook.split_once(':')?;
    let (group, name) = match kind {
        "tracepoint" | "t" => rest.split_once(':')?,
        "rawtracepoint" | "rt" => ("*", rest.rsplit_once(':').map_or(rest, |(_, name)| name)),
        _ => return None,
    };
    let events = tracefs::ensure(true).ok()?.join("events");
    // The system calls are listed as tracepoints, and raw ones of them there are none.
    let raw = |found: &String| group != "*" || kind.starts_with('t') || found != "syscalls";
    let groups = entries(&events, group).into_iter().filter(raw);
    let names = groups
        .flat_map(|group| entries(&events.join(&group), name).into_iter().map(move |name| format!("{group}:{name}")));
    Some(names.collect())
}

/// The names in a folder that a pattern matches.
fn entries(folder: &Path, pattern: &str) -> Vec<String> {
    if !pattern.contains('*') {
        return if folder.join(pattern).is_dir() { vec![pattern.to_owned()] } else { Vec::new() };
    }
    let files = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|file| file.file_type().is_ok_and(|kind| kind.is_dir()));
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names.filter(|name| matches_glob(pattern, name)).collect()
}

fn tracepoint(name: &str) -> Option<Event> {
    let path = tracefs::ensure(false).ok()?.join("events").join(name.replace(':', "/")).join("id");
    let id = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    Some(Event { kind: PERF_TYPE_TRACEPOINT, config: id, function: None })
}

/// A counter at the entry of a kernel function, for the types that have one. Kernels without kprobes have no such counter.
fn function(hook: &str) -> Option<Event> {
    let (kind, rest) = hook.split_once(':')?;
    let kinds = ["kprobe", "k", "kretprobe", "kr", "kfunc", "f", "kretfunc", "fr", "fentry", "fexit"];
    let name = rest.rsplit(':').next()?.split('+').next()?;
    if !kinds.contains(&kind) || name.contains('*') {
        return None;
    }
    let kind = fs::read_to_string("/sys/bus/event_source/devices/kprobe/type").ok()?.trim().parse().ok()?;
    Some(Event { kind, config: 0, function: Some(CString::new(name).ok()?) })
}

/// `include/uapi/linux/perf_event.h`.
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// Something that perf can count.
struct Event {
    kind: u32,
    config: u64,
    function: Option<CString>,
}

/// The first 72 bytes of `struct perf_event_attr` (`PERF_ATTR_SIZE_VER1`, Linux 2.6.33).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
}

impl Event {
    /// Counts on one CPU, from now on, whatever runs there.
    fn open(&self, cpu: usize) -> io::Result<OwnedFd> {
        let function = self.function.as_ref().map_or(0, |name| name.as_ptr() as u64);
        let attributes = Attributes {
            kind: self.kind,
            size: size_of::<Attributes>() as u32,
            config: self.config,
            config1: function,
            ..Attributes::default()
        };
        // SAFETY: the attributes are of the size that they say, they and the name outlive the call, and what comes is checked.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, cpu as i32, -1, PERF_FLAG_FD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_print_at_each_event_are_refused() {
        let judge = |text: &str, conditional| {
            let output = Output { function: "printf".into(), at: 3, conditional, times: 1 };
            let hook = Hook { text: text.into(), at: 0, outputs: vec![output.clone()] };
            quiet(&hook, &output, || fires(text, 8, Duration::ZERO), &mut Sent::default())
        };
        assert!(judge("software:faults:1", false).is_err());
        assert!(judge("software:faults:1", true).is_ok());
        assert!(judge("interval:s:1", false).is_ok());
    }

    #[test]
    fn what_clocks_print_is_known_and_bounded_on_all_cpus_together() {
        let judge = |hooks: &[&str], conditional, times, cpus| {
            let output = Output { function: "printf".into(), at: 3, conditional, times };
            let mut sent = Sent::default();
            hooks.iter().try_for_each(|text| {
                let hook = Hook { text: (*text).to_owned(), at: 0, outputs: vec![output.clone()] };
                quiet(&hook, &output, || fires(text, cpus, Duration::ZERO), &mut sent)
            })
        };
        for (hooks, times, cpus, good) in [
            (&["profile:hz:99"][..], 1, 8, true),
            (&["profile:hz:99"], 1, 11, false),
            (&["p:ms:10"], 1, 11, false),
            (&["profile:hz:999"], 1, 1, true),
            (&["profile:hz:999"], 1, 2, false),
            (&["interval:hz:999"], 1, 64, true),
            (&["interval:s:1"], 100, 64, true),
            (&["interval:ms:20"], 100, 64, false),
            (&["interval:hz:600", "i:hz:600"], 1, 1, false),
            (&["BEGIN", "END"], 1000, 64, true),
        ] {
            assert_eq!(judge(hooks, false, times, cpus).is_ok(), good, "{hooks:?} {times} {cpus}");
        }
        assert!(judge(&["profile:hz:999"], true, 1, 50).is_ok(), "under a condition");
        assert!(judge(&["profile:hz:999"], true, 1, 51).is_err());
        let refused = judge(&["profile:hz:999"], false, 1, 4).unwrap_err();
        assert!(refused.message.contains("fires 3996 times a second on all CPUs together"), "{}", refused.message);
        assert!(refused.remedy.unwrap().contains("aggregate"));
    }

    #[test]
    fn the_attributes_have_the_kernels_size() {
        assert_eq!(size_of::<Attributes>(), 72);
    }

    #[test]
    fn entries_match_by_name_and_only_folders_count() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["sched_switch", "sched_wakeup", "net"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("sched_file"), "").unwrap();
        let mut found = entries(folder.path(), "sched_*");
        found.sort();
        assert_eq!(found, ["sched_switch", "sched_wakeup"]);
        assert_eq!(entries(folder.path(), "net"), ["net"]);
        assert!(entries(folder.path(), "none").is_empty());
    }
}
