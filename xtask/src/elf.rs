//! What an eBPF object needs for loading, and nothing else.

use anyhow::{Context as _, Result, bail, ensure};
use object::build::elf::{Builder, Dynamic, SectionData};
use object::elf::{DT_NEEDED, SHT_STRTAB};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// Where a path in an object may start: what paths are remapped to, and where distributors build the standard library.
const KNOWN_ROOTS: &[&str] = &["/mcptrace", "/cargo", "/rust", "/usr/src/rustc"];

/// Takes out what no loader reads: DWARF, and relocations of BTF (loaders find functions and variables by symbol).
pub fn strip(elf: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(elf).context("not an ELF object")?;
    for section in &mut builder.sections {
        section.delete = is_debug(&section.name) || section.name.starts_with(b".rel.BTF");
    }
    builder.delete_orphans();
    name_sections_apart(&mut builder);
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped object")?;
    Ok(stripped)
}

/// LLVM keeps the names of sections and of symbols in one string table, which the writer cannot.
fn name_sections_apart(builder: &mut Builder<'_>) {
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
}

/// The shared libraries that a program is linked with.
pub fn needed_libraries(elf: &[u8]) -> Result<Vec<String>> {
    let builder = Builder::read(elf).context("not an ELF program")?;
    let library = |entry: &Dynamic<'_>| match entry {
        Dynamic::String { tag: DT_NEEDED, val } => Some(val.to_string()),
        _ => None,
    };
    Ok(builder.dynamic_data().unwrap_or_default().iter().filter_map(library).collect())
}

/// Checks that an object is stripped, has BTF and a licence, cannot panic, and says nothing about the machine that built it.
pub fn check(elf: &[u8]) -> Result<()> {
    let file = ElfFile64::<object::Endianness>::parse(elf).context("not an ELF object")?;
    for section in file.sections() {
        let name = section.name_bytes()?;
        ensure!(!is_debug(name), "has the debug section {}", name.escape_ascii());
    }
    for name in [".BTF", ".BTF.ext", "license"] {
        ensure!(file.section_by_name(name).is_some_and(|section| section.size() > 0), "has no section {name}");
    }
    // The verifier refuses a function that never returns: "last insn is not an exit or jmp".
    if let Some(panic) = file.symbols().filter_map(|symbol| symbol.name().ok()).find(|name| name.contains("panicking"))
    {
        bail!("can panic, which no kernel loads: {panic}");
    }
    foreign_path(elf).map_or(Ok(()), |path| bail!("names a path of the machine that built it: {path}"))
}

fn is_debug(section: &[u8]) -> bool {
    section.starts_with(b".debug_") || section.starts_with(b".rel.debug_") || section.starts_with(b".rela.debug_")
}

/// The first string that is an absolute path outside the [`KNOWN_ROOTS`].
fn foreign_path(elf: &[u8]) -> Option<String> {
    elf.split(|byte| !byte.is_ascii_graphic())
        .filter_map(|bytes| std::str::from_utf8(bytes).ok())
        .find(|text| is_path(text) && !KNOWN_ROOTS.iter().any(|root| text.starts_with(root)))
        .map(str::to_owned)
}

/// Whether text is an absolute path of at least two folders: shorter ones occur in code by chance.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.matches('/').count() >= 2 && text.len() > 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_build_machine_is_found() {
        let found = |text: &str| foreign_path(format!("\0a\0{text}\0b").as_bytes());
        assert_eq!(found("/home/someone/x.rs").as_deref(), Some("/home/someone/x.rs"));
        assert_eq!(found("/mcptrace/mcptrace-ebpf/src/lib.rs"), None);
        assert_eq!(found("raw/sys_enter"), None);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(strip(b"text").is_err());
        assert!(check(b"text").is_err());
    }
}
