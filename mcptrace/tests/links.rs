//! What the program must not link.

use object::{Object as _, ObjectSymbol as _};

/// A package for BPF targets defines these for want of a libc, and libc's own lose against a definition in the program.
#[test]
fn memory_is_copied_by_libc() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_mcptrace")).unwrap();
    let program = object::File::parse(&*program).unwrap();
    let symbols: Vec<_> =
        program.symbols().chain(program.dynamic_symbols()).filter_map(|each| Some((each.name().ok()?, each))).collect();
    assert!(!symbols.is_empty(), "no symbols at all");
    for (name, symbol) in symbols {
        let own = ["memcpy", "memmove", "memset", "memcmp"].contains(&name) && symbol.is_definition();
        assert!(!own, "{name} is defined in the program");
    }
}
