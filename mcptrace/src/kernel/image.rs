//! An eBPF object about to be loaded: sets read-only globals and the size and type of maps in its bytes.
//!
//! aya's loader can do the first two, but keeps them for its whole life, and making a new loader for every execution costs 23 ms,
//! because each parses the kernel's types. So one loader lives as long as the server and what differs from execution to execution
//! is written into a copy of the object. Pure: no kernel needed.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// Where a map's definition keeps its fields, in bytes: type, key size, value size, number of entries, flags
/// (`bpf_map_def`, as aya's legacy `maps` section has it).
const MAP_TYPE: usize = 0;
const MAP_KEY_SIZE: usize = 4;
const MAP_VALUE_SIZE: usize = 8;
const MAP_ENTRIES: usize = 12;
const MAPS_SECTION: &str = "maps";

/// Why an object cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is not an eBPF object.
    #[error("the eBPF object cannot be parsed")]
    Parse(#[from] object::Error),
    /// It has no such symbol.
    #[error("the eBPF object has no {kind} `{name}`")]
    NoSymbol {
        /// Global or map.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The value does not have the size of the global.
    #[error("global `{name}` has {expected} bytes, not {given}")]
    Size {
        /// Its name.
        name: String,
        /// Its size in the object.
        expected: usize,
        /// The size of the value.
        given: usize,
    },
}

/// A copy of an object whose globals and maps can be set.
#[derive(Debug)]
pub struct Image {
    bytes: Vec<u8>,
    symbols: Vec<Symbol>,
}

#[derive(Debug)]
struct Symbol {
    name: String,
    is_map: bool,
    /// From the start of the file.
    offset: usize,
    size: usize,
}

impl Image {
    /// Copies an object.
    pub fn new(object: &[u8]) -> Result<Self, ImageError> {
        Ok(Self { symbols: symbols(object)?, bytes: object.to_vec() })
    }

    /// Sets a read-only global, if the object has it: those that no program uses are not in it.
    pub fn set_global(&mut self, name: &str, value: &[u8]) -> Result<(), ImageError> {
        let Some(symbol) = self.symbols.iter().find(|symbol| !symbol.is_map && symbol.name == name) else {
            return Ok(());
        };
        if symbol.size != value.len() {
            return Err(ImageError::Size { name: name.to_owned(), expected: symbol.size, given: value.len() });
        }
        self.bytes[symbol.offset..symbol.offset + symbol.size].copy_from_slice(value);
        Ok(())
    }

    /// Sets how many entries a map has.
    pub fn set_map_entries(&mut self, map: &str, entries: u32) -> Result<(), ImageError> {
        self.set_map_field(map, MAP_ENTRIES, entries)
    }

    /// Sets the type of a map, a `BPF_MAP_TYPE_*` number (include/uapi/linux/bpf.h).
    pub fn set_map_type(&mut self, map: &str, map_type: u32) -> Result<(), ImageError> {
        self.set_map_field(map, MAP_TYPE, map_type)
    }

    /// Sets the sizes of a map's keys and values, in bytes.
    pub fn set_map_sizes(&mut self, map: &str, key: u32, value: u32) -> Result<(), ImageError> {
        self.set_map_field(map, MAP_KEY_SIZE, key)?;
        self.set_map_field(map, MAP_VALUE_SIZE, value)
    }

    /// Whether the object has a map of that name.
    pub fn has_map(&self, name: &str) -> bool {
        self.symbols.iter().any(|symbol| symbol.is_map && symbol.name == name)
    }

    /// The object with everything set.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn set_map_field(&mut self, map: &str, field: usize, value: u32) -> Result<(), ImageError> {
        let symbol = self.symbols.iter().find(|symbol| symbol.is_map && symbol.name == map);
        let symbol = symbol.ok_or_else(|| ImageError::NoSymbol { kind: "map", name: map.to_owned() })?;
        let start = symbol.offset + field;
        self.bytes[start..start + 4].copy_from_slice(&value.to_ne_bytes());
        Ok(())
    }
}

fn symbols(bytes: &[u8]) -> Result<Vec<Symbol>, ImageError> {
    let file = object::File::parse(bytes)?;
    let mut symbols = Vec::new();
    for symbol in file.symbols() {
        let Some(section) = symbol.section_index().and_then(|index| file.section_by_index(index).ok()) else {
            continue;
        };
        let section_name = section.name()?;
        let is_map = section_name == MAPS_SECTION;
        let (true, Some((start, _))) = (is_map || section_name.starts_with(".rodata"), section.file_range()) else {
            continue;
        };
        let offset = (start + symbol.address()) as usize;
        symbols.push(Symbol { name: symbol.name()?.to_owned(), is_map, offset, size: symbol.size() as usize });
    }
    Ok(symbols)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/file_opens.o");

    #[test]
    fn a_global_is_written_where_the_loader_reads_it() {
        let mut image = Image::new(OBJECT).unwrap();
        image.set_global("FILTER_PID", &0x1234_5678_u32.to_ne_bytes()).unwrap();
        let different = OBJECT.iter().zip(image.bytes()).filter(|(old, new)| old != new).count();
        assert_eq!(different, 4);
        assert!(matches!(image.set_global("FILTER_PID", &[0; 8]), Err(ImageError::Size { expected: 4, given: 8, .. })));
    }

    #[test]
    fn a_global_that_no_program_uses_is_ignored() {
        let mut image = Image::new(OBJECT).unwrap();
        image.set_global("NO_SUCH_GLOBAL", &[1]).unwrap();
        assert_eq!(image.bytes(), OBJECT);
    }

    #[test]
    fn a_maps_size_is_what_aya_then_parses() {
        let mut image = Image::new(OBJECT).unwrap();
        image.set_map_entries("EVENTS", 1 << 20).unwrap();
        let parsed = aya_obj::Object::parse(image.bytes()).unwrap();
        assert_eq!(parsed.maps["EVENTS"].max_entries(), 1 << 20);
        assert!(matches!(image.set_map_entries("NONE", 1), Err(ImageError::NoSymbol { kind: "map", .. })));
    }
}
