//! The package for Debian: built by cargo-deb, looked at by lintian where it is, installed and removed in a root of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use xtask::workspace_root;

use super::{build, folder, tool, write};
use crate::packages;
use crate::process;

/// What a user finds after installing.
const INSTALLED: &[&str] = &[
    "etc/mcptrace/config.toml",
    "usr/bin/mcptrace",
    "usr/lib/systemd/system/mcptrace.service",
    "usr/lib/systemd/system/mcptrace.socket",
    "usr/lib/sysusers.d/mcptrace.conf",
    "usr/share/bash-completion/completions/mcptrace",
    "usr/share/doc/mcptrace/changelog.Debian.gz",
    "usr/share/doc/mcptrace/copyright",
    "usr/share/fish/vendor_completions.d/mcptrace.fish",
    "usr/share/man/man1/mcptrace.1.gz",
    "usr/share/man/man1/mcptrace-run.1.gz",
    "usr/share/zsh/vendor-completions/_mcptrace",
];

pub(super) fn build_and_try(debug: bool) -> Result<()> {
    let program = build(debug)?;
    prepare(&program)?;
    let deb = pack(debug)?;
    println!("{}", deb.display());
    lint(&deb)?;
    packages::become_able("a root of its own for the package needs root")?;
    try_out(&deb)
}

/// Writes what the package has beside the program.
fn prepare(program: &Path) -> Result<()> {
    let share = folder().join("share");
    if share.exists() {
        fs::remove_dir_all(&share)?;
    }
    process::output(Command::new(program).arg("generate").arg(&share))?;
    let defaults = process::output(Command::new(program).args(["config", "defaults"]))?;
    write(&folder().join("config.toml"), &commented(&defaults))?;
    process::output(Command::new(program).args(["config", "check"]).arg(folder().join("config.toml")))?;
    Ok(())
}

/// The same configuration with nothing set, so that defaults of a later version come into force where nobody has decided otherwise.
fn commented(defaults: &str) -> String {
    let line = |line: &str| {
        let says = line.is_empty() || line.starts_with(['#', '[']);
        if says { format!("{line}\n") } else { format!("#{line}\n") }
    };
    let head =
        "# Every setting, with its default. Take away the # to set one; `mcptrace config check` tells what is wrong.\n";
    defaults.lines().map(line).fold(head.to_owned(), |text, line| text + &line)
}

/// Builds the package around the program.
fn pack(debug: bool) -> Result<PathBuf> {
    let output = folder().join("debian");
    if output.exists() {
        fs::remove_dir_all(&output)?;
    }
    let mut deb = Command::new(tool("cargo-deb")?);
    deb.current_dir(workspace_root()).env("CARGO_TARGET_DIR", workspace_root().join("target"));
    deb.args(["--package", "mcptrace", "--no-build", "--no-dbgsym", "--output"]).arg(&output);
    deb.args(debug.then_some("--profile=dev"));
    process::run(&mut deb)?;
    let mut built = fs::read_dir(&output)?.flatten().map(|entry| entry.path());
    built
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("cargo-deb wrote no package")
}

fn lint(deb: &Path) -> Result<()> {
    if process::all_in_path("lintian").is_empty() {
        eprintln!("xtask: lintian is not installed, so nothing was linted (apt-get install lintian)");
        return Ok(());
    }
    process::run(Command::new("lintian").args(["--fail-on", "error", "--tag-display-limit", "0"]).arg(deb))
}

/// Installs the package into a root of its own, runs the program from there, and removes and purges it again. The root begins as an
/// empty folder with an empty list of packages, so what the package depends on is not asked for.
fn try_out(deb: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
    let root = root.path();
    for (folder, file) in
        [("var/lib/dpkg/updates", None), ("var/lib/dpkg/info", None), ("var/lib/dpkg", Some("status"))]
    {
        fs::create_dir_all(root.join(folder))?;
        if let Some(file) = file {
            fs::write(root.join(folder).join(file), "")?;
        }
    }
    dpkg(root, &["--install"], Some(deb))?;
    let missing: Vec<_> = INSTALLED.iter().filter(|file| !root.join(file).is_file()).collect();
    ensure!(missing.is_empty(), "not installed: {missing:?}");
    ensure!(!root.join("etc/systemd").exists(), "installing enabled something");
    if !process::all_in_path("systemd-sysusers").is_empty() {
        let groups = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
        ensure!(groups.lines().any(|line| line.starts_with("mcptrace:")), "installing made no group");
    }
    let program = root.join("usr/bin/mcptrace");
    let version = process::output(Command::new(&program).arg("--version"))?;
    ensure!(version.starts_with("mcptrace "), "it says {version:?}");
    let doctor = process::output(packages::as_root(&program.to_string_lossy()).arg("doctor"))?;
    println!("{}\n{}", version.trim(), doctor.lines().next().unwrap_or_default());
    let configuration = root.join("etc/mcptrace/config.toml");
    process::output(Command::new(&program).args(["config", "check"]).arg(&configuration))?;
    dpkg(root, &["--remove", "mcptrace"], None)?;
    ensure!(configuration.is_file(), "removing took the configuration too");
    ensure!(!program.exists(), "removing left the program");
    dpkg(root, &["--purge", "mcptrace"], None)?;
    let left = files_below(root)?;
    let left: Vec<_> = left.iter().filter(|path| !stays(path.strip_prefix(root).unwrap_or(path))).collect();
    ensure!(left.is_empty(), "left after purging: {left:?}");
    println!("installed, run, removed and purged; nothing is left");
    Ok(())
}

/// What dpkg keeps of its own, and the accounts, which stay because files may belong to them.
fn stays(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let accounts = ["passwd", "group", "shadow", "gshadow"].iter().any(|file| name.trim_end_matches('-') == *file);
    path.starts_with("var/lib/dpkg") || path.starts_with("etc") && (accounts || name == ".pwd.lock")
}

/// With the scripts told of the root (DPKG_ROOT), so that nothing outside it is touched.
fn dpkg(root: &Path, words: &[&str], file: Option<&Path>) -> Result<()> {
    let mut dpkg = packages::as_root("dpkg");
    dpkg.arg(format!("--root={}", root.display())).args([
        "--force-depends",
        "--force-script-chrootless",
        "--log=/dev/null",
    ]);
    process::run(dpkg.args(words).args(file))
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_nothing_set_keeps_its_words() {
        let text = commented(
            "# What it is.\n[policy]\n# Default because: so.\nlevel = \"policy\"\n\n[secrets]\nreveal = []\n",
        );
        let lines: Vec<_> = text.lines().skip(1).collect();
        let expected = [
            "# What it is.",
            "[policy]",
            "# Default because: so.",
            "#level = \"policy\"",
            "",
            "[secrets]",
            "#reveal = []",
        ];
        assert_eq!(lines, expected);
    }
}
