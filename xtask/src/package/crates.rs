//! The crates that are published: what is in them, and that they build from it.

use std::path::Path;

use anyhow::{Result, ensure};

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
    let mut package = cargo();
    package.args(["package", "--locked", "--allow-dirty"]);
    package.args(PUBLISHED.iter().flat_map(|name| ["--package", name]));
    process::run(&mut package)
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
}
