//! No program at all: the kernel itself keeps what this probe reports. What every object has is here so that it is loaded as others are.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mcptrace_ebpf::follows_forks!();

mcptrace_ebpf::object!();
