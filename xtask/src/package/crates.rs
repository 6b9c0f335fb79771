//! The crates that are published: what is in them, and that they build from it.

use std::path::Path;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};

use crate::build_ebpf::cargo_home;
use crate::process::{self, cargo};

/// In the order in which they are published.
const PUBLISHED: &[&str] = &["mcptrace-wire", "mcptrace"];

/// What each must have, and what neither may.
const EVERYWHERE: &[&str] = &["Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md", "src/lib.rs"];
const IN_MCPTRACE: &[&str] = &[
    "Cargo.lock",
    "src/main.rs",
    "bpf/manifest.json",
    "bpf/file_opens.o",
    "scripts/file_locks.bt",
    "src/recorder/store/schema.sql",
];
const NOWHERE: &[&str] = &["tests/", "target/", "packaging/"];

/// Lists the files of each crate, then packs both and builds the second from its archive alone, with the first from its own: what
/// publishing would do, but for uploading.
pub(super) fn check() -> Result<()> {
    for name in PUBLISHED {
        let list =
            process::output(cargo().args(["package", "--locked", "--allow-dirty", "--list", "--package", name]))?;
        let files: Vec<&str> = list.lines().collect();
        has_all(name, &files, EVERYWHERE)?;
        if *name == "mcptrace" {
            has_all(name, &files, IN_MCPTRACE)?;
        }
        let stray = files.iter().find(|file| NOWHERE.iter().any(|folder| file.starts_with(folder)));
        ensure!(stray.is_none(), "{name}: {} is in the crate", stray.unwrap_or(&""));
        println!("{name}: {} files", files.len());
    }
    forget_unpacked(&cargo_home())?;
    let mut package = cargo();
    package.args(["package", "--locked", "--allow-dirty"]);
    package.args(PUBLISHED.iter().flat_map(|name| ["--package", name]));
    process::run(&mut package)
}

/// Cargo keeps what it unpacks by name and version, of archives that it has just packed itself too: without this an earlier state of the
/// first crate would be built. Folders of those have no host in their names.
fn forget_unpacked(cargo_home: &Path) -> Result<()> {
    let Ok(sources) = fs::read_dir(cargo_home.join("registry/src")) else { return Ok(()) };
    let packed = sources.flatten().filter(|source| source.file_name().as_encoded_bytes().starts_with(b"-"));
    for unpacked in packed.flat_map(|source| fs::read_dir(source.path()).into_iter().flatten().flatten()) {
        let name = unpacked.file_name();
        if PUBLISHED.iter().any(|published| is_version_of(&name.to_string_lossy(), published)) {
            match fs::remove_dir_all(unpacked.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", unpacked.path().display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a folder is that of a crate and a version.
fn is_version_of(folder: &str, name: &str) -> bool {
    let version = folder.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

fn has_all(name: &str, files: &[&str], wanted: &[&str]) -> Result<()> {
    let missing: Vec<_> =
        wanted.iter().filter(|file| !files.iter().any(|have| Path::new(have) == Path::new(file))).collect();
    ensure!(missing.is_empty(), "{name}: the crate lacks {missing:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_without_its_objects_is_noticed() {
        let files = ["Cargo.toml", "src/main.rs"];
        assert!(has_all("x", &files, &["src/main.rs"]).is_ok());
        let said = has_all("x", &files, &["src/main.rs", "bpf/file_opens.o"]).unwrap_err().to_string();
        assert_eq!(said, "x: the crate lacks [\"bpf/file_opens.o\"]");
    }
    #[test]
    fn only_what_cargo_packed_itself_is_forgotten() {
        let home = tempfile::tempdir().unwrap();
        let sources = home.path().join("registry/src");
        let [stale, other, published] =
            ["-14cd/mcptrace-wire-0.1.0", "-14cd/mcptrace-wires-1.0.0", "index.crates.io-19/mcptrace-0.1.0"]
                .map(|folder| sources.join(folder));
        for folder in [&stale, &other, &published] {
            fs::create_dir_all(folder.join("src")).unwrap();
        }
        forget_unpacked(home.path()).unwrap();
        assert_eq!([&stale, &other, &published].map(|folder| folder.exists()), [false, true, true]);
        forget_unpacked(&home.path().join("none")).unwrap();
    }
}
