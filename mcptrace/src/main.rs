//! The mcptrace program.

fn main() {}
