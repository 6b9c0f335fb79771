//! Does one thing wrong, for real, until it is killed: what `mcptrace triage` is to find. `fault NAME` prints `ready` when it is under way.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a fault that cannot be made is a bug of the test"
)]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, exit},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// Every fault by its name.
const FAULTS: &[(&str, fn())] = &[
    ("cpu_hog", cpu_hog),
    ("exec_storm", exec_storm),
    ("fsync_loop", fsync_loop),
    ("direct_io", direct_io),
    ("lock_convoy", lock_convoy),
    ("kernel_lock", kernel_lock),
    ("memory_limit", memory_limit),
    ("throttled", throttled),
    ("lossy_link", lossy_link),
    ("refused", refused),
    ("failing_opens", failing_opens),
    ("slow_names", slow_names),
    ("signal_storm", signal_storm),
    ("soft_interrupts", soft_interrupts),
];

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some((_, fault)) = FAULTS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = FAULTS.iter().map(|(known, _)| *known).collect();
        eprintln!("there is no fault `{name}`; there are {}", known.join(", "));
        return ExitCode::from(2);
    };
    // Dies with whoever started it, so that nothing is left to burn.
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    fault();
    ExitCode::SUCCESS
}

fn ready() {
    println!("ready");
    std::io::stdout().flush().unwrap();
}

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

/// Runs the same in so many threads, for ever.
fn threads(many: usize, work: impl Fn(usize) + Send + Sync + 'static) {
    let work = Arc::new(work);
    let all: Vec<_> = (0..many)
        .map(|index| {
            let work = Arc::clone(&work);
            thread::spawn(move || work(index))
        })
        .collect();
    ready();
    for one in all {
        one.join().unwrap();
    }
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// A folder on a disk, not in memory: beside the program.
fn folder() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().to_owned()
}

/// Three times as many threads as CPUs compute.
fn cpu_hog() {
    threads(3 * cpus(), |_| spin());
}

/// Starts programs as fast as it can.
fn exec_storm() {
    threads(2, |_| {
        loop {
            Command::new("/bin/true").status().unwrap();
        }
    });
}

/// Writes a little and wants it durable, again and again.
fn fsync_loop() {
    let mut file = File::create(folder().join("fault.synced")).unwrap();
    ready();
    loop {
        file.write_all(&[7; 512]).unwrap();
        file.sync_all().unwrap();
        if file.metadata().unwrap().len() > 1 << 22 {
            file.set_len(0).unwrap();
        }
    }
}

/// Reads and writes around the page cache from many threads.
fn direct_io() {
    const SIZE: u64 = 256 << 20;
    let path = folder().join("fault.direct");
    let file = File::create(&path).unwrap();
    // SAFETY: a descriptor that is open.
    assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, SIZE as i64) }, 0);
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let file = Arc::new(file);
    threads(16, move |index| {
        let mut buffer = Aligned([index as u8; 1 << 14]);
        let mut place = index as u64 * 7919;
        loop {
            place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (place >> 16) % (SIZE / buffer.0.len() as u64) * buffer.0.len() as u64;
            // SAFETY: the buffer is as long as said, and aligned for direct I/O.
            unsafe {
                let (fd, length) = (file.as_raw_fd(), buffer.0.len());
                if place & 1 << 40 == 0 {
                    libc::pread(fd, buffer.0.as_mut_ptr().cast(), length, offset as i64);
                } else {
                    libc::pwrite(fd, buffer.0.as_ptr().cast(), length, offset as i64);
                }
            }
        }
    });
}

#[repr(align(4096))]
struct Aligned([u8; 1 << 14]);

/// Many threads want one lock, whose holder sleeps.
fn lock_convoy() {
    let lock = Arc::new(Mutex::new(0_u64));
    threads(8, move |_| {
        loop {
            let mut held = lock.lock().unwrap();
            *held += 1;
            thread::sleep(Duration::from_micros(200));
        }
    });
}

/// Many threads change the mappings of one process: its `mmap_lock` is held while pages are taken away.
fn kernel_lock() {
    threads(8, |_| {
        const LENGTH: usize = 4 << 20;
        loop {
            // SAFETY: a new mapping that nobody else uses, gone before the next.
            unsafe {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
                let mapped = libc::mmap(std::ptr::null_mut(), LENGTH, access, flags, -1, 0);
                assert_ne!(mapped, libc::MAP_FAILED);
                libc::mprotect(mapped, LENGTH / 2, libc::PROT_READ);
                libc::munmap(mapped, LENGTH);
            }
        }
    });
}

/// A control group of its own, by version 2 or 1: `name` is that of version 2 and its value; `old` that of version 1.
fn limited(controller: &str, settings: &[(&str, &str)], old: &[(&str, &str)]) {
    let name = format!("mcptrace-fault-{}", std::process::id());
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let parent = if v2 { PathBuf::from("/sys/fs/cgroup") } else { Path::new("/sys/fs/cgroup").join(controller) };
    if v2 {
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    let group = parent.join(name);
    fs::create_dir(&group).unwrap();
    for (file, value) in if v2 { settings } else { old } {
        fs::write(group.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// Reads a file over and over that does not fit into what its control group may have.
fn memory_limit() {
    let path = folder().join("fault.large");
    let mut file = File::create(&path).unwrap();
    for _ in 0..160 {
        file.write_all(&vec![1; 1 << 20]).unwrap();
    }
    file.sync_all().unwrap();
    // What is cached now belongs to the group that wrote it.
    // SAFETY: a descriptor that is open.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    drop(file);
    limited("memory", &[("memory.max", "67108864")], &[("memory.limit_in_bytes", "67108864")]);
    let mut held = vec![1_u8; 32 << 20];
    ready();
    loop {
        let mut file = File::open(&path).unwrap();
        let mut buffer = vec![0; 1 << 20];
        while file.read(&mut buffer).unwrap() > 0 {
            held.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
        }
    }
}

/// Computes in two threads with a quota of a fifth of a CPU.
fn throttled() {
    limited("cpu", &[("cpu.max", "20000 100000")], &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "20000")]);
    threads(2, |_| spin());
}

/// Sends over a link between two network namespaces that loses one packet in twenty.
fn lossy_link() {
    let (name, id) = (format!("mcpf{}", std::process::id()), std::process::id() % 200);
    let run = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
        assert!(status.success(), "{line}");
    };
    run(&format!("ip netns add {name}"));
    run(&format!("ip link add v{name} type veth peer name w{name} netns {name}"));
    run(&format!("ip addr add 10.213.{id}.1/24 dev v{name}"));
    run(&format!("ip link set v{name} up"));
    run(&format!("ip -n {name} addr add 10.213.{id}.2/24 dev w{name}"));
    run(&format!("ip -n {name} link set w{name} up"));
    for line in ["add table ip f", "add chain ip f i { type filter hook input priority 0 ; }"] {
        run(&format!("ip netns exec {name} nft {line}"));
    }
    run(&format!("ip netns exec {name} nft add rule ip f i numgen random mod 100 < 5 drop"));
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    thread::spawn(move || {
        // SAFETY: a descriptor of a network namespace; only this thread moves.
        assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5201)).unwrap();
        for stream in listener.incoming() {
            thread::spawn(move || std::io::copy(&mut stream.unwrap(), &mut std::io::sink()));
        }
    });
    thread::sleep(Duration::from_millis(300));
    // The namespace lives on in the open file; its name is not needed any more.
    let peer = Ipv4Addr::new(10, 213, id as u8, 2);
    let mut stream = TcpStream::connect((peer, 5201)).unwrap();
    run(&format!("ip netns delete {name}"));
    ready();
    loop {
        stream.write_all(&[0; 1400]).unwrap();
        thread::sleep(Duration::from_micros(500));
    }
}

/// Connects to where nobody listens.
fn refused() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    ready();
    loop {
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Opens what is not there.
fn failing_opens() {
    ready();
    loop {
        assert!(File::open("/nonexistent/configuration").is_err());
    }
}

/// Looks up names at a server that takes its time.
fn slow_names() {
    let server = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 77), 53)).unwrap();
    thread::spawn(move || {
        loop {
            let mut packet = [0; 512];
            let (length, from) = server.recv_from(&mut packet).unwrap();
            let server = server.try_clone().unwrap();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(900));
                // The question comes back as an answer that there is no such name (RFC 1035, section 4.1.1).
                packet[2] |= 0x80;
                packet[3] = 0x83;
                let _ = server.send_to(&packet[..length], from);
            });
        }
    });
    let file = folder().join("fault.resolv.conf");
    fs::write(&file, "nameserver 127.0.0.77\noptions timeout:5 attempts:1\n").unwrap();
    let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let (file, target, root) =
        (path(&file), path(&fs::canonicalize("/etc/resolv.conf").unwrap()), path(Path::new("/")));
    // SAFETY: strings with their NULs; a mount namespace of its own first, so that nobody else resolves by this.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
        let none = std::ptr::null();
        assert_eq!(libc::mount(none, root.as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()), 0);
        assert_eq!(libc::mount(file.as_ptr(), target.as_ptr(), none, libc::MS_BIND, none.cast()), 0);
    }
    ready();
    loop {
        let _ = std::net::ToSocketAddrs::to_socket_addrs("name.example:80");
    }
}

/// Sends signals to a child.
fn signal_storm() {
    // SAFETY: the child only sleeps; the handler does nothing.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::signal(libc::SIGUSR1, nothing as *const () as usize);
            loop {
                libc::pause();
            }
        }
        ready();
        loop {
            if libc::kill(child, libc::SIGUSR1) != 0 {
                exit(1);
            }
        }
    }
}

extern "C" fn nothing(_: i32) {}

/// Sends small packets as fast as it can; each is a soft interrupt.
fn soft_interrupts() {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = receiver.local_addr().unwrap();
    thread::spawn(move || {
        let mut packet = [0; 64];
        while receiver.recv(&mut packet).is_ok() {}
    });
    threads(1, move |_| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        loop {
            let _ = socket.send_to(&[1; 16], to);
        }
    });
}
