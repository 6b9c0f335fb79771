//! Programs of bpftrace, as the policy reads them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcptrace::fuzzing::policy(bytes));
