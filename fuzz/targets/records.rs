//! Records of kernel programs.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| { mcptrace::fuzzing::record(bytes); });
