//! The kernel's types, cut down to what programs are attached by. Pure but for reading the file.
//!
//! aya finds a program's hook by the number of a type with a name: the typedef of a tracepoint's prototype, or a function. Of all other types
//! it needs no more than that they are counted; in full it would keep 16 MB of them.

use std::{collections::HashMap, ffi::CStr, fs, io};

use super::btf::VMLINUX;

/// The typedef of a tracepoint's prototype (`include/trace/bpf_probe.h`).
const TRACEPOINT: &[u8] = b"btf_trace_";
/// Kinds of types (`include/uapi/linux/btf.h`).
const FORWARD: u32 = 7;
const TYPEDEF: u32 = 8;
const FUNCTION: u32 = 12;
/// Words of a header and of a type without what its kind adds.
const HEADER: usize = 24;
const TYPE: usize = 12;

/// The running kernel's types, cut down.
pub(super) fn read() -> io::Result<Vec<u8>> {
    let whole = fs::read(VMLINUX)?;
    cut(&whole).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not in the form of version 1"))
}

/// Types in the same number and order, those that nothing is attached by as nameless forward declarations. `None` if it is not BTF as this
/// machine writes it.
fn cut(whole: &[u8]) -> Option<Vec<u8>> {
    let header: Vec<u32> = whole.get(..HEADER)?.chunks_exact(4).map(word).collect();
    let (length, types_at, types_length) = (header[1] as usize, header[2] as usize, header[3] as usize);
    let (names_at, names_length) = (header[4] as usize, header[5] as usize);
    if whole.get(..3)? != [&0xeb9f_u16.to_ne_bytes()[..], &[1]].concat() {
        return None;
    }
    let mut types = whole.get(length + types_at..)?.get(..types_length)?;
    let names = whole.get(length + names_at..)?.get(..names_length)?;
    let mut kept = Names::default();
    let mut out = Vec::with_capacity(HEADER + types_length / 2);
    out.extend_from_slice(&whole[..HEADER]);
    while !types.is_empty() {
        let (name, info) = (word(types.get(..4)?), word(types.get(4..8)?));
        let kind = info >> 24 & 0x1f;
        let name = names.get(name as usize..)?;
        let wanted = kind == FUNCTION || kind == TYPEDEF && name.starts_with(TRACEPOINT);
        let one = if wanted {
            [kept.add(CStr::from_bytes_until_nul(name).ok()?.to_bytes()), info, word(types.get(8..TYPE)?)]
        } else {
            [0, FORWARD << 24, 0]
        };
        out.extend(one.iter().flat_map(|word| word.to_ne_bytes()));
        types = types.get(TYPE + more(kind, info & 0xffff)?..)?;
    }
    let types_length = out.len() - HEADER;
    let header = [HEADER, 0, types_length, types_length, kept.text.len()];
    for (place, value) in out[4..HEADER].chunks_exact_mut(4).zip(header) {
        place.copy_from_slice(&u32::try_from(value).ok()?.to_ne_bytes());
    }
    out.extend(kept.text);
    Some(out)
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// What stands behind a type of a kind with so many members, in bytes (Documentation/bpf/btf.rst).
fn more(kind: u32, members: u32) -> Option<usize> {
    let each = match kind {
        // Pointers, declarations, typedefs, qualifiers, functions, floats, tags of types.
        2 | 7..=12 | 16 | 18 => return Some(0),
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => return Some(4),
        // Arrays.
        3 => return Some(12),
        // Enumerations and parameters.
        6 | 13 => 8,
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => 12,
        _ => return None,
    };
    Some(each * members as usize)
}

/// Names that are kept, each once.
#[derive(Default)]
struct Names<'a> {
    text: Vec<u8>,
    known: HashMap<&'a [u8], u32>,
}

impl<'a> Names<'a> {
    fn add(&mut self, name: &'a [u8]) -> u32 {
        // The empty name stands at 0.
        if self.text.is_empty() {
            self.text.push(0);
        }
        let next = self.text.len() as u32;
        let text = &mut self.text;
        *self.known.entry(name).or_insert_with(|| {
            text.extend_from_slice(name);
            text.push(0);
            next
        })
    }
}

#[cfg(test)]
mod tests {
    use aya::Btf;
    use aya_obj::btf::BtfKind;

    use super::*;

    #[test]
    fn what_programs_are_attached_by_has_the_same_number() {
        let Ok(whole) = fs::read(VMLINUX) else { return };
        let slim = cut(&whole).unwrap();
        assert!(slim.len() < whole.len() * 2 / 3, "{} of {}", slim.len(), whole.len());
        let [whole, slim] = [whole, slim].map(|data| Btf::parse(&data, aya::Endianness::default()).unwrap());
        for (name, kind) in [
            ("btf_trace_sched_switch", BtfKind::Typedef),
            ("btf_trace_sys_enter", BtfKind::Typedef),
            ("vfs_read", BtfKind::Func),
            ("do_exit", BtfKind::Func),
        ] {
            let number = |btf: &Btf| btf.id_by_type_name_kind(name, kind).unwrap();
            assert_eq!(number(&whole), number(&slim), "{name}");
        }
        assert!(slim.id_by_type_name_kind("u64", BtfKind::Typedef).is_err());
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        let Ok(whole) = fs::read(VMLINUX) else { return };
        for wrong in [&b""[..], &b"ELF, or anything else that is long enough to have a header"[..], &whole[..1000]] {
            assert!(cut(wrong).is_none());
        }
        let mut unknown = whole;
        // The first type becomes one of a kind that does not exist.
        unknown[HEADER + 7] = 0x1f;
        assert!(cut(&unknown).is_none());
    }
}
