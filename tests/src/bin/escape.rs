//! A false bpftrace that tries to get out of its box, and prints what came of it as bpftrace prints lines.
//!
//! Called as `escape ATTACK …`; what follows is bpftrace's own.
#![expect(clippy::print_stdout, reason = "bpftrace's output is on standard output")]

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io,
    time::Duration,
};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if words.iter().any(|word| word == "--version") {
        println!("bpftrace v0.17.0");
        return;
    }
    println!("{{\"type\": \"attached_probes\", \"data\": {{\"probes\": 1}}}}");
    match words[1].as_str() {
        "files" => files(&words[2]),
        "out" => out(),
        "self" => itself(),
        "threads" => threads(),
        "memory" => memory(),
        other => say("unknown", other),
    }
}

fn say(what: &str, outcome: &str) {
    println!("{{\"type\": \"printf\", \"data\": \"{what}: {outcome}\\n\"}}");
}

fn tell<T>(what: &str, result: io::Result<T>) {
    let outcome = match result {
        Ok(_) => "done".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), mcptrace::errno::name),
    };
    say(what, &outcome);
}

fn call(what: &str, result: i64) {
    tell(what, if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
}

fn files(secret: &str) {
    let write = |path: &str| OpenOptions::new().write(true).open(path);
    tell("read secret", fs::read(secret));
    tell("read shadow", fs::read("/etc/shadow"));
    tell("read root", fs::read_dir("/root"));
    tell("read home", fs::read_dir("/home"));
    tell("read var", fs::read_dir("/var"));
    tell("read tmp", fs::read_dir("/tmp"));
    tell("read environ", fs::read("/proc/1/environ"));
    tell("read root of 1", fs::read_dir("/proc/1/root/etc"));
    tell("read kcore", fs::read("/proc/kcore").map(drop));
    tell("read disk", fs::read("/dev/vda").map(drop));
    tell("create", fs::write("/escaped", "x"));
    tell("create in usr", fs::write("/usr/escaped", "x"));
    tell("write memory of 1", write("/proc/1/mem"));
    tell("write sysctl", write("/proc/sys/kernel/core_pattern"));
    tell("write trace buffer", write("/sys/kernel/tracing/trace_marker"));
    tell("write passwd", write("/etc/passwd"));
    tell("make a folder", fs::create_dir("/sys/fs/cgroup/escaped"));
    tell("remove", fs::remove_file("/etc/passwd"));
    tell("write null", fs::write("/dev/null", "x"));
    tell("read passwd", fs::read("/etc/passwd"));
    tell("read types", fs::File::open("/sys/kernel/btf/vmlinux"));
}

fn out() {
    let shell = std::process::Command::new("/bin/sh").args(["-c", "echo x; exit 0"]).output();
    let shell = shell.map(|found| format!("{:?}, {} bytes", found.status.code(), found.stdout.len()));
    say("shell", &shell.unwrap_or_else(|error| error.to_string()));
    let path = |text: &str| CString::new(text).unwrap_or_default();
    let (program, root, kind) = (path("/usr/bin/id"), path("/usr"), path("tmpfs"));
    // SAFETY: the calls take numbers, and C strings that outlive them; a child ends at once.
    unsafe {
        call("socket", i64::from(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)));
        call("unix socket", i64::from(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)));
        call("netlink", i64::from(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)));
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        call("fork", i64::from(child));
        let old_fork = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if old_fork == 0 {
            libc::_exit(0);
        }
        call("clone", old_fork);
        let none = [std::ptr::null()];
        call("exec", i64::from(libc::execv(program.as_ptr(), none.as_ptr())));
        call("signal parent", i64::from(libc::kill(libc::getppid(), libc::SIGCONT)));
        call("signal init", i64::from(libc::kill(1, libc::SIGCONT)));
        call("signal all", i64::from(libc::kill(-1, libc::SIGCONT)));
        call("trace parent", libc::ptrace(libc::PTRACE_ATTACH, libc::getppid(), 0, 0));
        call("session", i64::from(libc::setsid()));
        call("mount", i64::from(libc::mount(kind.as_ptr(), root.as_ptr(), kind.as_ptr(), 0, std::ptr::null())));
        call("unmount", i64::from(libc::umount2(root.as_ptr(), libc::MNT_DETACH)));
        call("namespace", i64::from(libc::unshare(libc::CLONE_NEWUSER)));
        call("chroot", i64::from(libc::chroot(root.as_ptr())));
        call("module", libc::syscall(libc::SYS_init_module, 0, 0, 0));
        call("reboot", libc::syscall(libc::SYS_reboot, 0, 0, 0, 0));
        call("io_uring", libc::syscall(libc::SYS_io_uring_setup, 1, 0));
        call("time", libc::syscall(libc::SYS_clock_settime, 0, 0));
        others();
    }
}

/// What decides how other processes run, and what their memory and limits are.
unsafe fn others() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: what pointers there are point to what outlives the calls; the others are nothing.
    unsafe {
        let parent = libc::getppid();
        let read = |process: libc::pid_t, limit: *mut libc::rlimit| {
            libc::syscall(libc::SYS_prlimit64, process, libc::RLIMIT_NOFILE, 0, limit)
        };
        call("limits of parent", read(parent, &raw mut limit));
        call("own limits", read(0, &raw mut limit));
        call("own files", libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, &raw const limit, 0));
        call("own file sizes", libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_FSIZE, &raw const limit, 0));
        call("scheduler", libc::syscall(libc::SYS_sched_setscheduler, parent, libc::SCHED_OTHER, &raw const parameter));
        call("scheduling", libc::syscall(libc::SYS_sched_setattr, parent, 0, 0));
        call("priority parameter", libc::syscall(libc::SYS_sched_setparam, parent, &raw const parameter));
        call("processors", libc::syscall(libc::SYS_sched_setaffinity, parent, 8, &raw const limit));
        call("priority", libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, parent, 0));
        call("disk priority", libc::syscall(libc::SYS_ioprio_set, 1, parent, 0));
        call("compare", libc::syscall(libc::SYS_kcmp, parent, parent, 0, 0, 0));
        call("pages", libc::syscall(libc::SYS_move_pages, parent, 0, 0, 0, 0, 0));
        call("handle", libc::syscall(libc::SYS_pidfd_open, parent, 0));
        call("shared memory", libc::syscall(libc::SYS_shmget, 0, 4096, 0o1600));
        call("death signal", i64::from(libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0)));
        for (name, number) in [("tree", 467), ("mounts", 458), ("mount status", 457), ("release", 448), ("quota", 443)]
        {
            call(name, libc::syscall(number, -1, 0, 0, 0, 0));
        }
    }
}

fn itself() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines() {
        if let Some((key, value)) = line.split_once(":\t")
            && ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"].contains(&key)
        {
            say(key, value.trim());
        }
    }
    let files = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut files: Vec<String> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
    files.sort();
    // The last one is the folder itself.
    say("files", &files[..files.len().saturating_sub(1)].join(" "));
    let network = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let devices: Vec<&str> = network.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    say("devices", &devices.join(" "));
    // SAFETY: the calls have no preconditions.
    let leads = unsafe { libc::getsid(0) == libc::getpid() };
    say("session", if leads { "own" } else { "inherited" });
    let mut names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    names.sort();
    say("environment", &names.join(" "));
}

fn threads() {
    let mut started = 0;
    while started < 10_000 {
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        if thread.spawn(|| std::thread::sleep(Duration::from_secs(30))).is_err() {
            break;
        }
        started += 1;
    }
    say("threads", &started.to_string());
}

fn memory() {
    let mut kept = Vec::new();
    for megabyte in 0..4096_u32 {
        kept.push(vec![megabyte as u8 | 1; 1 << 20]);
    }
    say("memory", &kept.len().to_string());
}
