//! Finds which packages of the system are missing, and installs them.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;
use crate::vm;

/// Options of every task that may install packages.
#[derive(Debug, clap::Args)]
pub(crate) struct InstallOptions {
    /// Install nothing: only say which packages are missing and how to get them
    #[arg(long)]
    no_install: bool,
}

/// Something that a task needs and a package of the system brings.
#[derive(Debug)]
pub(crate) struct Need {
    what: &'static str,
    why: &'static str,
    found_by: FoundBy,
    /// Whether the task is pointless without it.
    required: bool,
    packages: Packages,
}

#[derive(Debug)]
enum FoundBy {
    Program(&'static str),
    Header(&'static str),
    File(&'static str),
    Module(&'static str),
}

/// What distributors call it; several names are separated by spaces.
#[derive(Debug)]
struct Packages {
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
    zypper: &'static str,
    apk: &'static str,
}

/// What building mcptrace needs beside Rust.
pub(crate) const TO_BUILD: &[Need] = &[
    Need {
        what: "a C compiler",
        why: "links every Rust program, and compiles libbpf",
        found_by: FoundBy::Program("cc"),
        required: true,
        packages: Packages {
            apt: "gcc libc6-dev",
            dnf: "gcc",
            pacman: "gcc",
            zypper: "gcc",
            apk: "gcc musl-dev linux-headers",
        },
    },
    Need {
        what: "make",
        why: "builds libbpf",
        found_by: FoundBy::Program("make"),
        required: true,
        packages: Packages { apt: "make", dnf: "make", pacman: "make", zypper: "make", apk: "make" },
    },
    Need {
        what: "pkg-config",
        why: "finds the libraries that libbpf is linked with",
        found_by: FoundBy::Program("pkg-config"),
        required: true,
        packages: Packages {
            apt: "pkg-config",
            dnf: "pkgconf-pkg-config",
            pacman: "pkgconf",
            zypper: "pkg-config",
            apk: "pkgconf",
        },
    },
    Need {
        what: "the headers of libelf",
        why: "libbpf reads ELF with it",
        found_by: FoundBy::Header("gelf.h"),
        required: true,
        packages: Packages {
            apt: "libelf-dev",
            dnf: "elfutils-libelf-devel",
            pacman: "libelf",
            zypper: "libelf-devel",
            apk: "elfutils-dev",
        },
    },
    Need {
        what: "the headers of zlib",
        why: "libbpf reads the kernel's configuration with it",
        found_by: FoundBy::Header("zlib.h"),
        required: true,
        packages: Packages {
            apt: "zlib1g-dev",
            dnf: "zlib-devel",
            pacman: "zlib",
            zypper: "zlib-devel",
            apk: "zlib-dev",
        },
    },
];

/// What the fuzzer needs beyond [`TO_BUILD`].
pub(crate) const TO_FUZZ: &[Need] = &[Need {
    what: "a C++ compiler",
    why: "compiles libFuzzer",
    found_by: FoundBy::Program("c++"),
    required: true,
    packages: Packages { apt: "g++", dnf: "gcc-c++", pacman: "gcc", zypper: "gcc-c++", apk: "g++" },
}];

/// What the tests need beyond [`TO_BUILD`].
pub(crate) const TO_TEST: &[Need] = &[
    Need {
        what: "bpftrace",
        why: "runs the scripts of the fallback that tests try",
        found_by: FoundBy::Program("bpftrace"),
        required: true,
        packages: Packages {
            apt: "bpftrace",
            dnf: "bpftrace",
            pacman: "bpftrace",
            zypper: "bpftrace",
            apk: "bpftrace",
        },
    },
    Need {
        what: "libbpf-tools",
        why: "independent tools that results are compared with",
        found_by: FoundBy::Program("syscount"),
        required: false,
        packages: Packages {
            apt: "libbpf-tools",
            dnf: "libbpf-tools",
            pacman: "libbpf-tools",
            zypper: "libbpf-tools",
            apk: "libbpf-tools",
        },
    },
    Need {
        what: "bpftool",
        why: "an independent look at programs, maps and types of the kernel",
        found_by: FoundBy::Program("bpftool"),
        required: true,
        packages: Packages { apt: "bpftool", dnf: "bpftool", pacman: "bpf", zypper: "bpftool", apk: "bpftool" },
    },
    Need {
        what: "sys/sdt.h",
        why: "puts static probes into a test program",
        found_by: FoundBy::Header("sys/sdt.h"),
        required: true,
        packages: Packages {
            apt: "systemtap-sdt-dev",
            dnf: "systemtap-sdt-devel",
            pacman: "systemtap",
            zypper: "systemtap-sdt-devel",
            apk: "systemtap-dev",
        },
    },
    Need {
        what: "binutils",
        why: "readelf and objdump, which symbols are compared with",
        found_by: FoundBy::Program("readelf"),
        required: true,
        packages: Packages {
            apt: "binutils",
            dnf: "binutils",
            pacman: "binutils",
            zypper: "binutils",
            apk: "binutils",
        },
    },
];

/// What booting another kernel needs. Kernels are Debian's, so its tools and keys are wanted elsewhere too, where distributors have them.
pub(crate) const TO_EMULATE: &[Need] = &[
    Need {
        what: "qemu",
        why: "emulates the machine that another kernel runs on",
        found_by: FoundBy::Program("qemu-system-x86_64"),
        required: true,
        packages: Packages {
            apt: "qemu-system-x86",
            dnf: "qemu-system-x86-core",
            pacman: "qemu-system-x86",
            zypper: "qemu-x86",
            apk: "qemu-system-x86_64",
        },
    },
    Need {
        what: "a static busybox",
        why: "is the first program of the guest",
        found_by: FoundBy::Program("busybox"),
        required: true,
        packages: Packages {
            apt: "busybox-static",
            dnf: "busybox",
            pacman: "busybox",
            zypper: "busybox-static",
            apk: "busybox-static",
        },
    },
    Need {
        what: "kmod",
        why: "lists what modules of a kernel need each other",
        found_by: FoundBy::Program("depmod"),
        required: true,
        packages: Packages { apt: "kmod", dnf: "kmod", pacman: "kmod", zypper: "kmod", apk: "kmod" },
    },
    Need {
        what: "apt-get",
        why: "fetches Debian's kernels",
        found_by: FoundBy::Program("apt-get"),
        required: true,
        packages: Packages { apt: "apt", dnf: "apt", pacman: "apt", zypper: "apt", apk: "apt" },
    },
    Need {
        what: "dpkg-deb",
        why: "unpacks Debian's kernels",
        found_by: FoundBy::Program("dpkg-deb"),
        required: true,
        packages: Packages { apt: "dpkg", dnf: "dpkg", pacman: "dpkg", zypper: "dpkg", apk: "dpkg" },
    },
    Need {
        what: "the keys of Debian's archive",
        why: "apt-get checks the kernels' signatures with them",
        found_by: FoundBy::File(vm::KEYS),
        required: true,
        packages: Packages {
            apt: "debian-archive-keyring",
            dnf: "debian-keyring",
            pacman: "debian-archive-keyring",
            zypper: "debian-keyring",
            apk: "debian-archive-keyring",
        },
    },
];
/// What clients of others need: they bring the rest themselves.
pub(crate) const TO_RUN_CLIENTS: &[Need] = &[Need {
    what: "Python with venv",
    why: "installs the official clients and Node, which tests drive the server with",
    found_by: FoundBy::Module("ensurepip"),
    required: true,
    packages: Packages { apt: "python3-venv", dnf: "python3", pacman: "python", zypper: "python3", apk: "python3" },
}];

/// Installs what is missing. An error if something required is missing afterwards.
pub(crate) fn ensure_installed(needs: &[&Need], options: &InstallOptions) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    for Need { what, why, required, .. } in &missing {
        eprintln!("xtask: missing: {what} ({}: {why})", if *required { "required" } else { "optional" });
    }
    match PackageManager::find() {
        Some(manager) if !options.no_install => install(manager, &missing)?,
        Some(manager) => eprintln!("xtask: this would bring it: {}", manager.command_line(&missing)),
        None => {
            eprintln!("xtask: no package manager known to this program (apt-get, dnf, pacman, zypper, apk) was found");
        }
    }
    fail_without_required(needs)
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Makes sure that [`as_root`] will work, and says why it is needed. Any password is asked for now, not amid the work.
pub(crate) fn become_able(why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    eprintln!("xtask: {why}, so sudo is used");
    process::run(&mut as_root("true")).with_context(|| format!("{why}; run this as root, or as one who may use sudo"))
}

/// A command that runs a program as root: by itself when we are root, else through sudo, which asks for a password only if
/// someone is there to type it.
pub(crate) fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    if !std::io::stdin().is_terminal() {
        sudo.arg("-n");
    }
    sudo.arg(program);
    sudo
}

fn missing<'a>(needs: &[&'a Need]) -> Vec<&'a Need> {
    needs.iter().filter(|need| !need.found_by.is_there()).copied().collect()
}

fn fail_without_required(needs: &[&Need]) -> Result<()> {
    let still: Vec<&str> = missing(needs).iter().filter(|need| need.required).map(|need| need.what).collect();
    ensure!(still.is_empty(), "cannot go on without {}", still.join(", "));
    Ok(())
}

/// Installs required and optional things apart, so that an optional one that a distribution lacks stops nothing.
fn install(manager: PackageManager, missing: &[&Need]) -> Result<()> {
    let (required, optional): (Vec<&Need>, Vec<&Need>) = missing.iter().partition(|need| need.required);
    if !required.is_empty() {
        manager.install(&required)?;
    }
    for need in optional {
        if let Err(error) = manager.install(&[need]) {
            eprintln!("xtask: going on without {}: {error:#}", need.what);
        }
    }
    Ok(())
}

impl FoundBy {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => !process::all_in_path(name).is_empty(),
            Self::Header(name) => compiles(&format!("#include <{name}>\n")),
            Self::File(path) => Path::new(path).exists(),
            Self::Module(name) => {
                process::output(Command::new("python3").args(["-c", &format!("import {name}")])).is_ok()
            }
        }
    }
}

/// Whether the C preprocessor accepts a text: it alone knows where it looks for headers.
fn compiles(text: &str) -> bool {
    let mut cc = Command::new("cc");
    cc.args(["-E", "-x", "c", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = cc.spawn() else { return false };
    let written = child.stdin.take().is_some_and(|mut stdin| stdin.write_all(text.as_bytes()).is_ok());
    child.wait().is_ok_and(|status| status.success()) && written
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PackageManager {
    Apt,
    Dnf,
    Pacman,
    Zypper,
    Apk,
}

impl PackageManager {
    const ALL: [Self; 5] = [Self::Apt, Self::Dnf, Self::Pacman, Self::Zypper, Self::Apk];

    fn find() -> Option<Self> {
        Self::ALL.into_iter().find(|manager| !process::all_in_path(manager.program()).is_empty())
    }

    fn program(self) -> &'static str {
        self.install_command()[0]
    }

    /// The program and the arguments that make it install without a question.
    fn install_command(self) -> &'static [&'static str] {
        match self {
            Self::Apt => &["apt-get", "install", "-y", "-q", "--no-install-recommends"],
            Self::Dnf => &["dnf", "install", "-y"],
            Self::Pacman => &["pacman", "-S", "--needed", "--noconfirm"],
            Self::Zypper => &["zypper", "--non-interactive", "install"],
            Self::Apk => &["apk", "add"],
        }
    }

    fn packages(self, needs: &[&Need]) -> Vec<&'static str> {
        let name = |Packages { apt, dnf, pacman, zypper, apk }: &Packages| match self {
            Self::Apt => *apt,
            Self::Dnf => *dnf,
            Self::Pacman => *pacman,
            Self::Zypper => *zypper,
            Self::Apk => *apk,
        };
        needs.iter().flat_map(|need| name(&need.packages).split(' ')).collect()
    }

    fn command_line(self, needs: &[&Need]) -> String {
        process::name(&self.command(needs))
    }

    fn command(self, needs: &[&Need]) -> Command {
        let mut command = self.start(self.install_command());
        command.args(self.packages(needs));
        command
    }

    fn start(self, words: &[&str]) -> Command {
        let quiet = ["DEBIAN_FRONTEND=noninteractive"];
        let environment = if self == Self::Apt { quiet.as_slice() } else { &[] };
        // Through env, because sudo drops variables.
        let mut command = as_root("env");
        command.args(environment).args(words).stdin(Stdio::null());
        if !is_root() {
            command.stdin(Stdio::inherit());
        }
        command
    }

    fn install(self, needs: &[&Need]) -> Result<()> {
        ensure!(
            is_root() || !process::all_in_path("sudo").is_empty(),
            "installing needs root and there is no sudo; as root: {}",
            self.command_line(needs)
        );
        if self == Self::Apt && !knows(&self.packages(needs)) {
            self.update()?;
        }
        self.run_install(needs).or_else(|error| self.retry(needs, error))
    }

    fn run_install(self, needs: &[&Need]) -> Result<()> {
        let mut command = self.command(needs);
        eprintln!("xtask: {}", process::name(&command));
        process::run(&mut command)
    }

    /// Lists of packages that are older than the archive name files that are gone.
    fn retry(self, needs: &[&Need], error: anyhow::Error) -> Result<()> {
        if self != Self::Apt {
            bail!(error);
        }
        self.update()?;
        self.run_install(needs)
    }

    fn update(self) -> Result<()> {
        let mut command = self.start(&["apt-get", "update", "-q"]);
        eprintln!("xtask: {}", process::name(&command));
        process::run(&mut command).context("the list of packages could not be updated")
    }
}

/// Whether apt's lists have all these packages.
fn knows(packages: &[&str]) -> bool {
    packages.iter().all(|package| process::output(Command::new("apt-cache").args(["show", package])).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(found_by: FoundBy, required: bool) -> Need {
        let packages = Packages { apt: "a b", dnf: "c", pacman: "d", zypper: "e", apk: "f" };
        Need { what: "the thing", why: "a test wants it", found_by, required, packages }
    }

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_missing() {
        assert!(FoundBy::Program("sh").is_there());
        assert!(FoundBy::Header("stdio.h").is_there());
        assert!(!FoundBy::Program("no-such-program").is_there());
        assert!(!FoundBy::Header("no_such_header.h").is_there());
        assert!(!FoundBy::Module("no_such_module").is_there());
    }

    #[test]
    fn only_what_is_required_stops() {
        let optional = need(FoundBy::Program("no-such-program"), false);
        let required = need(FoundBy::Program("no-such-program"), true);
        let no_install = InstallOptions { no_install: true };
        assert!(ensure_installed(&[&optional], &no_install).is_ok());
        let error = ensure_installed(&[&optional, &required], &no_install).unwrap_err().to_string();
        assert_eq!(error, "cannot go on without the thing");
    }

    #[test]
    fn the_command_names_every_package_and_asks_nothing() {
        let need = need(FoundBy::Program("x"), true);
        let line = |manager: PackageManager| manager.command_line(&[&need]);
        let apt = line(PackageManager::Apt);
        assert!(
            apt.ends_with("DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends a b"),
            "{apt}"
        );
        assert!(line(PackageManager::Pacman).ends_with("pacman -S --needed --noconfirm d"));
        assert!(line(PackageManager::Apk).ends_with("apk add f"));
    }
}
