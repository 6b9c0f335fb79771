//! Requests to the launcher, and its answers.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcptrace::fuzzing::launcher(bytes));
