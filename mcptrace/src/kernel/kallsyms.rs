//! Names of addresses in the kernel, out of `/proc/kallsyms`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
};

/// Where the kernel lists its symbols. All addresses are 0 without CAP_SYSLOG (kernel.kptr_restrict).
const KALLSYMS: &str = "/proc/kallsyms";

/// The symbols that addresses lie in, as `name+0xoffset`; the address itself where there is none.
pub fn names(addresses: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let found = File::open(KALLSYMS).map(|file| nearest(BufReader::new(file), addresses)).unwrap_or_default();
    let name = |address: &u64| {
        let name = found.get(address).map(|(start, name)| format!("{name}+{:#x}", address - start));
        (*address, name.unwrap_or_else(|| format!("{address:#x}")))
    };
    addresses.iter().map(name).collect()
}

/// The last symbol at or before each address. Lines are `address type name [module]`, in no order.
fn nearest(lines: impl BufRead, addresses: &BTreeSet<u64>) -> BTreeMap<u64, (u64, String)> {
    let mut found: BTreeMap<u64, (u64, String)> = BTreeMap::new();
    for line in lines.lines().map_while(Result::ok) {
        let Some((start, name)) = code_symbol(&line) else { continue };
        // The symbol may only be the nearest of the addresses up to the next symbol: of the first one from it on, for now.
        let Some(address) = addresses.range(start..).next() else { continue };
        if found.get(address).is_none_or(|(best, _)| *best < start) {
            found.insert(*address, (start, name.to_owned()));
        }
    }
    // Where several addresses follow one symbol, the first of them has it.
    let mut last: Option<(u64, String)> = None;
    for address in addresses {
        match found.get(address) {
            Some(own) => last = Some(own.clone()),
            None => _ = last.clone().map(|nearest| found.insert(*address, nearest)),
        }
    }
    found
}

fn code_symbol(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let start = u64::from_str_radix(words.next()?, 16).ok().filter(|start| *start != 0)?;
    matches!(words.next()?, "t" | "T" | "w" | "W").then(|| words.next()).flatten().map(|name| (start, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_symbol_that_begins_last_before_it() {
        let text = "0000000000000400 t late\n0000000000000100 T first\n0000000000000300 D data\n0000000000000200 t second [module]\n";
        let addresses = BTreeSet::from([0x50, 0x100, 0x1ff, 0x210, 0x3ff]);
        let found = nearest(text.as_bytes(), &addresses);
        let name = |address: u64| found.get(&address).map(|(_, name)| name.as_str());
        assert_eq!(name(0x50), None);
        assert_eq!((name(0x100), name(0x1ff)), (Some("first"), Some("first")));
        assert_eq!((name(0x210), name(0x3ff)), (Some("second"), Some("second")));
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        assert!(nearest("0000000000000000 T hidden\n".as_bytes(), &BTreeSet::from([7])).is_empty());
    }
}
