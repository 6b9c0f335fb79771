//! `cargo xtask build-ebpf`: compiles the kernel programs into objects that any machine can load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use xtask::manifest::{self, Manifest, Toolchain};
use xtask::{elf, workspace_root};

use crate::process;
use crate::toolchain::{BpfToolchain, Compiler, TARGET};

/// Options of `cargo xtask build-ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build again, in another folder, and compare with the committed objects instead of replacing them
    #[arg(long, conflicts_with_all = ["log", "out"])]
    check: bool,
    /// Build with the kernel side's diagnostics, into target/bpf-log
    #[arg(long)]
    log: bool,
    /// Write the objects into this folder instead of mcptrace/bpf
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The architecture of the kernel that the objects are for
    #[arg(long, default_value = "x86_64", value_parser = ["x86_64", "aarch64"])]
    arch: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let root = workspace_root();
    let committed = manifest::objects_folder(&root);
    let default_out = if options.log { root.join("target/bpf-log") } else { committed.clone() };
    let out = options.out.clone().unwrap_or(default_out);
    let foreign = options.arch != "x86_64" && out == committed;
    ensure!(!foreign, "the committed objects are for x86_64; name a folder with --out for {}", options.arch);

    let toolchain = BpfToolchain::find(&root)?;
    let build = Build { root: &root, toolchain: &toolchain, arch: &options.arch, log: options.log };
    if options.check { check(&build, &committed) } else { build.write(&out) }
}

const STALE: &str = "the committed objects are stale";
const REMEDY: &str = "`cargo xtask build-ebpf` makes new ones";

/// Builds in a copy of the workspace in another folder, from nothing, and compares with the committed objects.
fn check(build: &Build<'_>, folder: &Path) -> Result<()> {
    let committed = Manifest::read(folder)?;
    // Before minutes are spent on building what cannot be the same.
    ensure!(committed.sources == manifest::source_hash(build.root)?, "{STALE}: the sources changed since. {REMEDY}");
    let copy = tempfile::tempdir().context("cannot create a temporary folder")?;
    copy_workspace(build.root, copy.path())?;
    let elsewhere = Build { root: copy.path(), ..*build };
    let built = elsewhere.manifest(&elsewhere.compile()?)?;
    let differences = differences(&committed, &built);
    ensure!(differences.is_empty(), "{STALE}: {}. {REMEDY}", differences.join("; "));
    println!("{}", verdict(&committed, &built));
    Ok(())
}

/// Copies what cargo needs to build a member of the workspace.
fn copy_workspace(from: &Path, to: &Path) -> Result<()> {
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(from.join(file), to.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    for member in manifest::members(from)? {
        copy_folder(&from.join(&member), &to.join(&member)).with_context(|| format!("cannot copy {member}"))?;
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// One build of all kernel programs.
#[derive(Clone, Copy)]
struct Build<'a> {
    root: &'a Path,
    toolchain: &'a BpfToolchain,
    arch: &'a str,
    log: bool,
}

/// The stripped objects by name.
type Objects = BTreeMap<String, Vec<u8>>;

impl Build<'_> {
    /// Compiles everything and replaces the objects and the manifest of a folder.
    fn write(&self, folder: &Path) -> Result<()> {
        let objects = self.compile()?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        remove_stale(folder, &objects)?;
        for (name, bytes) in &objects {
            let path = folder.join(name).with_extension("o");
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            println!("{:8} bytes  {}", bytes.len(), path.display());
        }
        self.manifest(&objects)?.write(folder)
    }

    fn manifest(&self, objects: &Objects) -> Result<Manifest> {
        Ok(Manifest {
            sources: manifest::source_hash(self.root)?,
            toolchain: Toolchain {
                arch: self.arch.to_owned(),
                compiler: self.toolchain.compiler.version.clone(),
                linker: self.toolchain.linker.version.clone(),
            },
            objects: objects.iter().map(|(name, bytes)| (name.clone(), manifest::sha256(bytes))).collect(),
        })
    }

    /// Runs cargo and gives the stripped, checked objects.
    fn compile(&self) -> Result<Objects> {
        let target = self.root.join("target/bpf");
        let names = manifest::kernel_programs(self.root)?;
        ensure!(!names.is_empty(), "mcptrace-ebpf/src/bin has no kernel programs");
        self.cargo_build(&target)?;
        let folder = target.join(TARGET).join("bpf");
        names.into_iter().map(|name| Ok((name.clone(), finish(&folder.join(&name))?))).collect()
    }

    fn cargo_build(&self, target: &Path) -> Result<()> {
        let Compiler { sysroot, version, .. } = &self.toolchain.compiler;
        eprintln!("xtask: {version} ({}); {}", sysroot.display(), self.toolchain.linker.version);
        let mut cargo = self.toolchain.compiler.cargo();
        cargo.current_dir(self.root).env("CARGO_ENCODED_RUSTFLAGS", self.flags().join("\x1f"));
        cargo.args([
            "build",
            "--locked",
            "--package",
            manifest::PACKAGE,
            "--bins",
            "--profile",
            "bpf",
            "--target",
            TARGET,
        ]);
        cargo.args(self.toolchain.compiler.build_arguments()).arg("--target-dir").arg(target);
        if self.log {
            cargo.args(["--features", "log"]);
        }
        process::run(&mut cargo)
    }

    /// Flags of rustc. Paths of this machine are replaced because LLVM writes them into BTF.
    fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--cfg=bpf_target_arch=\"{}\"", self.arch),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.toolchain.linker.path.display()),
        ];
        let remap = |(from, to): (PathBuf, &str)| format!("--remap-path-prefix={}={to}", from.display());
        flags.extend(self.remapped_folders().into_iter().map(remap));
        flags
    }

    /// Folders of this machine and what stands for them in objects.
    fn remapped_folders(&self) -> Vec<(PathBuf, &'static str)> {
        let standard_library = self.toolchain.compiler.sysroot.join("lib/rustlib/src/rust");
        let mut folders = vec![(standard_library, "/rust"), (self.root.to_owned(), "/mcptrace")];
        // One folder per registry, named after its address, which a mirror changes.
        let registries = fs::read_dir(cargo_home().join("registry/src")).into_iter().flatten().flatten();
        folders.extend(registries.map(|registry| (registry.path(), "/cargo")));
        folders
    }
}

pub(crate) fn cargo_home() -> PathBuf {
    let default = || env::home_dir().unwrap_or_default().join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

/// Strips a linked program and checks that it is what we commit.
fn finish(path: &Path) -> Result<Vec<u8>> {
    let context = || format!("the object {}", path.display());
    let linked = fs::read(path).with_context(context)?;
    let stripped = elf::strip(&linked).with_context(context)?;
    elf::check(&stripped).with_context(context)?;
    Ok(stripped)
}

/// Removes objects whose kernel program is gone.
fn remove_stale(folder: &Path, objects: &Objects) -> Result<()> {
    let present = manifest::objects(folder)?;
    for name in present.iter().filter(|name| !objects.contains_key(*name)) {
        fs::remove_file(folder.join(name).with_extension("o"))?;
    }
    Ok(())
}

/// What of a committed manifest is not true of a fresh build. Bytes are compared only when the toolchains are the same.
fn differences(committed: &Manifest, built: &Manifest) -> Vec<String> {
    let mut differences = Vec::new();
    let same_toolchain = committed.toolchain == built.toolchain;
    let names: BTreeSet<&String> = committed.objects.keys().chain(built.objects.keys()).collect();
    for name in names {
        match (committed.objects.get(name), built.objects.get(name)) {
            (None, _) => differences.push(format!("{name} has no committed object")),
            (_, None) => differences.push(format!("{name} has no kernel program")),
            (old, new) if same_toolchain && old != new => differences.push(format!("{name} differs")),
            _ => {}
        }
    }
    differences
}

fn verdict(committed: &Manifest, built: &Manifest) -> String {
    let count = committed.objects.len();
    if committed.toolchain == built.toolchain {
        return format!("{count} objects: rebuilt in another folder, every byte the same");
    }
    let Toolchain { arch, compiler, linker } = &committed.toolchain;
    format!(
        "{count} objects: sources are those of the manifest, and they build. Bytes were not compared, because the committed \
         objects are of another toolchain: {compiler}; {linker}; {arch}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(compiler: &str, hash: &str) -> Manifest {
        let toolchain = Toolchain { arch: "x86_64".into(), compiler: compiler.into(), linker: "linker".into() };
        Manifest { sources: "sources".into(), toolchain, objects: [("probe".to_owned(), hash.to_owned())].into() }
    }

    #[test]
    fn bytes_are_compared_only_for_one_toolchain() {
        assert_eq!(differences(&manifest("a", "1"), &manifest("a", "1")), Vec::<String>::new());
        assert_eq!(differences(&manifest("a", "1"), &manifest("a", "2")), ["probe differs"]);
        assert_eq!(differences(&manifest("a", "1"), &manifest("b", "2")), Vec::<String>::new());
        assert!(verdict(&manifest("a", "1"), &manifest("b", "2")).contains("not compared"));
    }

    #[test]
    fn missing_objects_and_programs_are_named() {
        let mut built = manifest("b", "1");
        let object = built.objects.remove("probe").unwrap();
        built.objects.insert("added".into(), object);
        let found = differences(&manifest("a", "1"), &built).join("; ");
        for expected in ["added has no committed object", "probe has no kernel program"] {
            assert!(found.contains(expected), "{found}");
        }
    }
}
