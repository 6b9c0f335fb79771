//! Functions and USDT probes of an ELF file.
//!
//! What a file says about itself is not to be trusted: sizes are checked against limits, names are bounded and
//! their control characters escaped, and nothing but a regular file is opened.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{ElfFile, FileHeader, ProgramHeader as _, SectionHeader as _, Sym as _};
use object::{Endianness, FileKind, ReadCache, ReadRef as _};

use crate::text::untrusted;

/// The largest symbol or string table that is read, in bytes. A browser with all its symbols has about 100 MB.
const MAX_SECTION: u64 = 256 << 20;
/// The longest symbol that is shown, in bytes. Mangled C++ names pass 1,000.
const MAX_NAME: usize = 2048;
/// The most USDT probes of one file that are read.
const MAX_PROBES: usize = 100_000;
/// `NT_STAPSDT`, the only type of a `stapsdt` note (`sys/sdt.h`).
const STAPSDT_TYPE: u32 = 3;

/// Why a binary cannot be listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BinaryError {
    /// There is no such file, or it cannot be opened.
    #[error("cannot open `{}`: {reason}", path.display())]
    Unopened {
        /// The path as it was given.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// A directory, device, pipe or socket.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Not an ELF file, or one that contradicts itself.
    #[error("`{}` is not a program or library in the ELF format: {reason}", path.display())]
    NotElf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name without a slash that is in none of the usual directories.
    #[error("found no program or library `{0}` in the usual directories: give its full path")]
    NotFound(String),
}

/// A function that a uprobe can attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'data> {
    name: &'data [u8],
    /// Its virtual address in the file.
    pub address: u64,
    /// Its size in bytes; 0 where the file does not say.
    pub size: u64,
}

impl<'data> Function<'data> {
    /// Its name, bounded, control characters escaped.
    pub fn name(&self) -> Cow<'data, str> {
        printable(self.name)
    }
}

/// One place of a USDT probe in the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsdtProbe {
    /// The provider, such as `libc`.
    pub provider: String,
    /// The name, such as `memory_sbrk_more`.
    pub name: String,
    /// Where its arguments are, as the compiler wrote it: `8@%rdi -4@-20(%rbp)`.
    pub arguments: String,
    /// The virtual address of its instruction.
    pub address: u64,
    /// The virtual address of its semaphore, the counter that a tracer increments to switch the probe on.
    pub semaphore: Option<u64>,
}

/// What an ELF file offers to probes.
#[derive(Clone, Debug)]
pub struct Binary<'data> {
    /// Its functions, by name, each name once.
    pub functions: Vec<Function<'data>>,
    /// Its USDT probes, by provider and name; a probe may be in several places.
    pub probes: Vec<UsdtProbe>,
    /// What was left out.
    pub notes: Vec<String>,
    segments: Vec<Segment>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
}

/// An open file, for [`Binary::parse`].
#[derive(Debug)]
pub struct BinaryFile {
    path: PathBuf,
    cache: ReadCache<File>,
}

/// Opens a program or library. A name without a slash is looked for in the usual directories.
pub fn open(name: &str) -> Result<BinaryFile, BinaryError> {
    let path = if name.contains('/') { PathBuf::from(name) } else { search(name)? };
    let unopened = |error: io::Error| BinaryError::Unopened { path: path.clone(), reason: error.to_string() };
    // Non-blocking, because opening a pipe would wait for its writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(&path);
    let file = file.map_err(unopened)?;
    if !file.metadata().map_err(unopened)?.is_file() {
        return Err(BinaryError::NotAFile(path));
    }
    Ok(BinaryFile { path, cache: ReadCache::new(file) })
}

impl BinaryFile {
    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<'data> Binary<'data> {
    /// Reads the symbols and probes of a file.
    pub fn parse(file: &'data BinaryFile) -> Result<Self, BinaryError> {
        let not_elf = |reason: String| BinaryError::NotElf { path: file.path.clone(), reason };
        match FileKind::parse(&file.cache) {
            Ok(FileKind::Elf64) => read::<FileHeader64<Endianness>>(&file.cache),
            Ok(FileKind::Elf32) => read::<FileHeader32<Endianness>>(&file.cache),
            Ok(_) => return Err(not_elf("it has another format".into())),
            Err(_) => return Err(not_elf("it does not begin as one".into())),
        }
        .map_err(|error| not_elf(error.to_string()))
    }

    /// The offset in the file of an address, which is what the kernel wants for a uprobe.
    pub fn offset(&self, address: u64) -> Option<u64> {
        let within = |segment: &&Segment| address.checked_sub(segment.address).is_some_and(|at| at < segment.size);
        let segment = self.segments.iter().find(within)?;
        segment.offset.checked_add(address - segment.address)
    }

    /// The function of that name.
    pub fn function(&self, name: &str) -> Option<Function<'data>> {
        self.functions.iter().find(|function| function.name() == name).copied()
    }
}

type Cache = ReadCache<File>;

fn read<'data, E: FileHeader<Endian = Endianness>>(data: &'data Cache) -> object::read::Result<Binary<'data>> {
    let file: ElfFile<'data, E, &'data Cache> = ElfFile::parse(data)?;
    let mut notes = Vec::new();
    let functions = functions(&file, data, &mut notes);
    Ok(Binary { functions, probes: probes(&file, data, &mut notes), segments: segments(&file), notes })
}

fn segments<'data, E: FileHeader<Endian = Endianness>>(file: &ElfFile<'data, E, &'data Cache>) -> Vec<Segment> {
    let endian = file.endian();
    let loaded = file.elf_program_headers().iter().filter(|header| header.p_type(endian) == elf::PT_LOAD);
    loaded
        .map(|header| Segment {
            address: header.p_vaddr(endian).into(),
            offset: header.p_offset(endian).into(),
            size: header.p_filesz(endian).into(),
        })
        .collect()
}

/// The functions of the full and the dynamic symbol table.
fn functions<'data, E: FileHeader<Endian = Endianness>>(
    file: &ElfFile<'data, E, &'data Cache>,
    data: &'data Cache,
    notes: &mut Vec<String>,
) -> Vec<Function<'data>> {
    let mut functions = Vec::new();
    for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
        if let Err(error) = table_functions(file, data, kind, &mut functions) {
            notes.push(format!("a symbol table was not read: {error}"));
        }
    }
    functions.sort_unstable_by_key(|function| (function.name, function.address));
    functions.dedup_by_key(|function| function.name);
    functions
}

fn table_functions<'data, E: FileHeader<Endian = Endianness>>(
    file: &ElfFile<'data, E, &'data Cache>,
    data: &'data Cache,
    kind: elf::SectionType,
    functions: &mut Vec<Function<'data>>,
) -> Result<(), String> {
    let endian = file.endian();
    let sections = file.elf_section_table();
    let Some(table) = sections.iter().find(|section| section.sh_type(endian) == kind) else { return Ok(()) };
    let strings = sections.section(table.link(endian)).map_err(|error| error.to_string())?;
    let names = bytes::<E>(strings, endian, data)?;
    bytes::<E>(table, endian, data)?;
    let symbols: &[E::Sym] = table.data_as_array(endian, data).map_err(|error| error.to_string())?;
    functions.extend(symbols.iter().filter_map(|symbol| {
        let kind = symbol.st_type();
        let callable = kind == elf::STT_FUNC || kind == elf::STT_GNU_IFUNC;
        let address: u64 = symbol.st_value(endian).into();
        let name = until_nul(names.get(symbol.st_name(endian) as usize..)?)?;
        (callable && !symbol.is_undefined(endian) && address != 0 && !name.is_empty()).then(|| Function {
            name,
            address,
            size: symbol.st_size(endian).into(),
        })
    }));
    Ok(())
}

/// The content of a section, unless it is larger than any honest one.
fn bytes<'data, E: FileHeader<Endian = Endianness>>(
    section: &E::SectionHeader,
    endian: Endianness,
    data: &'data Cache,
) -> Result<&'data [u8], String> {
    let Some((offset, size)) = section.file_range(endian) else { return Ok(&[]) };
    if size > MAX_SECTION {
        return Err(format!("it has {size} bytes, and at most {MAX_SECTION} are read"));
    }
    data.read_bytes_at(offset, size).map_err(|()| "it lies outside the file".to_owned())
}

fn probes<'data, E: FileHeader<Endian = Endianness>>(
    file: &ElfFile<'data, E, &'data Cache>,
    data: &'data Cache,
    notes: &mut Vec<String>,
) -> Vec<UsdtProbe> {
    let endian = file.endian();
    let sections = file.elf_section_table();
    let Some((_, section)) = sections.section_by_name(endian, b".note.stapsdt") else { return Vec::new() };
    let base = sections.section_by_name(endian, b".stapsdt.base").map(|(_, base)| base.sh_addr(endian).into());
    if let Err(error) = bytes::<E>(section, endian, data) {
        notes.push(format!("the USDT probes were not read: {error}"));
        return Vec::new();
    }
    let Ok(Some(mut entries)) = section.notes(endian, data) else { return Vec::new() };
    let mut probes = Vec::new();
    while let Ok(Some(note)) = entries.next() {
        if note.name() == b"stapsdt" && note.n_type(endian).0 == STAPSDT_TYPE {
            probes.extend(probe(note.desc(), endian, file.elf_header().is_type_64(), base));
        }
        if probes.len() == MAX_PROBES {
            notes.push(format!("only the first {MAX_PROBES} USDT probes were read"));
            break;
        }
    }
    probes.sort_by(|a, b| (&a.provider, &a.name, a.address).cmp(&(&b.provider, &b.name, b.address)));
    probes
}

/// One note: address, base and semaphore, then provider, name and arguments, each ended by a NUL. Addresses move with
/// the section `.stapsdt.base` when the file was prelinked after the note was written.
fn probe(note: &[u8], endian: Endianness, is_64: bool, base: Option<u64>) -> Option<UsdtProbe> {
    let width = if is_64 { 8 } else { 4 };
    let word = |at: usize| number(note.get(at * width..(at + 1) * width)?, endian);
    let moved = base.map_or(0, |base| base.wrapping_sub(word(1).unwrap_or(base)));
    let mut texts = note.get(3 * width..)?.split(|&byte| byte == 0).map(|text| printable(text).into_owned());
    Some(UsdtProbe {
        address: word(0)?.wrapping_add(moved),
        semaphore: word(2).filter(|&at| at != 0).map(|at| at.wrapping_add(moved)),
        provider: texts.next()?,
        name: texts.next()?,
        arguments: texts.next().unwrap_or_default(),
    })
}

fn number(bytes: &[u8], endian: Endianness) -> Option<u64> {
    let little = endian == Endianness::Little;
    match *bytes {
        [a, b, c, d] if little => Some(u32::from_le_bytes([a, b, c, d]).into()),
        [a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d]).into()),
        _ => bytes.try_into().ok().map(if little { u64::from_le_bytes } else { u64::from_be_bytes }),
    }
}

fn until_nul(bytes: &[u8]) -> Option<&[u8]> {
    Some(&bytes[..bytes.iter().position(|&byte| byte == 0)?])
}

/// Text out of a file that nobody vouches for: bounded, and what hides or moves others escaped. Most names are as they are.
fn printable(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_graphic()) => Cow::Borrowed(text),
        _ => Cow::Owned(untrusted(&bytes[..bytes.len().min(2 * MAX_NAME)], MAX_NAME)),
    }
}

/// Looks for `libc`, `libc.so.6` or `bash` where the dynamic linker and the shell usually look.
fn search(name: &str) -> Result<PathBuf, BinaryError> {
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = [format!("/lib/{architecture}"), format!("/usr/lib/{architecture}")];
    let libraries =
        libraries.iter().map(String::as_str).chain(["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"]);
    let programs = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];
    programs
        .into_iter()
        .find_map(|directory| exact(directory, name))
        .or_else(|| libraries.into_iter().find_map(|directory| library(directory, name)))
        .ok_or_else(|| BinaryError::NotFound(printable(name.as_bytes()).into_owned()))
}

fn exact(directory: &str, name: &str) -> Option<PathBuf> {
    let path = Path::new(directory).join(name);
    path.is_file().then_some(path)
}

/// `libc` is `libc.so.6`: a versioned name before `libc.so`, which may be a linker script.
fn library(directory: &str, name: &str) -> Option<PathBuf> {
    exact(directory, name).or_else(|| {
        let start = format!("{name}.so.");
        let names = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.file_name());
        let versioned = names.filter_map(|found| found.into_string().ok().filter(|found| found.starts_with(&start)));
        versioned.min_by_key(|found| (found.len(), found.clone())).and_then(|found| exact(directory, &found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn note(base: u64, semaphore: u64) -> Vec<u8> {
        let words = [0x1234_u64, base, semaphore].map(u64::to_le_bytes).concat();
        [&words[..], b"app\0request__start\x008@%rdi -4@-20(%rbp)\0"].concat()
    }

    #[test]
    fn a_note_is_a_probe() {
        let found = probe(&note(0x1000, 0x4000), Endianness::Little, true, Some(0x1000)).unwrap();
        assert_eq!((found.provider.as_str(), found.name.as_str()), ("app", "request__start"));
        assert_eq!(found.arguments, "8@%rdi -4@-20(%rbp)");
        assert_eq!((found.address, found.semaphore), (0x1234, Some(0x4000)));
    }

    #[test]
    fn a_moved_base_moves_the_addresses() {
        let found = probe(&note(0x1000, 0), Endianness::Little, true, Some(0x1800)).unwrap();
        assert_eq!((found.address, found.semaphore), (0x1a34, None));
    }

    #[test]
    fn a_short_note_is_none() {
        for length in [0, 7, 24, 27] {
            assert_eq!(probe(&note(0, 0)[..length], Endianness::Little, true, None), None, "{length}");
        }
        assert_eq!(probe(&[0; 12], Endianness::Big, false, None), None);
    }

    #[test]
    fn names_are_bounded_and_escaped() {
        assert_eq!(printable(b"a\x1b[31m\n"), "a\\u{1b}[31m\\u{a}");
        assert_eq!(printable("a\u{202e}b\u{e0041}".as_bytes()), "a\\u{202e}b\\u{e0041}");
        assert_eq!(printable("naïve".as_bytes()), "naïve");
        assert!(printable(&[b'x'; 10_000]).len() <= MAX_NAME + '…'.len_utf8());
    }

    #[test]
    fn what_is_no_binary_is_said() {
        assert!(matches!(open("/no/such"), Err(BinaryError::Unopened { .. })));
        assert!(matches!(open("/"), Err(BinaryError::NotAFile(_))));
        assert!(matches!(open("/dev/zero"), Err(BinaryError::NotAFile(_))));
        assert!(matches!(open("no-such-library-anywhere"), Err(BinaryError::NotFound(_))));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for content in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01\x01\0and nothing more"] {
            file.as_file().set_len(0).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            file.write_all(content).unwrap();
            let opened = open(file.path().to_str().unwrap()).unwrap();
            assert!(matches!(Binary::parse(&opened), Err(BinaryError::NotElf { .. })), "{content:?}");
        }
    }

    /// Every byte of the headers of a real program, spoilt: whatever comes out, it must come out.
    #[test]
    fn a_spoilt_program_neither_panics_nor_hangs() {
        let mut image = std::fs::read("/proc/self/exe").unwrap();
        image.truncate(1 << 16);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for at in 0..64 {
            let mut spoilt = image.clone();
            spoilt[at] ^= 0xff;
            io::Seek::rewind(&mut file).unwrap();
            file.write_all(&spoilt).unwrap();
            if let Ok(binary) = Binary::parse(&open(file.path().to_str().unwrap()).unwrap()) {
                assert!(binary.functions.len() < spoilt.len());
            }
        }
    }
}
