//! What bpftrace sees of the file system: libraries, the kernel's own files, and the few of `/etc` that libc wants.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};

use super::{
    super::child::variable,
    child::{Place, View},
    exists, open_path,
};

/// Folders with all that is in them: programs and libraries, kernel images and headers, what the kernel says of itself.
const FOLDERS: &[&str] =
    &["/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/nix/store", "/boot", "/proc", "/sys"];
/// Files that the dynamic linker, `strftime` and `username` read.
const FILES: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/os-release",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
];
/// What bpftrace 0.17 starts to ask for the folders of a compiler; it crashes where it cannot, and works without an answer.
const SHELL: &str = "/bin/sh";
/// What it starts instead.
const IDLE: &[&str] = &["/usr/bin/false", "/bin/false"];
/// What may be written.
const SINK: &str = "/dev/null";
/// Environment that names files of the kernel.
const SETTINGS: &[&str] = &["BPFTRACE_BTF", "BPFTRACE_VMLINUX", "BPFTRACE_KERNEL_SOURCE", "BPFTRACE_KERNEL_BUILD"];
/// Folders on one of which the new root is put together; it is hidden there.
const BASES: &[&str] = &["/mnt", "/media", "/srv", "/opt", "/tmp", "/var"];

/// The paths that are shown, and those of them that may be run.
#[derive(Debug)]
pub(super) struct Files {
    shown: BTreeSet<PathBuf>,
    run: BTreeSet<PathBuf>,
    program: PathBuf,
    /// What stands in the shell's place, and where that is.
    shell: Option<(PathBuf, PathBuf)>,
}

impl Files {
    /// For a command: its program, files that it names, and what interprets them. `view`: in a mount namespace, where the shell can
    /// be replaced by what does nothing.
    pub(super) fn of(words: &[String], view: bool) -> io::Result<Self> {
        let program = fs::canonicalize(words.first().ok_or(io::ErrorKind::InvalidInput)?)?;
        let named = words.iter().skip(1).map(PathBuf::from).filter(|path| path.is_absolute() && exists(path));
        let settings = SETTINGS.iter().filter_map(|name| variable(name)).map(PathBuf::from).filter(|path| exists(path));
        let fixed = FOLDERS.iter().chain(FILES).map(PathBuf::from).filter(|path| exists(path));
        let shell = fs::canonicalize(SHELL).ok();
        let idle = IDLE.iter().find_map(|path| fs::canonicalize(path).ok()).filter(|_| view);
        let mut run = runnable(&program);
        run.extend(idle.iter().chain(shell.iter().filter(|_| idle.is_none())).flat_map(|path| runnable(path)));
        let shell = idle.zip(shell).filter(|(_, shell)| *shell != program && !run.contains(shell));
        let shown = fixed.chain(named).chain(settings).chain(run.iter().cloned()).collect();
        Ok(Self { shown, run, program, shell })
    }

    /// The program as it is called inside.
    pub(super) fn program(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }

    /// The steps that build the new root.
    pub(super) fn view(&self) -> io::Result<View> {
        let hides = |base: &&&str| self.shown.iter().any(|path| path.starts_with(base));
        let base = BASES.iter().find(|base| Path::new(base).is_dir() && !hides(base));
        let base = base.ok_or_else(|| io::Error::other("there is no folder to build the new root on"))?;
        let mut builder = Builder::default();
        for path in &self.shown {
            builder.show(path)?;
        }
        if let Some((idle, shell)) = &self.shell {
            builder.places.push(Place::Bind { from: c_string(idle)?, to: c_string(relative(shell))? });
        }
        Ok(View { base: c_string(Path::new(base))?, places: builder.places })
    }

    /// The rules that say the same to Landlock, as far as this kernel knows it.
    pub(super) fn landlock(&self) -> io::Result<OwnedFd> {
        let ruleset = self.ruleset().map_err(io::Error::other)?;
        Option::<OwnedFd>::from(ruleset).ok_or_else(|| {
            io::Error::other("this kernel has no Landlock (Linux 5.13), or it is not in its `lsm=` list")
        })
    }

    fn ruleset(&self) -> Result<landlock::RulesetCreated, RulesetError> {
        let abi = ABI::V6;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?;
        for path in &self.shown {
            if let Ok(file) = open_path(path) {
                ruleset = ruleset.add_rule(PathBeneath::new(file, access(path)))?;
            }
        }
        for path in &self.run {
            if let Ok(file) = open_path(path) {
                ruleset = ruleset.add_rule(PathBeneath::new(file, AccessFs::Execute | AccessFs::ReadFile))?;
            }
        }
        Ok(ruleset)
    }
}

/// What may be done with a path that is shown.
fn access(path: &Path) -> BitFlags<AccessFs> {
    match path {
        path if path == Path::new(SINK) => AccessFs::ReadFile | AccessFs::WriteFile,
        path if path.is_dir() => AccessFs::ReadFile | AccessFs::ReadDir,
        _ => AccessFs::ReadFile.into(),
    }
}

/// Builds each folder once, parents first.
#[derive(Default)]
struct Builder {
    places: Vec<Place>,
    folders: BTreeSet<PathBuf>,
    bound: Vec<PathBuf>,
}

impl Builder {
    fn show(&mut self, path: &Path) -> io::Result<()> {
        if self.bound.iter().any(|bound| path.starts_with(bound)) {
            return Ok(());
        }
        self.parents(path)?;
        let at = c_string(relative(path))?;
        let is_top = path.parent() == Some(Path::new("/"));
        if let Some(to) = fs::read_link(path).ok().filter(|_| is_top) {
            self.places.push(Place::Link { to: c_string(&to)?, at });
        } else {
            self.places.push(if path.is_dir() { Place::Folder(at.clone()) } else { Place::File(at.clone()) });
            self.places.push(Place::Bind { from: c_string(path)?, to: at });
        }
        self.bound.push(path.to_owned());
        Ok(())
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let mut parents: Vec<&Path> = path.ancestors().skip(1).filter(|parent| *parent != Path::new("/")).collect();
        parents.reverse();
        for parent in parents {
            if self.folders.insert(parent.to_owned()) {
                self.places.push(Place::Folder(c_string(relative(parent))?));
            }
        }
        Ok(())
    }
}

/// As seen from the new root, which is the working directory while it is built.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A program, its interpreter, and the dynamic linker of either.
fn runnable(program: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([program.to_owned()]);
    let mut next = interpreter(program);
    // The kernel follows no more than four.
    while let Some(path) = next.and_then(|path| fs::canonicalize(path).ok()).filter(|_| found.len() < 5) {
        next = interpreter(&path);
        found.insert(path);
    }
    found
}

/// What a `#!` line names, or the dynamic linker, whose path stands in the first page of a program that is linked to one.
fn interpreter(program: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    fs::File::open(program).ok()?.take(4096).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next()?).into_owned();
        return line.split_whitespace().next().map(PathBuf::from);
    }
    let strings = head.split(|byte| *byte == 0).filter(|text| text.starts_with(b"/"));
    let text = strings.filter_map(|text| std::str::from_utf8(text).ok()).find(|text| text.contains("/ld"))?;
    Some(text.into())
}
