//! Which tracing programs the kernel has, and which of them a process has attached.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use libbpf_rs::{ProgramType, query::ProgInfoIter};

/// The ids of all loaded programs that trace, whoever loaded them.
pub fn loaded() -> BTreeSet<u32> {
    ProgInfoIter::default().filter(|info| traces(info.ty)).map(|info| info.id).collect()
}

/// Waits until there are none, which takes a moment after they were detached; the ids of those that stay.
pub fn wait_for_none(most: Duration) -> BTreeSet<u32> {
    let end = Instant::now() + most;
    loop {
        let left = loaded();
        if left.is_empty() || Instant::now() >= end {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many programs a process has attached to tracepoints and perf events, each descriptor of them once.
pub fn attached_by(pid: u32) -> usize {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let descriptors = entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    descriptors.filter_map(|descriptor| program_of(pid, descriptor)).collect::<BTreeSet<_>>().len()
}

fn traces(kind: ProgramType) -> bool {
    use ProgramType::{Kprobe, PerfEvent, RawTracepoint, RawTracepointWritable, Tracepoint, Tracing};
    matches!(kind, Kprobe | PerfEvent | RawTracepoint | RawTracepointWritable | Tracepoint | Tracing)
}

/// The id of the program behind a file descriptor of a process, if there is one (`BPF_TASK_FD_QUERY`, bpf(2)); 0 for a program that samples: of
/// those the kernel says only that it does not tell (`bpf_get_perf_event_info` of kernel/trace/bpf_trace.c, Linux 6.18).
fn program_of(pid: u32, descriptor: i32) -> Option<(u32, u32)> {
    let (mut name, mut length) = ([0; 128], 128);
    let (mut program, mut kind, mut offset, mut address) = (0, 0, 0, 0);
    // SAFETY: the kernel writes at most `length` bytes of the name, and the four numbers.
    let outcome = unsafe {
        libbpf_sys::bpf_task_fd_query(
            pid as i32,
            descriptor,
            0,
            name.as_mut_ptr(),
            &raw mut length,
            &raw mut program,
            &raw mut kind,
            &raw mut offset,
            &raw mut address,
        )
    };
    let samples = outcome == -libc::EOPNOTSUPP;
    // One program may be attached to several tracepoints.
    (outcome == 0 || samples).then_some((program, descriptor as u32))
}
