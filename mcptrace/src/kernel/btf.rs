//! What the running kernel says about its own types: offsets of struct members, prototypes of tracepoints and functions.
//!
//! libbpf parses the BTF; this module finds names quickly and renders types as C. [`KernelBtf`] maps or holds about
//! 6 MB: load it, ask everything, drop it.

mod attach_points;

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::Path;

use libbpf_rs::btf::types::{
    Array, Composite, Enum, Enum64, EnumMember, Float, Func, FuncProto, Int, MemberAttr, Ptr, Typedef,
};
use libbpf_rs::btf::{Btf, BtfKind, BtfType, HasSize as _, ReferencesType as _, TypeId};
use serde::{Deserialize, Serialize};

/// Where a kernel with `CONFIG_DEBUG_INFO_BTF=y` (5.4 and up) shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The typedef of a raw tracepoint's prototype (`include/trace/bpf_probe.h`, Linux 5.5).
const TRACEPOINT_PREFIX: &str = "btf_trace_";
/// The function that calls a tracepoint's probes. Unlike the typedef, it names its parameters
/// (`include/linux/tracepoint.h`, Linux 5.10).
const ITERATOR_PREFIX: &str = "__traceiter_";
/// How deep types and anonymous members may nest. The kernel's own stay below 16.
const MAX_DEPTH: u32 = 32;
/// How many members are looked at for one name. The largest struct of 6.18 has some 300.
const MAX_MEMBERS: u32 = 100_000;
/// How many types the text of one is put together from.
const MAX_TYPES: u32 = 256;
/// The longest C type that is rendered, in bytes.
const MAX_TYPE_TEXT: usize = 512;

/// Why the kernel's types could not be read, or do not have what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The kernel has none.
    #[error(
        "this kernel does not describe its types: {VMLINUX} is missing. It needs CONFIG_DEBUG_INFO_BTF=y (5.4 and up; \
         most distributions' kernels have it); without it no probe that reads kernel structures can run"
    )]
    Missing,
    /// They are there and cannot be read.
    #[error(
        "cannot read the kernel's types from {VMLINUX}: {0}. Native probes need them: use a kernel with CONFIG_DEBUG_INFO_BTF=y \
         (most distributions' have it), and a /sys that is the kernel's own"
    )]
    Unreadable(String),
    /// No such struct or union.
    #[error("this kernel has no struct `{0}`")]
    NoStruct(String),
    /// The struct has no such member.
    #[error("this kernel's struct `{structure}` has no member `{member}`")]
    NoMember {
        /// The outermost struct.
        structure: String,
        /// The path up to and including what is missing.
        member: String,
    },
    /// The path goes on behind something that has no members.
    #[error("member `{member}` of struct `{structure}` is a `{type_name}`: a path cannot go on behind it")]
    NotAStruct {
        /// The outermost struct.
        structure: String,
        /// The path up to what has no members.
        member: String,
        /// What it is.
        type_name: String,
    },
    /// The member does not begin at a byte.
    #[error("member `{member}` of struct `{structure}` is a bit field: it has no byte offset")]
    BitField {
        /// The outermost struct.
        structure: String,
        /// The path.
        member: String,
    },
    /// Several types of that name disagree.
    #[error("this kernel has several structs `{structure}` that place `{member}` differently")]
    Ambiguous {
        /// The struct.
        structure: String,
        /// The path.
        member: String,
    },
    /// No such tracepoint.
    #[error("this kernel has no BTF tracepoint `{0}`")]
    NoTracepoint(String),
    /// No such function.
    #[error("this kernel's types have no function `{0}`")]
    NoFunction(String),
}

/// A parameter of a tracepoint or function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name; `arg0`, `arg1`… where the kernel does not record names.
    pub name: String,
    /// Its C type.
    pub type_name: String,
}

/// The prototype of a kernel function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prototype {
    /// What it takes.
    pub parameters: Vec<Parameter>,
    /// The C type of what it returns.
    pub returns: String,
}

/// Where a member lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the outermost struct.
    pub offset: u32,
    /// Its size in bytes.
    pub size: u32,
    /// Its C type.
    pub type_name: String,
}

/// Reads types and asks for all that can be asked for. For tests: none may be a panic.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check(bytes: &[u8]) {
    /// A number of names that even large types are read through with.
    const MOST: usize = 64;
    libbpf_rs::set_print(None);
    let Ok(file) = rustix::fs::memfd_create("btf", rustix::fs::MemfdFlags::CLOEXEC) else { return };
    let mut file = File::from(file);
    if io::Write::write_all(&mut file, bytes).is_err() {
        return;
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let Ok(types) = KernelBtf::from_file(Path::new(&path)) else { return };
    for name in types.tracepoints().take(MOST) {
        let _ = types.tracepoint(name);
    }
    for name in types.functions().take(MOST) {
        let _ = types.function(name);
    }
    for kind in [BtfKind::Struct, BtfKind::Union] {
        for name in types.names_of(kind).take(MOST) {
            let _ = (types.size(name), types.offset(name, "a"), types.member(name, "a.b.c"));
        }
    }
    for name in types.names_of(BtfKind::Enum).take(MOST) {
        let _ = types.enumerators(name);
    }
    let names: Vec<_> = types.functions().take(MOST).collect();
    assert!(types.attach_points(&names).len() <= 24 + types.btf.len() * 12 + bytes.len() * MOST);
    for id in 0..4 {
        let _ = types.name(id);
    }
}

/// The types of the running kernel.
#[derive(Debug)]
pub struct KernelBtf {
    btf: Btf<'static>,
    /// Hash of the name and type id of everything that is looked up by name, sorted. libbpf's own look-up walks all types
    /// (1 to 2 ms each in a kernel of 120,000).
    index: OnceCell<Vec<(u64, u32)>>,
}

impl KernelBtf {
    /// Reads the running kernel's types.
    pub fn load() -> Result<Self, BtfError> {
        if !Path::new(VMLINUX).exists() {
            return Err(BtfError::Missing);
        }
        // libbpf fails on an empty file without a reason.
        let start = File::open(VMLINUX).and_then(|mut file| file.read_exact(&mut [0; 2]));
        start.map_err(|error| BtfError::Unreadable(shortage(&error)))?;
        let btf = Btf::from_vmlinux().map_err(|error| BtfError::Unreadable(error.to_string()))?;
        Ok(Self { btf, index: OnceCell::new() })
    }

    /// Reads types out of a file.
    #[cfg(any(test, feature = "fuzzing"))]
    fn from_file(path: &Path) -> Result<Self, BtfError> {
        let btf = Btf::from_path(path).map_err(|error| BtfError::Unreadable(error.to_string()))?;
        Ok(Self { btf, index: OnceCell::new() })
    }

    /// Whether there is a struct or union of that name.
    pub fn has_struct(&self, name: &str) -> bool {
        self.composites(name).next().is_some()
    }

    /// Byte offset of a member given by its path, such as `("task_struct", "thread_info.status")`.
    ///
    /// Anonymous structs and unions are searched through. Errors name the struct and the member.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        Ok(self.member(structure, path)?.offset)
    }

    /// Place, size and type of a member given by its path.
    pub fn member(&self, structure: &str, path: &str) -> Result<Member, BtfError> {
        let mut found: Option<Member> = None;
        let mut failure = BtfError::NoStruct(structure.to_owned());
        for composite in self.composites(structure) {
            match (self.walk(composite, structure, path), &found) {
                (Ok(member), Some(first)) if member.offset != first.offset || member.size != first.size => {
                    return Err(BtfError::Ambiguous { structure: structure.to_owned(), member: path.to_owned() });
                }
                (Ok(member), None) => found = Some(member),
                (Ok(_), Some(_)) => {}
                (Err(error), _) => failure = error,
            }
        }
        found.ok_or(failure)
    }

    /// The size of a struct or union, in bytes.
    pub fn size(&self, structure: &str) -> Result<u32, BtfError> {
        let composite = self.composites(structure).next().ok_or_else(|| BtfError::NoStruct(structure.to_owned()))?;
        Ok(composite.size() as u32)
    }

    /// The parameters of a BTF tracepoint (`tp_btf/NAME`), without the `void *__data` that the kernel puts first.
    pub fn tracepoint(&self, name: &str) -> Result<Vec<Parameter>, BtfError> {
        let missing = || BtfError::NoTracepoint(name.to_owned());
        let typedef: Typedef<'_> = self.find(&format!("{TRACEPOINT_PREFIX}{name}")).next().ok_or_else(missing)?;
        let pointer = Ptr::try_from(typedef.referenced_type()).map_err(|_| missing())?;
        let proto = FuncProto::try_from(pointer.referenced_type()).map_err(|_| missing())?;
        let mut parameters = self.parameters(&proto);
        self.name_parameters(&mut parameters, name);
        parameters.drain(..parameters.len().min(1));
        Ok(parameters)
    }

    /// The name of a type or function by its id.
    pub fn name(&self, id: u32) -> Option<String> {
        let found: BtfType<'_> = self.btf.type_by_id(TypeId::from(id))?;
        Some(found.name()?.to_str()?.to_owned())
    }

    /// The names of all BTF tracepoints, in the kernel's order.
    pub fn tracepoints(&self) -> impl Iterator<Item = &str> {
        self.names_of(BtfKind::Typedef).filter_map(|name| name.strip_prefix(TRACEPOINT_PREFIX))
    }

    /// The names of all functions whose prototype is known, in the kernel's order; a name may come more than once.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.names_of(BtfKind::Func)
    }

    /// The prototype of a function.
    pub fn function(&self, name: &str) -> Result<Prototype, BtfError> {
        let missing = || BtfError::NoFunction(name.to_owned());
        let id = self.ids_of(BtfKind::Func).find(|(_, each)| *each == name).ok_or_else(missing)?.0;
        let function: Func<'_> = self.btf.type_by_id(id).ok_or_else(missing)?;
        let proto = FuncProto::try_from(function.referenced_type()).map_err(|_| missing())?;
        Ok(Prototype { parameters: self.parameters(&proto), returns: self.type_name(proto.referenced_type_id()) })
    }

    /// The names of an enum's values; empty if there is no such enum.
    pub fn enumerators(&self, name: &str) -> BTreeMap<u32, String> {
        let Some(found) = self.find::<Enum<'_>>(name).next() else { return BTreeMap::new() };
        let one = |member: EnumMember<'_>| Some((member.value as u32, member.name?.to_str()?.to_owned()));
        found.iter().filter_map(one).collect()
    }

    fn composites(&self, name: &str) -> impl Iterator<Item = Composite<'_>> {
        self.find(name)
    }

    /// Everything of that name which is a `K`.
    fn find<'s, K: TryFrom<BtfType<'s>>>(&'s self, name: &str) -> impl Iterator<Item = K> {
        let hash = hash(name.as_bytes());
        let index = self.index.get_or_init(|| index(&self.btf));
        let first = index.partition_point(|(each, _)| *each < hash);
        let same_hash = index[first..].iter().take_while(move |(each, _)| *each == hash);
        same_hash
            .filter_map(|(_, id)| self.btf.type_by_id::<BtfType<'_>>(TypeId::from(*id)))
            .filter(move |found| found.name().is_some_and(|found| found.as_encoded_bytes() == name.as_bytes()))
            .filter_map(|found| K::try_from(found).ok())
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn ids_of(&self, kind: BtfKind) -> impl Iterator<Item = (TypeId, &str)> {
        (1..self.btf.len() as u32).map(TypeId::from).filter_map(move |id| {
            let found: BtfType<'_> = self.btf.type_by_id(id)?;
            (found.kind() == kind).then(|| Some((id, found.name()?.to_str()?)))?
        })
    }

    fn names_of(&self, kind: BtfKind) -> impl Iterator<Item = &str> {
        self.ids_of(kind).map(|(_, name)| name)
    }

    fn walk(&self, outermost: Composite<'_>, structure: &str, path: &str) -> Result<Member, BtfError> {
        let mut bits = 0;
        let (mut within, mut left) = (outermost, MAX_MEMBERS);
        let mut names = path.split('.').peekable();
        let mut seen = String::new();
        while let Some(name) = names.next() {
            seen = if seen.is_empty() { name.to_owned() } else { format!("{seen}.{name}") };
            let missing = || BtfError::NoMember { structure: structure.to_owned(), member: seen.clone() };
            let place = self.find_member(&within, name, 0, &mut left).ok_or_else(missing)?;
            bits = place.bits.checked_add(bits).ok_or_else(missing)?;
            if names.peek().is_none() {
                return self.byte_member(structure, path, &Place { bits, ..place });
            }
            within = self.composite_at(place.ty).ok_or_else(|| BtfError::NotAStruct {
                structure: structure.to_owned(),
                member: seen.clone(),
                type_name: self.type_name(place.ty),
            })?;
        }
        Err(BtfError::NoMember { structure: structure.to_owned(), member: path.to_owned() })
    }

    /// `left` bounds how many members are looked at: a struct may hold itself, in types that nobody has checked.
    fn find_member(&self, within: &Composite<'_>, name: &str, depth: u32, left: &mut u32) -> Option<Place> {
        for member in (0..within.len()).filter_map(|at| within.get(at)) {
            *left = left.checked_sub(1)?;
            let (bits, bit_field) = match member.attr {
                MemberAttr::Normal { offset } => (offset, false),
                MemberAttr::BitField { offset, .. } => (offset, true),
            };
            match member.name {
                Some(found) if found == name => return Some(Place { bits, bit_field, ty: member.ty }),
                None if depth < MAX_DEPTH => {
                    let inner = self.composite_at(member.ty);
                    if let Some(inner) = inner.and_then(|inner| self.find_member(&inner, name, depth + 1, left)) {
                        return Some(Place { bits: inner.bits.checked_add(bits)?, ..inner });
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn composite_at(&self, id: TypeId) -> Option<Composite<'_>> {
        Composite::try_from(plain(self.btf.type_by_id::<BtfType<'_>>(id)?)?).ok()
    }

    fn byte_member(&self, structure: &str, path: &str, place: &Place) -> Result<Member, BtfError> {
        if place.bit_field || !place.bits.is_multiple_of(8) {
            return Err(BtfError::BitField { structure: structure.to_owned(), member: path.to_owned() });
        }
        Ok(Member { offset: place.bits / 8, size: self.size_of(place.ty, 0), type_name: self.type_name(place.ty) })
    }

    /// The size of a type in bytes; 0 where it has none (functions, forward declarations).
    fn size_of(&self, id: TypeId, depth: u32) -> u32 {
        let Some(found) = self.btf.type_by_id::<BtfType<'_>>(id).filter(|_| depth < MAX_DEPTH) else { return 0 };
        let Some(plain) = plain(found) else { return 0 };
        match plain.kind() {
            BtfKind::Ptr => size_of::<usize>() as u32,
            BtfKind::Int => Int::try_from(plain).map_or(0, |plain| plain.size() as u32),
            BtfKind::Float => Float::try_from(plain).map_or(0, |plain| plain.size() as u32),
            BtfKind::Enum => Enum::try_from(plain).map_or(0, |plain| plain.size() as u32),
            BtfKind::Enum64 => Enum64::try_from(plain).map_or(0, |plain| plain.size() as u32),
            BtfKind::Struct | BtfKind::Union => Composite::try_from(plain).map_or(0, |plain| plain.size() as u32),
            BtfKind::Array => Array::try_from(plain)
                .map_or(0, |array| self.size_of(array.ty(), depth + 1).saturating_mul(array.capacity() as u32)),
            _ => 0,
        }
    }

    fn parameters(&self, proto: &FuncProto<'_>) -> Vec<Parameter> {
        let one = |at: usize| {
            let parameter = proto.get(at)?;
            let name = parameter.name.map_or_else(|| format!("arg{at}"), |name| name.to_string_lossy().into_owned());
            // A nameless parameter of type void stands for `...`.
            let variadic = parameter.name.is_none() && u32::from(parameter.ty) == 0;
            Some(Parameter { name, type_name: if variadic { "...".into() } else { self.type_name(parameter.ty) } })
        };
        (0..proto.len()).filter_map(one).collect()
    }

    /// Compilers record no parameter names in a typedef's prototype; the function that calls the probes has them.
    fn name_parameters(&self, parameters: &mut [Parameter], tracepoint: &str) {
        let named = self
            .find::<Func<'_>>(&format!("{ITERATOR_PREFIX}{tracepoint}"))
            .next()
            .and_then(|function| FuncProto::try_from(function.referenced_type()).ok())
            .map(|proto| self.parameters(&proto))
            .filter(|named| named.len() == parameters.len());
        // The first is `__data`, which is left out: what remains counts from `arg0`.
        for (at, parameter) in parameters.iter_mut().enumerate() {
            parameter.name = match &named {
                Some(named) => named[at].name.clone(),
                None => format!("arg{}", at.saturating_sub(1)),
            };
        }
    }

    /// A type as C writes it where no name follows: `struct request *`, `const char *`, `u64[4]`.
    fn type_name(&self, id: TypeId) -> String {
        let mut text = self.declare(id, String::new(), &Cell::new(MAX_TYPES));
        if text.len() > MAX_TYPE_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TYPE_TEXT - "…".len()));
            text.push('…');
        }
        text
    }

    /// Wraps `inner`, what is declared so far, into the type: C declarations are read from the inside out. `left` bounds how many types that
    /// takes.
    fn declare(&self, id: TypeId, inner: String, left: &Cell<u32>) -> String {
        let Some(found) = self.btf.type_by_id::<BtfType<'_>>(id).filter(|_| left.get() > 0) else {
            return format!("…{inner}");
        };
        left.set(left.get() - 1);
        let next = |inner: String| {
            found.next_type().map_or_else(String::new, |next| self.declare(next.type_id(), inner, left))
        };
        match found.kind() {
            BtfKind::Ptr => next(format!("*{inner}")),
            BtfKind::Const | BtfKind::Volatile | BtfKind::Restrict => self.qualify(&found, inner, left),
            BtfKind::TypeTag => next(inner),
            BtfKind::Array => self.declare_array(found, inner, left),
            BtfKind::FuncProto => self.declare_function(found, &inner, left),
            _ => join(&plain_name(&found), &inner),
        }
    }

    /// `const` stands before a plain type, and after the star of a pointer.
    fn qualify(&self, found: &BtfType<'_>, inner: String, left: &Cell<u32>) -> String {
        let word = match found.kind() {
            BtfKind::Const => "const",
            BtfKind::Volatile => "volatile",
            _ => "restrict",
        };
        let Some(next) = found.next_type() else { return join(word, &inner) };
        match next.kind() {
            BtfKind::Ptr => self.declare(next.type_id(), join(word, &inner), left),
            _ => join(word, &self.declare(next.type_id(), inner, left)),
        }
    }

    fn declare_array(&self, found: BtfType<'_>, inner: String, left: &Cell<u32>) -> String {
        let Ok(array) = Array::try_from(found) else { return inner };
        let inner = if inner.starts_with('*') { format!("({inner})") } else { inner };
        self.declare(array.ty(), format!("{inner}[{}]", array.capacity()), left)
    }

    fn declare_function(&self, found: BtfType<'_>, inner: &str, left: &Cell<u32>) -> String {
        let Ok(proto) = FuncProto::try_from(found) else { return inner.to_owned() };
        let types: Vec<String> = (0..proto.len())
            .filter_map(|at| proto.get(at))
            .map(|parameter| self.declare(parameter.ty, String::new(), left))
            .collect();
        let mut declared = format!("({inner})(");
        let _ = write!(declared, "{})", if types.is_empty() { "void".into() } else { types.join(", ") });
        self.declare(proto.referenced_type_id(), declared, left)
    }
}

/// A type without qualifiers and typedefs; `None` if there is no end of them. libbpf-rs's own look does not end then.
fn plain(mut found: BtfType<'_>) -> Option<BtfType<'_>> {
    for _ in 0..MAX_DEPTH {
        if !found.is_mod() && found.kind() != BtfKind::Typedef {
            return Some(found);
        }
        found = found.next_type()?;
    }
    None
}

/// Where a member was found.
#[derive(Clone, Copy)]
struct Place {
    bits: u32,
    bit_field: bool,
    ty: TypeId,
}

/// Indexes what is asked for by name: structs, unions, and the two records of each tracepoint.
fn index(btf: &Btf<'_>) -> Vec<(u64, u32)> {
    let wanted = |found: &BtfType<'_>| {
        let name = found.name()?.as_encoded_bytes();
        let wanted = match found.kind() {
            BtfKind::Struct | BtfKind::Union | BtfKind::Enum => true,
            BtfKind::Typedef => name.starts_with(TRACEPOINT_PREFIX.as_bytes()),
            BtfKind::Func => name.starts_with(ITERATOR_PREFIX.as_bytes()),
            _ => false,
        };
        wanted.then(|| hash(name))
    };
    let mut index: Vec<_> =
        (1..btf.len() as u32).filter_map(|id| Some((wanted(&btf.type_by_id(TypeId::from(id))?)?, id))).collect();
    index.sort_unstable();
    index
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

fn plain_name(found: &BtfType<'_>) -> String {
    let name = found.name().map_or_else(|| "{…}".into(), |name| name.to_string_lossy().into_owned());
    match found.kind() {
        BtfKind::Void => "void".into(),
        // A declaration without a body is almost always of a struct.
        BtfKind::Struct | BtfKind::Fwd => format!("struct {name}"),
        BtfKind::Union => format!("union {name}"),
        BtfKind::Enum | BtfKind::Enum64 => format!("enum {name}"),
        _ => name,
    }
}

fn shortage(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof { "it is empty".into() } else { error.to_string() }
}

fn join(left: &str, right: &str) -> String {
    match right.chars().next() {
        None => left.to_owned(),
        Some('[') => format!("{left}{right}"),
        Some(_) => format!("{left} {right}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::ffi::{CString, c_int};
    use std::io::Write as _;
    use std::ptr;

    use aya_obj::btf::BtfKind::{Func, Typedef};
    use libbpf_rs::libbpf_sys as sys;

    /// Writes types as a kernel would show them, so that the reader can be tested without one.
    struct Types(*mut sys::btf);

    impl Types {
        fn new() -> Self {
            // SAFETY: takes nothing and gives an object of its own.
            Self(unsafe { sys::btf__new_empty() })
        }

        fn add(&self, name: &str, add: impl Fn(*mut sys::btf, *const std::ffi::c_char) -> c_int) -> c_int {
            let name = CString::new(name).unwrap();
            let id = add(self.0, name.as_ptr());
            assert!(id >= 0, "{name:?}: {id}");
            id
        }

        fn int(&self) -> c_int {
            // SAFETY: `self.0` lives and the name ends with a NUL; the same holds below.
            self.add("int", |btf, name| unsafe { sys::btf__add_int(btf, name, 4, sys::BTF_INT_SIGNED as c_int) })
        }

        fn pointer(&self, to: c_int) -> c_int {
            // SAFETY: as above.
            self.add("", |btf, _| unsafe { sys::btf__add_ptr(btf, to) })
        }

        fn constant(&self, of: c_int) -> c_int {
            // SAFETY: as above.
            self.add("", |btf, _| unsafe { sys::btf__add_const(btf, of) })
        }

        fn array(&self, of: c_int, length: u32) -> c_int {
            // SAFETY: as above.
            self.add("", |btf, _| unsafe { sys::btf__add_array(btf, of, of, length) })
        }

        /// Members are name, type, offset in bits and size in bits, 0 for one that is no bit field.
        fn structure(&self, name: &str, size: u32, members: &[(&str, c_int, u32, u32)]) -> c_int {
            // SAFETY: as above.
            let id = self.add(name, |btf, name| unsafe { sys::btf__add_struct(btf, name, size) });
            for (member, kind, offset, bits) in members {
                // SAFETY: as above.
                self.add(member, |btf, name| unsafe { sys::btf__add_field(btf, name, *kind, *offset, *bits) });
            }
            id
        }

        fn prototype(&self, returns: c_int, parameters: &[(&str, c_int)]) -> c_int {
            // SAFETY: as above.
            let id = self.add("", |btf, _| unsafe { sys::btf__add_func_proto(btf, returns) });
            for (parameter, kind) in parameters {
                // SAFETY: as above.
                self.add(parameter, |btf, name| unsafe { sys::btf__add_func_param(btf, name, *kind) });
            }
            id
        }

        fn typedef(&self, name: &str, of: c_int) -> c_int {
            // SAFETY: as above.
            self.add(name, |btf, name| unsafe { sys::btf__add_typedef(btf, name, of) })
        }

        fn function(&self, name: &str, prototype: c_int) -> c_int {
            // SAFETY: as above.
            self.add(name, |btf, name| unsafe { sys::btf__add_func(btf, name, sys::BTF_FUNC_GLOBAL, prototype) })
        }

        fn read(self) -> KernelBtf {
            let mut size = 0;
            // SAFETY: the data belongs to the object and is copied before that goes.
            let data = unsafe {
                let data = sys::btf__raw_data(self.0, ptr::from_mut(&mut size));
                std::slice::from_raw_parts(data.cast::<u8>(), size as usize).to_vec()
            };
            // SAFETY: nothing uses the object after this.
            unsafe { sys::btf__free(self.0) };
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&data).unwrap();
            KernelBtf::from_file(file.path()).unwrap()
        }
    }

    #[test]
    fn attach_points_have_the_numbers_of_the_whole() {
        let types = Types::new();
        let int = types.int();
        let prototype = types.prototype(int, &[("__data", int)]);
        types.structure("s", 4, &[("a", int, 0, 0)]);
        let switch = types.typedef("btf_trace_sched_switch", types.pointer(prototype));
        types.typedef("pid_t", int);
        let iter = types.function("bpf_iter_task", prototype);
        types.function("vfs_read", prototype);
        let wanted = types.function("cap_capable", prototype);
        types.function("after_all", prototype);
        let bytes = types.read().attach_points(&["cap_capable"]);

        let part = aya::Btf::parse(&bytes, aya::Endianness::default()).unwrap();
        let number = |name: &str, kind| part.id_by_type_name_kind(name, kind).ok();
        assert_eq!(number("btf_trace_sched_switch", Typedef), Some(switch as u32));
        assert_eq!(number("bpf_iter_task", Func), Some(iter as u32));
        assert_eq!(number("cap_capable", Func), Some(wanted as u32));
        for (absent, kind) in [("pid_t", Typedef), ("vfs_read", Func), ("after_all", Func)] {
            assert_eq!(number(absent, kind), None, "{absent}");
        }
    }

    fn text(parameters: &[Parameter]) -> Vec<String> {
        parameters.iter().map(|each| format!("{}|{}", each.type_name, each.name)).collect()
    }

    #[test]
    fn a_path_crosses_structs_and_anonymous_ones() {
        let types = Types::new();
        let int = types.int();
        let nameless = types.structure("", 8, &[("a", int, 0, 0), ("b", int, 32, 0)]);
        let inner = types.structure("inner", 12, &[("first", int, 0, 0), ("", nameless, 32, 0)]);
        let alias = types.typedef("inner_t", inner);
        types.structure("outer", 20, &[("head", int, 0, 0), ("in", alias, 64, 0)]);
        let btf = types.read();
        assert_eq!(btf.offset("outer", "in.b"), Ok(8 + 4 + 4));
        assert_eq!(btf.member("outer", "in"), Ok(Member { offset: 8, size: 12, type_name: "inner_t".into() }));
        assert_eq!(btf.size("outer"), Ok(20));
        let missing = BtfError::NoMember { structure: "outer".into(), member: "in.c".into() };
        assert_eq!(btf.offset("outer", "in.c.d"), Err(missing));
        assert!(matches!(btf.offset("outer", "head.a"), Err(BtfError::NotAStruct { .. })));
        assert!(matches!(btf.offset("outer", ""), Err(BtfError::NoMember { .. })));
    }

    #[test]
    fn a_bit_field_has_no_offset() {
        let types = Types::new();
        let int = types.int();
        types.structure("flags", 8, &[("bit", int, 0, 1), ("wide", int, 32, 0)]);
        let btf = types.read();
        assert_eq!(
            btf.offset("flags", "bit").unwrap_err(),
            BtfError::BitField { structure: "flags".into(), member: "bit".into() }
        );
        assert_eq!(btf.offset("flags", "wide"), Ok(4));
    }

    #[test]
    fn structs_of_one_name_that_disagree_are_refused() {
        let types = Types::new();
        let int = types.int();
        types.structure("twin", 8, &[("same", int, 0, 0), ("moved", int, 32, 0)]);
        types.structure("twin", 12, &[("same", int, 0, 0), ("moved", int, 64, 0), ("own", int, 32, 0)]);
        let btf = types.read();
        assert_eq!(btf.offset("twin", "same"), Ok(0));
        assert_eq!(btf.offset("twin", "own"), Ok(4));
        assert!(matches!(btf.offset("twin", "moved"), Err(BtfError::Ambiguous { .. })));
    }

    #[test]
    fn an_enums_values_have_names_and_another_enum_has_none() {
        let types = Types::new();
        // SAFETY: as above.
        types.add("color", |btf, name| unsafe { sys::btf__add_enum(btf, name, 4) });
        for (name, value) in [("RED", 1), ("BLUE", 1 << 16)] {
            // SAFETY: as above.
            types.add(name, |btf, name| unsafe { sys::btf__add_enum_value(btf, name, value) });
        }
        let btf = types.read();
        assert_eq!(btf.enumerators("color"), BTreeMap::from([(1, "RED".into()), (1 << 16, "BLUE".into())]));
        assert!(btf.enumerators("taste").is_empty());
    }

    #[test]
    fn types_read_as_c_writes_them() {
        let types = Types::new();
        let int = types.int();
        let thing = types.structure("thing", 4, &[("x", int, 0, 0)]);
        let pointer = types.pointer(thing);
        let constant = types.constant(thing);
        let to_constant = types.pointer(constant);
        let handler = types.prototype(int, &[("", pointer), ("", int)]);
        let members = [
            ("fixed", types.constant(pointer)),
            ("view", to_constant),
            ("list", types.array(pointer, 3)),
            ("grid", types.pointer(types.array(int, 2))),
            ("call", types.pointer(handler)),
            ("calls", types.array(types.pointer(handler), 5)),
            ("any", types.pointer(0)),
            ("run", types.pointer(types.prototype(0, &[]))),
        ];
        types.structure("all", 8, &members.map(|(name, kind)| (name, kind, 0, 0)));
        let btf = types.read();
        let rendered = members.map(|(name, _)| btf.member("all", name).unwrap().type_name);
        assert_eq!(
            rendered,
            [
                "struct thing *const",
                "const struct thing *",
                "struct thing *[3]",
                "int (*)[2]",
                "int (*)(struct thing *, int)",
                "int (*[5])(struct thing *, int)",
                "void *",
                "void (*)(void)",
            ]
        );
        assert_eq!(btf.member("all", "list").unwrap().size, 24);
    }

    #[test]
    fn a_tracepoint_takes_its_names_from_the_function_that_calls_it() {
        let types = Types::new();
        let (int, data) = (types.int(), types.pointer(0));
        for name in ["named", "nameless"] {
            let prototype = types.prototype(0, &[("", data), ("", int), ("", data)]);
            types.typedef(&format!("btf_trace_{name}"), types.pointer(prototype));
        }
        let iterator = types.prototype(int, &[("__data", data), ("count", int), ("where", data)]);
        types.function("__traceiter_named", iterator);
        types.function("plain", types.prototype(int, &[("n", int), ("", 0)]));
        let btf = types.read();
        assert_eq!(text(&btf.tracepoint("named").unwrap()), ["int|count", "void *|where"]);
        assert_eq!(text(&btf.tracepoint("nameless").unwrap()), ["int|arg0", "void *|arg1"]);
        assert_eq!(btf.tracepoints().collect::<Vec<_>>(), ["named", "nameless"]);
        assert_eq!(btf.functions().collect::<Vec<_>>(), ["__traceiter_named", "plain"]);
        let plain = btf.function("plain").unwrap();
        assert_eq!((text(&plain.parameters), plain.returns.as_str()), (vec!["int|n".into(), "...|arg1".into()], "int"));
        assert_eq!(btf.tracepoint("other"), Err(BtfError::NoTracepoint("other".into())));
    }
}
