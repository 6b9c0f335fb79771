//! Formats of tracepoints and arguments of USDT probes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcptrace::fuzzing::format(bytes));
