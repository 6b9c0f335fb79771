//! Boots a kernel, runs a script in it, and gives what it prints.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Kernel, initramfs};
use crate::process;

/// The last line of a guest that came to the end of its script.
const FINISHED: &str = "guest: finished";

/// What a guest is to do.
pub(crate) struct Job<'a> {
    /// For `/bin/sh`, as root, over the files of this host.
    pub(crate) script: &'a str,
    /// A folder of the host that is an empty disk in the guest.
    pub(crate) scratch: &'a Path,
    /// A guest that runs longer is stopped.
    pub(crate) seconds: u32,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The script came to its end.
    Finished,
    /// The guest stopped before, or was stopped: why, and the last lines of its console.
    Broke(String),
}

/// Boots the kernel and hands each line that the script prints to `line`.
pub(crate) fn run(kernel: &Kernel, job: &Job<'_>, mut line: impl FnMut(&str)) -> Result<Ended> {
    let work = tempfile::tempdir()?;
    let at = |name: &str| work.path().join(name);
    initramfs::write(&at("initramfs"), kernel, job.script, &settings(kernel, job)?)?;
    fs::File::create(at("disk"))?.set_len(256 << 20)?;
    let mut qemu = command(kernel, work.path(), job.seconds);
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| process::name(&qemu))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let mut finished = false;
    for bytes in BufReader::new(stdout).split(b'\n') {
        let text = String::from_utf8_lossy(&bytes?).into_owned();
        if text == FINISHED {
            finished = true;
        } else {
            line(&text);
        }
    }
    let status = child.wait()?;
    if finished {
        return Ok(Ended::Finished);
    }
    Ok(Ended::Broke(format!("{}\n{}", why(status, job.seconds), console(&at("console")))))
}

/// What [`INIT`](initramfs) reads, a variable of the shell each.
fn settings(kernel: &Kernel, job: &Job<'_>) -> Result<String> {
    let (modules, config) = (kernel.modules(), kernel.config());
    let mut settings = format!("RELEASE={}\n", quoted(&kernel.release)?);
    let workspace = xtask::workspace_root();
    let paths =
        [("MODULES", modules.as_path()), ("CONFIG", &config), ("SCRATCH", job.scratch), ("WORKSPACE", &workspace)];
    for (name, path) in paths {
        let path = fs::canonicalize(path).with_context(|| path.display().to_string())?;
        writeln!(settings, "{name}={}", quoted(path.to_str().context("a path is not UTF-8")?)?)?;
    }
    Ok(settings)
}

/// A word of a shell.
pub(crate) fn quoted(word: &str) -> Result<String> {
    if word.contains('\'') {
        bail!("a path with a quote in it cannot be given to the guest: {word}");
    }
    Ok(format!("'{word}'"))
}

/// An emulator that ends with this process, whatever ends it, and after `seconds` at the latest.
fn command(kernel: &Kernel, work: &Path, seconds: u32) -> Command {
    let work = work.display();
    let with_us = ["--pdeathsig", "KILL"];
    let mut command = Command::new("setpriv");
    command.args(with_us).args(["timeout", "--foreground", "--signal=KILL"]).arg(seconds.to_string());
    command.arg("setpriv").args(with_us).arg("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]);
    // One thread for all CPUs: with several, kernels stumble over their own breakpoints when programs are attached and their text is
    // patched (qemu 7.2).
    command.args(["-accel", "tcg,thread=single", "-cpu", "max,la57=off", "-smp", "2", "-m", "2G"]);
    command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(format!("{work}/initramfs"));
    // An oops ends the guest: a test that passes in a kernel that has stumbled says nothing. On a busy host the kernel's trial of the
    // timer comes out wrong, and ends it too: no_timer_check leaves that out.
    command
        .arg("-append")
        .arg("console=ttyS0 quiet loglevel=4 panic=-1 oops=panic nokaslr mitigations=off no_timer_check rdinit=/init");
    command.arg("-chardev").arg(format!("file,id=console,path={work}/console"));
    command.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    command.args(["-chardev", "file,id=output,path=/dev/stdout,append=on", "-device", "virtserialport,chardev=output"]);
    command.args(["-fsdev", "local,id=host,path=/,security_model=none,multidevs=remap,readonly=on"]);
    command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    command.arg("-drive").arg(format!("if=virtio,format=raw,cache=unsafe,file={work}/disk"));
    command
}

fn why(status: ExitStatus, seconds: u32) -> String {
    match (status.code(), status.signal()) {
        (Some(124 | 137), _) | (_, Some(9)) => format!("the guest was stopped after {seconds} s"),
        _ => format!("the guest stopped before its script ended ({status})"),
    }
}

/// The last lines of the console, which say why a kernel gave up.
fn console(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(40)..];
    last.iter().flat_map(|line| ["  | ", line, "\n"]).collect()
}
