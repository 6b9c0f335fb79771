//! Lines of JSON-RPC.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcptrace::fuzzing::json_rpc(bytes));
