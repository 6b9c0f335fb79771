//! Which files are opened, by whom, and with what result.

use aya::maps::MapError;
use mcptrace_wire::{Open, PATH_MAX, PATH_UNREADABLE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe,
    options::Transport,
    parse, places, plain, plan_of,
    syscall_counts::{syscall_globals, words},
};
use crate::{
    clock::Clock,
    errno,
    kernel::{
        arch::{syscall_name, syscall_pair},
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Row},
    text::{comm, untrusted},
};

/// Buffer for events: 80,000 of 100 bytes, which is 0.8 s of 100,000 opens a second.
const EVENT_BYTES: u32 = 8 << 20;
/// The longest prefix that the kernel side compares, in bytes.
const MOST_PREFIX: usize = 128;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct FileOpens;

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Only what failed
    pub failed_only: bool,
    /// Only paths that start with this, as the caller wrote them; at most 128 bytes
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub path_prefix: Option<String>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for FileOpens {
    const NAME: &'static str = "file_opens";
    const SUMMARY: &'static str = "Which files are opened, by whom, how fast, and which opens fail?";
    const CATEGORY: &'static str = "files";
    const DETAILS: &'static str = "One event per open, openat, openat2 and creat that returns. The path is what the caller passed: \
        relative to dirfd if it does not start with a slash (dirfd -100 is the working directory), and in the caller's mount namespace. It \
        is read when the call returns; a program that overwrites it meanwhile shows the new one. path_error says that it could not be read. \
        Not seen: opens by io_uring, by the kernel itself, and by exec.";
    const NEXT: &'static [&'static str] = &[
        "many ENOENT from one process: it searches a path; look at its configuration",
        "slow opens: syscall_latency with options.syscall = openat, then block_latency",
    ];
    const EXAMPLE: &'static str =
        r#"{"probe":"file_opens","options":{"failed_only":true,"path_prefix":"/etc/"},"seconds":5}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/file_opens.o");
    const HOOKS: &'static [Attach] =
        &[Attach::tracepoint("enter", "sys_enter"), Attach::tracepoint("exit", "sys_exit")];
    const NEEDS: &'static [&'static str] = &["TASK_COMPAT_WORD", "TASK_COMM"];
    const COUNTS: &'static str = "exit";
    const COST_NS: f64 = 840.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.globals.extend(syscall_globals());
        let opens = ["open", "creat", "openat", "openat2"].map(syscall_pair);
        plan.globals.push(("OPENS", words(opens.as_flattened())));
        plan.globals.push(("FAILED_ONLY", u32::from(options.failed_only).to_ne_bytes().to_vec()));
        if let Some(prefix) = &options.path_prefix {
            plan.globals.extend(prefix_globals(prefix)?);
        }
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self, plan))
    }

    fn report(&self, _maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        Ok(Found::default())
    }

    fn fields() -> Vec<Field> {
        Self::event_fields()
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = vec![Field::new("time", ""), Field::new("latency_ns", "ns")];
        fields.extend(plain(&["pid", "tid", "comm", "uid"]));
        fields.extend(plain(&places::FIELDS));
        fields.extend(plain(&["syscall", "path", "dirfd", "flags", "fd", "errno", "path_error"]));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse_open(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (open, path) = parse_open(record)?;
        let unreadable = open.path_len == PATH_UNREADABLE;
        let mut row = Row::new();
        row.insert("time".into(), clock.utc(open.time_ns).into());
        row.insert("latency_ns".into(), open.latency_ns.into());
        row.insert("pid".into(), open.pid.into());
        row.insert("tid".into(), open.tid.into());
        row.insert("comm".into(), comm(&open.comm).into());
        row.insert("uid".into(), open.uid.into());
        places::insert(&mut row, open.cgroup, open.pid);
        row.insert("syscall".into(), syscall_name(open.syscall).into());
        if unreadable {
            row.insert("path_error".into(), "EFAULT".into());
        } else {
            row.insert("path".into(), untrusted(path, PATH_MAX).into());
        }
        if path.first() != Some(&b'/') {
            row.insert("dirfd".into(), open.dirfd.into());
        }
        row.insert("flags".into(), flags(open.flags).into());
        if open.result < 0 {
            row.insert("errno".into(), errno::name(open.result.wrapping_neg()).into());
        } else {
            row.insert("fd".into(), open.result.into());
        }
        Some(row)
    }
}

/// A record and its path, if the path is as long as the record says.
fn parse_open(record: &[u8]) -> Option<(Open, &[u8])> {
    let whole = |(open, path): &(Open, &[u8])| open.path_len == PATH_UNREADABLE || open.path_len as usize == path.len();
    parse::<Open>(record).filter(whole)
}

/// The prefix as the words that the kernel side compares, with a mask for the last.
fn prefix_globals(prefix: &str) -> Result<[(&'static str, Vec<u8>); 3], OptionError> {
    if prefix.is_empty() || prefix.len() > MOST_PREFIX {
        let length = prefix.len();
        return Err(OptionError::new(format!("options.path_prefix: takes 1 to {MOST_PREFIX} bytes, not {length}")));
    }
    let padded = |fill: u8| {
        let mut bytes = vec![fill; prefix.len()];
        bytes.resize(MOST_PREFIX, 0);
        bytes
    };
    let mut wanted = padded(0);
    wanted[..prefix.len()].copy_from_slice(prefix.as_bytes());
    let length = prefix.len() as u32;
    Ok([("PREFIX_LEN", length.to_ne_bytes().to_vec()), ("PREFIX", wanted), ("PREFIX_MASK", padded(0xff))])
}

/// The flags of an open by name, as open(2) has them.
fn flags(value: u64) -> String {
    const NAMES: &[(libc::c_int, &str)] = &[
        (libc::O_CREAT, "O_CREAT"),
        (libc::O_EXCL, "O_EXCL"),
        (libc::O_NOCTTY, "O_NOCTTY"),
        (libc::O_TRUNC, "O_TRUNC"),
        (libc::O_APPEND, "O_APPEND"),
        (libc::O_NONBLOCK, "O_NONBLOCK"),
        // Contains O_DSYNC, so it is looked for first.
        (libc::O_SYNC, "O_SYNC"),
        (libc::O_DSYNC, "O_DSYNC"),
        (libc::O_DIRECT, "O_DIRECT"),
        (libc::O_NOFOLLOW, "O_NOFOLLOW"),
        (libc::O_NOATIME, "O_NOATIME"),
        (libc::O_CLOEXEC, "O_CLOEXEC"),
        (libc::O_PATH, "O_PATH"),
        // Contains O_DIRECTORY.
        (libc::O_TMPFILE, "O_TMPFILE"),
        (libc::O_DIRECTORY, "O_DIRECTORY"),
    ];
    /// `O_LARGEFILE` of the kernel (include/uapi/asm-generic/fcntl.h); libc says 0 on 64-bit systems, but programs pass it.
    const O_LARGEFILE: u64 = 0o100_000;
    let access = ["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][(value & 3) as usize];
    let mut left = value & !3 & !O_LARGEFILE;
    let mut names = vec![access.to_owned()];
    for (bits, name) in NAMES {
        let bits = *bits as u64;
        if left & bits == bits {
            names.push((*name).to_owned());
            left &= !bits;
        }
    }
    if left != 0 {
        names.push(format!("{left:#x}"));
    }
    names.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_named_and_none_is_lost() {
        assert_eq!(flags(0), "O_RDONLY");
        assert_eq!(flags((libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC) as u64), "O_WRONLY|O_CREAT|O_TRUNC");
        assert_eq!(flags((libc::O_RDWR | libc::O_SYNC) as u64), "O_RDWR|O_SYNC");
        assert_eq!(flags((libc::O_TMPFILE | libc::O_RDWR) as u64), "O_RDWR|O_TMPFILE");
        assert_eq!(flags(1 << 60), "O_RDONLY|0x1000000000000000");
    }

    #[test]
    fn a_prefix_compares_its_own_bytes_only() {
        let [length, prefix, mask] = prefix_globals("/etc/x").unwrap().map(|(_, value)| value);
        assert_eq!(length, 6_u32.to_ne_bytes());
        assert_eq!((&prefix[..7], &mask[..7]), (&b"/etc/x\0"[..], &[255, 255, 255, 255, 255, 255, 0][..]));
        assert_eq!((prefix.len(), mask.len()), (128, 128));
        assert!(prefix_globals("").is_err() && prefix_globals(&"x".repeat(129)).is_err());
    }
}
