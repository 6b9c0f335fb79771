//! Output of bpftrace.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcptrace::fuzzing::bpftrace_output(bytes));
