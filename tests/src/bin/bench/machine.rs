//! The machine that this runs on, and where on it threads may run.

use std::{fs, process::Command, time::SystemTime};

use anyhow::Result;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps the calling thread, and threads and processes that it starts, to one CPU.
pub(crate) fn keep_to_cpu(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets the calling thread run on every CPU again.
pub(crate) fn keep_to_no_cpu() -> Result<()> {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU.min(1024)).for_each(|cpu| set.set(cpu));
    Ok(sched_setaffinity(None, &set)?)
}

/// What a number depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) is_virtual: bool,
    pub(crate) kernel: String,
    pub(crate) date: String,
    pub(crate) bpftrace: String,
    pub(crate) libbpf_tools: String,
    /// Load averages before and after: what else the machine had to do.
    pub(crate) load: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let clock = mcptrace::clock::utc(SystemTime::now());
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            is_virtual: field(&cpuinfo, "flags").is_some_and(|flags| flags.contains("hypervisor")),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            date: clock.chars().take(10).collect(),
            bpftrace: words_of(Command::new("bpftrace").arg("--version")).replace("bpftrace ", ""),
            libbpf_tools: words_of(Command::new("dpkg-query").args(["-W", "-f=${Version}", "libbpf-tools"])),
            load: fs::read_to_string("/proc/loadavg").unwrap_or_default().chars().take_while(|c| *c != ' ').collect(),
        }
    }
}

/// The first value of a name in /proc/cpuinfo.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// The first line that a program prints; `unknown` if it fails.
fn words_of(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() { "unknown".to_owned() } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_cpuinfo_are_found() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(cpuinfo, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(cpuinfo, "bogomips"), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_unknown() {
        assert_eq!(words_of(&mut Command::new("no-such-program")), "unknown");
    }
}
