//! The program itself, built as the tests are.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The binary `mcptrace`, built once in each test process: cargo builds a package's own binaries for its tests, and this one belongs
/// to another.
///
/// # Panics
///
/// If it cannot be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let own = env::current_exe().expect("a test knows its own file");
        let folder = own.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
        let release = folder.ends_with("release");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--package", "mcptrace", "--bin", "mcptrace"]);
        cargo.args(release.then_some("--release"));
        let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo starts");
        assert!(status.success(), "mcptrace does not build");
        folder.join("mcptrace")
    })
}

/// The processes that a process has started, and theirs, in the order of starting.
pub fn descendants(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> =
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    children.iter().flat_map(|child| std::iter::once(*child).chain(descendants(*child))).collect()
}

/// The command name of a process; empty, where it has ended.
pub fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The launcher of a server, if it has one.
pub fn launcher_of(pid: u32) -> Option<u32> {
    descendants(pid).into_iter().find(|pid| comm(*pid) == "mcptrace-launch")
}

/// The bpftrace that a server's launcher runs, once it has become that.
pub fn bpftrace_of(pid: u32) -> Option<u32> {
    descendants(launcher_of(pid)?).into_iter().find(|pid| comm(*pid) == "bpftrace")
}

/// Whether a process runs. Zombies have ended: whoever is their parent by now may not reap.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X']))
}

/// What a process may do, by its threads: permitted capabilities and those that it could ever get, and whether it may gain any.
/// Bits are those of capabilities(7).
///
/// # Panics
///
/// If there is no such process.
pub fn may_do(pid: u32) -> Vec<(u64, u64, bool)> {
    let of = |thread: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let set = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        (set("CapPrm:"), set("CapBnd:"), field("NoNewPrivs:") == "1")
    };
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(of).collect()
}

/// That a server may neither load modules nor set the clock nor change the network nor give files away nor take low ports, and can never
/// get to.
///
/// # Panics
///
/// If it may.
pub fn assert_has_shed(pid: u32) {
    const DANGEROUS: u64 = 1 << 12 | 1 << 13 | 1 << 16 | 1 << 17 | 1 << 22 | 1 << 25;
    // `CAP_CHOWN` and `CAP_NET_BIND_SERVICE`: only starting takes them.
    const OF_THE_START: u64 = 1 | 1 << 10;
    const NEVER: u64 = DANGEROUS | OF_THE_START;
    for (permitted, ever, fixed) in may_do(pid) {
        assert_eq!((permitted & NEVER, ever & NEVER, fixed), (0, 0, true), "{permitted:x} {ever:x}");
    }
}

/// Memory that is a process's own, in bytes: without pages of files, which come and go as code is first run.
pub fn own_memory(pid: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let mut pages = pages.split(' ').map(|pages| pages.parse::<u64>().unwrap_or_default()).skip(1);
    let (resident, of_files) = (pages.next().unwrap(), pages.next().unwrap());
    (resident - of_files) * 4096
}
