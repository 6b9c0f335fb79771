//! What the running kernel says about its own types: offsets of struct members, prototypes of tracepoints and functions.
//!
//! libbpf parses the BTF; this module finds names quickly and renders types as C. [`KernelBtf`] maps or holds about
//! 6 MB: load it, ask everything, drop it.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;

use libbpf_rs::btf::types::{Array, Composite, Enum, Enum64, Float, Func, FuncProto, Int, MemberAttr, Ptr, Typedef};
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
    #[error("cannot read the kernel's types from {VMLINUX}: {0}")]
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

/// The types of the running kernel.
#[derive(Debug)]
pub struct KernelBtf {
    btf: Btf<'static>,
    /// Hash of the name and type id of everything that is looked up by name, sorted. libbpf's own look-up walks all types
    /// (1 to 2 ms each in a kernel of 120,000).
    index: Vec<(u64, u32)>,
}

impl KernelBtf {
    /// Reads the running kernel's types.
    pub fn load() -> Result<Self, BtfError> {
        if !Path::new(VMLINUX).exists() {
            return Err(BtfError::Missing);
        }
        let btf = Btf::from_vmlinux().map_err(|error| BtfError::Unreadable(error.to_string()))?;
        let index = index(&btf);
        Ok(Self { btf, index })
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

    fn composites(&self, name: &str) -> impl Iterator<Item = Composite<'_>> {
        self.find(name)
    }

    /// Everything of that name which is a `K`.
    fn find<'s, K: TryFrom<BtfType<'s>>>(&'s self, name: &str) -> impl Iterator<Item = K> {
        let hash = hash(name.as_bytes());
        let first = self.index.partition_point(|(each, _)| *each < hash);
        let same_hash = self.index[first..].iter().take_while(move |(each, _)| *each == hash);
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
        let mut within = outermost;
        let mut names = path.split('.').peekable();
        let mut seen = String::new();
        while let Some(name) = names.next() {
            seen = if seen.is_empty() { name.to_owned() } else { format!("{seen}.{name}") };
            let place = self
                .find_member(&within, name, 0)
                .ok_or_else(|| BtfError::NoMember { structure: structure.to_owned(), member: seen.clone() })?;
            bits += place.bits;
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

    fn find_member(&self, within: &Composite<'_>, name: &str, depth: u32) -> Option<Place> {
        (0..within.len()).filter_map(|at| within.get(at)).find_map(|member| {
            let (bits, bit_field) = match member.attr {
                MemberAttr::Normal { offset } => (offset, false),
                MemberAttr::BitField { offset, .. } => (offset, true),
            };
            match member.name {
                Some(found) => (found == name).then_some(Place { bits, bit_field, ty: member.ty }),
                None if depth < MAX_DEPTH => {
                    let inner = self.find_member(&self.composite_at(member.ty)?, name, depth + 1)?;
                    Some(Place { bits: bits + inner.bits, ..inner })
                }
                None => None,
            }
        })
    }

    fn composite_at(&self, id: TypeId) -> Option<Composite<'_>> {
        Composite::try_from(self.btf.type_by_id::<BtfType<'_>>(id)?.skip_mods_and_typedefs()).ok()
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
        let plain = found.skip_mods_and_typedefs();
        match plain.kind() {
            BtfKind::Ptr => self.btf.ptr_size().map_or(0, |size| size.get() as u32),
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
        let mut text = self.declare(id, String::new(), 0);
        if text.len() > MAX_TYPE_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TYPE_TEXT - "…".len()));
            text.push('…');
        }
        text
    }

    /// Wraps `inner`, what is declared so far, into the type: C declarations are read from the inside out.
    fn declare(&self, id: TypeId, inner: String, depth: u32) -> String {
        let Some(found) = self.btf.type_by_id::<BtfType<'_>>(id).filter(|_| depth < MAX_DEPTH) else {
            return format!("…{inner}");
        };
        let next = |inner: String| {
            found.next_type().map_or_else(String::new, |next| self.declare(next.type_id(), inner, depth + 1))
        };
        match found.kind() {
            BtfKind::Ptr => next(format!("*{inner}")),
            BtfKind::Const | BtfKind::Volatile | BtfKind::Restrict => self.qualify(&found, inner, depth),
            BtfKind::TypeTag => next(inner),
            BtfKind::Array => self.declare_array(found, inner, depth),
            BtfKind::FuncProto => self.declare_function(found, &inner, depth),
            _ => join(&plain_name(&found), &inner),
        }
    }

    /// `const` stands before a plain type, and after the star of a pointer.
    fn qualify(&self, found: &BtfType<'_>, inner: String, depth: u32) -> String {
        let word = match found.kind() {
            BtfKind::Const => "const",
            BtfKind::Volatile => "volatile",
            _ => "restrict",
        };
        let Some(next) = found.next_type() else { return join(word, &inner) };
        match next.kind() {
            BtfKind::Ptr => self.declare(next.type_id(), join(word, &inner), depth + 1),
            _ => join(word, &self.declare(next.type_id(), inner, depth + 1)),
        }
    }

    fn declare_array(&self, found: BtfType<'_>, inner: String, depth: u32) -> String {
        let Ok(array) = Array::try_from(found) else { return inner };
        let inner = if inner.starts_with('*') { format!("({inner})") } else { inner };
        self.declare(array.ty(), format!("{inner}[{}]", array.capacity()), depth + 1)
    }

    fn declare_function(&self, found: BtfType<'_>, inner: &str, depth: u32) -> String {
        let Ok(proto) = FuncProto::try_from(found) else { return inner.to_owned() };
        let types: Vec<String> = (0..proto.len())
            .filter_map(|at| proto.get(at))
            .map(|parameter| self.declare(parameter.ty, String::new(), depth + 1))
            .collect();
        let mut declared = format!("({inner})(");
        let _ = write!(declared, "{})", if types.is_empty() { "void".into() } else { types.join(", ") });
        self.declare(proto.referenced_type_id(), declared, depth + 1)
    }
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
            BtfKind::Struct | BtfKind::Union => true,
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

    fn kernel() -> KernelBtf {
        KernelBtf::load().unwrap()
    }

    fn text(parameters: &[Parameter]) -> Vec<String> {
        parameters.iter().map(|each| format!("{} {}", each.type_name, each.name)).collect()
    }

    #[test]
    fn a_tracepoint_has_names_and_types() {
        let parameters = kernel().tracepoint("sched_switch").unwrap();
        assert_eq!(
            text(&parameters),
            ["bool preempt", "struct task_struct * prev", "struct task_struct * next", "unsigned int prev_state"]
        );
    }

    #[test]
    fn types_read_as_c_writes_them() {
        let kernel = kernel();
        let read = kernel.function("vfs_read").unwrap();
        assert_eq!(text(&read.parameters), ["struct file * file", "char * buf", "size_t count", "loff_t * pos"]);
        assert_eq!(read.returns, "ssize_t");
        assert_eq!(kernel.member("task_struct", "comm").unwrap().type_name, "char[16]");
        assert_eq!(kernel.member("task_struct", "cpus_ptr").unwrap().type_name, "const cpumask_t *");
        assert_eq!(kernel.member("work_struct", "func").unwrap().type_name, "work_func_t");
        assert_eq!(
            kernel.member("hrtimer", "function").unwrap().type_name,
            "enum hrtimer_restart (*)(struct hrtimer *)"
        );
    }

    #[test]
    fn a_path_crosses_structs_and_anonymous_unions() {
        let kernel = kernel();
        let outer = kernel.offset("task_struct", "se").unwrap();
        let inner = kernel.offset("sched_entity", "vruntime").unwrap();
        assert_eq!(kernel.offset("task_struct", "se.vruntime"), Ok(outer + inner));
        assert_eq!(kernel.offset("list_head", "prev"), Ok(8));
        assert!(kernel.offset("sk_buff", "dev").unwrap() > 0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let kernel = kernel();
        assert_eq!(kernel.offset("no_such", "a"), Err(BtfError::NoStruct("no_such".into())));
        assert_eq!(
            kernel.offset("task_struct", "se.no_such").unwrap_err().to_string(),
            "this kernel's struct `task_struct` has no member `se.no_such`"
        );
        assert!(matches!(kernel.offset("task_struct", "pid.x"), Err(BtfError::NotAStruct { .. })));
        assert!(matches!(kernel.offset("task_struct", ""), Err(BtfError::NoMember { .. })));
        assert!(matches!(kernel.offset("task_struct", "in_execve"), Err(BtfError::BitField { .. })));
        assert_eq!(kernel.tracepoint("no_such"), Err(BtfError::NoTracepoint("no_such".into())));
        assert_eq!(kernel.function("no_such"), Err(BtfError::NoFunction("no_such".into())));
    }
}
