//! The crates that are published: what is in them, and that they build from it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};

use crate::build_ebpf::cargo_home;
use crate::process::{self, cargo};
use xtask::workspace_root;

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
    let target = workspace_root().join("target/publish");
    forget(&cargo_home(), &target)?;
    let mut package = cargo();
    package.args(["package", "--locked", "--allow-dirty", "--target-dir"]).arg(&target);
    package.args(PUBLISHED.iter().flat_map(|name| ["--package", name]));
    process::run(&mut package)
}

/// Cargo goes by name and version with what it unpacks and builds, of archives that it has just packed itself too: without this an earlier
/// state of the first crate would be used. Folders of what it packed itself have no host in their names.
fn forget(cargo_home: &Path, target: &Path) -> Result<()> {
    let packed = folders(&cargo_home.join("registry/src")).filter(|source| name(source).starts_with('-'));
    let unpacked = packed.flat_map(|source| folders(&source));
    let built = folders(&target.join("debug/.fingerprint"));
    let of_ours = |folder: &PathBuf| PUBLISHED.iter().any(|crate_name| is_of(&name(folder), crate_name));
    for folder in unpacked.chain(built).filter(of_ours) {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is in a folder; nothing if it is not there.
fn folders(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether a folder is that of a crate: its name and a version or a hash.
fn is_of(folder: &str, crate_name: &str) -> bool {
    folder.strip_prefix(crate_name).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| !rest.contains('-'))
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
        let folder = tempfile::tempdir().unwrap();
        let (home, target) = (folder.path().join("home"), folder.path().join("target"));
        let all = [
            (home.join("registry/src/-14cd/mcptrace-wire-0.1.0"), false),
            (home.join("registry/src/-14cd/mcptrace-other-1.0.0"), true),
            (home.join("registry/src/index.crates.io-19/mcptrace-0.1.0"), true),
            (target.join("debug/.fingerprint/mcptrace-wire-0123456789abcdef"), false),
            (target.join("debug/.fingerprint/mcptrace-0123456789abcdef"), false),
            (target.join("debug/.fingerprint/serde-0123456789abcdef"), true),
        ];
        for (path, _) in &all {
            fs::create_dir_all(path.join("src")).unwrap();
        }
        forget(&home, &target).unwrap();
        for (path, stays) in &all {
            assert_eq!(path.exists(), *stays, "{}", path.display());
        }
        forget(&folder.path().join("none"), &folder.path().join("none")).unwrap();
    }
}
