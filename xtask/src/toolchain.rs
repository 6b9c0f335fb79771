//! Finds what compiles and links BPF on this machine, or says what is missing and how to get it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use xtask::elf;

use crate::process;

/// The target of all kernel programs.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The crates that need unstable features for BPF. Named, because a bare `RUSTC_BOOTSTRAP=1` makes build scripts believe that
/// this is a nightly.
const UNSTABLE_CRATES: &str = "aya_ebpf,aya_log_ebpf,mcptrace_ebpf";

/// A compiler for BPF and a linker of the same LLVM.
#[derive(Debug)]
pub(crate) struct BpfToolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

/// A rustc that can compile for BPF.
#[derive(Debug)]
pub(crate) struct Compiler {
    kind: CompilerKind,
    pub(crate) sysroot: PathBuf,
    pub(crate) version: String,
    llvm_major: u32,
}

#[derive(Debug)]
enum CompilerKind {
    /// A rustc that brings `core` for BPF precompiled.
    Precompiled(PathBuf),
    /// A toolchain of rustup, by name, that compiles `core` itself.
    Nightly(String),
}

/// A bpf-linker.
#[derive(Debug)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

impl BpfToolchain {
    /// Finds a compiler and its linker; builds the linker into `target/tools` when LLVM is there and it is not.
    pub(crate) fn find(root: &Path) -> Result<Self> {
        let compiler = Compiler::find()?;
        let linker = Linker::find_or_build(root, compiler.llvm_major)?;
        Ok(Self { compiler, linker })
    }
}

impl Compiler {
    fn find() -> Result<Self> {
        let candidates = precompiled().into_iter().chain(nightlies());
        let mut usable = candidates.filter_map(|kind| Self::describe(kind).ok());
        usable.next().context(NO_COMPILER)
    }

    fn describe(kind: CompilerKind) -> Result<Self> {
        let mut rustc = kind.rustc();
        let version = process::output(rustc.arg("-vV"))?;
        let sysroot = process::output(kind.rustc().args(["--print", "sysroot"]))?;
        let llvm = field(&version, "LLVM version: ").context("rustc -vV names no LLVM version")?;
        let first_line = version.lines().next().unwrap_or_default();
        Ok(Self {
            sysroot: sysroot.trim().into(),
            version: format!("{first_line}, LLVM {llvm}"),
            llvm_major: major(llvm).with_context(|| format!("LLVM version {llvm}"))?,
            kind,
        })
    }

    /// A `cargo` that compiles with this compiler, whatever the environment says.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match &self.kind {
            CompilerKind::Precompiled(rustc) => {
                let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
                cargo
            }
            CompilerKind::Nightly(name) => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", name, "cargo"]).env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
                cargo
            }
        };
        forget_build_settings(&mut cargo);
        cargo
    }

    /// Arguments of `cargo build` that this compiler needs.
    pub(crate) fn build_arguments(&self) -> &'static [&'static str] {
        match self.kind {
            CompilerKind::Precompiled(_) => &[],
            CompilerKind::Nightly(_) => &["-Zbuild-std=core"],
        }
    }
}

impl CompilerKind {
    fn rustc(&self) -> Command {
        match self {
            Self::Precompiled(path) => Command::new(path),
            Self::Nightly(name) => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", name, "rustc"]).env_remove("RUSTUP_TOOLCHAIN");
                rustup
            }
        }
    }
}

/// Settings of the caller's environment that would change the objects, or the compiler behind our back.
fn forget_build_settings(cargo: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let changes_flags = text.ends_with("RUSTFLAGS") || text.contains("RUSTC_W") || text.ends_with("_LINKER");
        let is_setting = ["CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_"].iter().any(|it| text.starts_with(it));
        if changes_flags || is_setting || text == "CARGO_INCREMENTAL" {
            cargo.env_remove(&name);
        }
    }
}

/// Every rustc in the usual places whose sysroot has `core` for BPF.
fn precompiled() -> Vec<CompilerKind> {
    let in_path = process::all_in_path("rustc");
    let has_core = |rustc: &PathBuf| {
        let sysroot = process::output(Command::new(rustc).args(["--print", "sysroot"]));
        sysroot.is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib").is_dir())
    };
    in_path.into_iter().filter(has_core).map(CompilerKind::Precompiled).collect()
}

/// Every nightly of rustup that has the sources of the standard library.
fn nightlies() -> Vec<CompilerKind> {
    let list = process::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split(' ').next()).filter(|name| name.starts_with("nightly"));
    names.map(|name| CompilerKind::Nightly(name.to_owned())).filter(has_sources).collect()
}

fn has_sources(compiler: &CompilerKind) -> bool {
    let sysroot = process::output(compiler.rustc().args(["--print", "sysroot"]));
    sysroot.is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

const NO_COMPILER: &str = "no Rust compiler for BPF found. Either of these brings one:
  Debian, Ubuntu:  apt-get install rustc-web libstd-rust-web-dev-bpf llvm-22-dev
  with rustup:     rustup toolchain install nightly --component rust-src
                   (and LLVM's development files of the version that `rustup run nightly rustc -vV` prints)";

impl Linker {
    fn find_or_build(root: &Path, llvm_major: u32) -> Result<Self> {
        let tools = root.join("target/tools");
        let mut candidates = vec![tools.join("bin/bpf-linker")];
        candidates.extend(process::all_in_path("bpf-linker"));
        if let Some(path) = candidates.into_iter().find(|path| linked_llvm(path) == Some(llvm_major)) {
            return Self::describe(path, llvm_major);
        }
        build_linker(&tools, llvm_major)?;
        Self::describe(tools.join("bin/bpf-linker"), llvm_major)
    }

    fn describe(path: PathBuf, llvm_major: u32) -> Result<Self> {
        let version = process::output(Command::new(&path).arg("--version"))?;
        let llvm =
            llvm_config(llvm_major).and_then(|config| process::output(Command::new(config).arg("--version")).ok());
        let llvm = llvm.map_or_else(|| llvm_major.to_string(), |llvm| llvm.trim().to_owned());
        Ok(Self { path, version: format!("{}, LLVM {llvm}", version.trim()) })
    }
}

/// Builds the bpf-linker that fits an LLVM. Bitcode of another LLVM gives broken BTF (bpf-linker issues 318 and 319).
fn build_linker(tools: &Path, llvm_major: u32) -> Result<()> {
    let Some(config) = llvm_config(llvm_major) else { bail!("{}", no_linker(llvm_major)) };
    let prefix = process::output(Command::new(config).arg("--prefix"))?;
    eprintln!("xtask: building bpf-linker for LLVM {llvm_major} into {} (a minute, once)", tools.display());
    let feature = format!("llvm-{llvm_major}");
    let mut install = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    install.env("LLVM_PREFIX", prefix.trim()).args([
        "install",
        "bpf-linker",
        "--locked",
        "--force",
        "--no-default-features",
    ]);
    process::run(install.args(["--features", &feature]).arg("--root").arg(tools)).with_context(|| {
        format!("bpf-linker did not build; a bpf-linker of LLVM {llvm_major} in PATH would do as well")
    })
}

fn no_linker(llvm_major: u32) -> String {
    format!(
        "no bpf-linker of LLVM {llvm_major} (the LLVM of the compiler) found, and no LLVM to build it with. This brings it:
  Debian, Ubuntu:  apt-get install llvm-{llvm_major}-dev
  elsewhere:       LLVM {llvm_major} with its development files, so that llvm-config is in PATH;
                   or a bpf-linker that was built with LLVM {llvm_major} in PATH"
    )
}

fn llvm_config(llvm_major: u32) -> Option<PathBuf> {
    llvm_program("llvm-config", llvm_major)
}

/// A program of an LLVM of this major version.
pub(crate) fn llvm_program(name: &str, llvm_major: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm_major}/bin/{name}"));
    let versioned = process::all_in_path(&format!("{name}-{llvm_major}"));
    let candidates = [debian].into_iter().chain(versioned).chain(process::all_in_path(name));
    let has_major = |path: &PathBuf| {
        let version = process::output(Command::new(path).arg("--version")).unwrap_or_default();
        // llvm-config says the bare number, others whose LLVM it is before.
        major(version.split_once("LLVM version ").map_or(version.as_str(), |(_, number)| number)) == Some(llvm_major)
    };
    candidates.into_iter().find(has_major)
}

/// The compiler that cargo uses.
pub(crate) struct Host {
    /// What it is for.
    pub(crate) triple: String,
    pub(crate) llvm_major: u32,
    pub(crate) sysroot: PathBuf,
    /// Its first line about itself.
    pub(crate) version: String,
}

impl Host {
    pub(crate) fn find() -> Result<Self> {
        let version = process::output(Command::new("rustc").arg("-vV"))?;
        let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let llvm = field(&version, "LLVM version: ").and_then(major).context("rustc -vV names no LLVM version")?;
        Ok(Self {
            triple: field(&version, "host: ").context("rustc -vV names no host")?.to_owned(),
            llvm_major: llvm,
            sysroot: sysroot.trim().into(),
            version: version.lines().next().unwrap_or_default().to_owned(),
        })
    }
}

/// The major version of the LLVM that a program is linked with: `libLLVM.so.22.1`, `libLLVM-22.so`, or, linked statically,
/// nothing.
fn linked_llvm(program: &Path) -> Option<u32> {
    let libraries = elf::needed_libraries(&fs::read(program).ok()?).ok()?;
    libraries.iter().find_map(|name| {
        let version = name.strip_prefix("libLLVM.so.").or_else(|| name.strip_prefix("libLLVM-"))?;
        major(version)
    })
}

fn field<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn major(version: &str) -> Option<u32> {
    version.trim().split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}
