//! The part of the kernel's types that a loader needs: which number has what a program attaches to.
//!
//! aya looks these numbers up in types that it has parsed, and holds 16 MB for those of a whole kernel. Here all other types give way to
//! the smallest there is, so that every number stays what it is: that takes a third, and looking a name up gets faster too.

use libbpf_rs::btf::{BtfKind, BtfType, TypeId};

use super::{KernelBtf, TRACEPOINT_PREFIX};

/// Functions that stand for iterators and for hooks of security modules (`include/linux/bpf.h`, `include/linux/bpf_lsm.h`, Linux 5.8).
const FUNCTION_PREFIXES: [&str; 2] = ["bpf_iter_", "bpf_lsm_"];

/// `struct btf_header` and the kinds of `struct btf_type` (`include/uapi/linux/btf.h`, Linux 5.10).
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: u32 = 24;
const PTR: u32 = 2;
const TYPEDEF: u32 = 8;
const FUNC: u32 = 12;

impl KernelBtf {
    /// Types in the kernel's own format, numbered as the kernel's: its tracepoints, iterators, hooks of security modules, and the functions
    /// that are named.
    pub fn attach_points(&self, functions: &[&str]) -> Vec<u8> {
        let mut points = Points::default();
        for id in (1..self.btf.len() as u32).map(TypeId::from) {
            match self.btf.type_by_id::<BtfType<'_>>(id).and_then(|found| point(&found, functions)) {
                Some((kind, name)) => points.push(kind, &name),
                None => points.push_filler(),
            }
        }
        points.into_bytes()
    }
}

/// The kind and name of a type that programs attach to.
fn point(found: &BtfType<'_>, functions: &[&str]) -> Option<(u32, String)> {
    let kind = match found.kind() {
        BtfKind::Typedef => TYPEDEF,
        BtfKind::Func => FUNC,
        _ => return None,
    };
    let name = found.name()?.to_str()?;
    let wanted = match kind {
        TYPEDEF => name.starts_with(TRACEPOINT_PREFIX),
        _ => functions.contains(&name) || FUNCTION_PREFIXES.iter().any(|prefix| name.starts_with(prefix)),
    };
    wanted.then(|| (kind, name.to_owned()))
}

/// Types that are being written.
#[derive(Default)]
struct Points {
    types: Vec<u8>,
    /// Behind the empty string, which has place 0 and is added at the end.
    strings: Vec<u8>,
    /// Bytes of `types` up to the last that is wanted: what follows is left out.
    wanted: usize,
}

impl Points {
    fn push(&mut self, kind: u32, name: &str) {
        let place = 1 + self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        self.push_type(place, kind);
        self.wanted = self.types.len();
    }

    fn push_filler(&mut self) {
        self.push_type(0, PTR);
    }

    /// A type that refers to nothing.
    fn push_type(&mut self, name: u32, kind: u32) {
        for word in [name, kind << 24, 0] {
            self.types.extend(word.to_ne_bytes());
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        let Self { mut types, strings, wanted } = self;
        types.truncate(wanted);
        let (types_bytes, strings_bytes) = (types.len() as u32, 1 + strings.len() as u32);
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([VERSION, 0]);
        for word in [HEADER_BYTES, 0, types_bytes, types_bytes, strings_bytes] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.push(0);
        bytes.extend(strings);
        bytes
    }
}
