//! Samples what runs on each CPU.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::perf_event, programs::PerfEventContext};
use mcptrace_ebpf::{
    Counter,
    kernel::{count, current_passes},
    stack::weigh,
};

#[perf_event]
fn sample(ctx: PerfEventContext) -> u32 {
    // The idle thread is no use of a CPU.
    if bpf_get_current_pid_tgid() as u32 == 0 || !current_passes() {
        return 0;
    }
    count(Counter::Seen);
    if let Err(lost) = capture(&ctx).and_then(|key| weigh(&key, 0)) {
        count(lost);
    }
    0
}

mcptrace_ebpf::sends_stacks!();
mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::object!();
