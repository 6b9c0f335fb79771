//! Does what a library script is to see: a script's name on standard input, so many things of its kind, and `ok`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: it talks by stdout and ends on a failure"
)]

use std::{
    ffi::CString,
    fs,
    io::{BufRead as _, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    ptr::null_mut,
    time::{Duration, Instant},
};

const PAGE: usize = 4096;

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap());
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        perform(line.unwrap().trim(), &folder);
        println!("ok");
        std::io::stdout().flush().unwrap();
    }
}

fn perform(script: &str, folder: &Path) {
    match script {
        "thread_starts" => threads_and_processes(),
        "sleep_requests" => sleeps(),
        "poll_timeouts" => times(7, || call(libc::SYS_poll, [0; 4])),
        "scheduling_changes" => times(3, || call(libc::SYS_setpriority, [0, 0, 0, 0])),
        "file_removals" => removals(folder),
        "permission_changes" => permissions(folder),
        "file_status_calls" => {
            times(13, || call(libc::SYS_access, [c"/nonexistent/mcptrace".as_ptr() as i64, 0, 0, 0]));
        }
        "directory_scans" => scans(folder),
        "file_watches" => watches(folder),
        "file_locks" => locks(folder),
        "fd_growth" => descriptors(),
        "pairs" => pairs(),
        "memory_mappings" | "address_space_lock" | "tlb_flushes" => {
            times(13, || map(3, libc::PROT_READ | libc::PROT_WRITE));
        }
        "page_allocations" => map(61, libc::PROT_READ | libc::PROT_WRITE),
        "kernel_allocations" => times(23, || drop(std::io::pipe().unwrap())),
        "writable_code" => times(3, || map(1, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)),
        "memory_file_use" => memory_files(),
        "unix_connections" => connects(),
        "socket_kinds" => sockets(),
        "datagram_peers" => datagrams(),
        "io_request_sizes" => reads_and_writes(),
        "syscall_stacks" => times(23, || call(libc::SYS_getppid, [0; 4])),
        "clock_changes" => asks_the_clock(),
        "packet_sizes" | "napi_budget" | "route_failures" => packets(23),
        "socket_overflows" => overflow(),
        "tcp_round_trip" | "accept_queue" => conversation(),
        "disk_access_pattern" | "journal_commits" => syncs(folder),
        "writeback_reasons" => {
            fs::write(folder.join("dirty"), vec![1; 1 << 20]).unwrap();
            call(libc::SYS_sync, [0; 4]);
        }
        "cgroup_changes" => groups(),
        "directory_cache" | "vfs_call_rates" => times(23, || drop(fs::read("/proc/self/comm").unwrap())),
        other => panic!("nothing to do for {other}"),
    }
}

/// Descriptors that are opened and closed, and memory that is mapped and unmapped, one for one, for so long that tracing ends meanwhile.
fn pairs() {
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        drop(fs::File::open("/dev/null").unwrap());
        map(1, libc::PROT_READ | libc::PROT_WRITE);
    }
}

fn times(count: usize, mut action: impl FnMut()) {
    (0..count).for_each(|_| action());
}

/// A system call whose result does not matter: what it reports is what the script is to see.
fn call(number: i64, arguments: [i64; 4]) {
    let [first, second, third, fourth] = arguments;
    // SAFETY: the callers pass what the call wants, and nothing is written through the pointers.
    unsafe { libc::syscall(number, first, second, third, fourth) };
}

fn path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn threads_and_processes() {
    times(5, || std::thread::spawn(|| ()).join().unwrap());
    times(3, || {
        // SAFETY: the child does nothing but end.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: it ends at once.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: no status is wanted.
        assert_eq!(unsafe { libc::waitpid(child, null_mut(), 0) }, child);
    });
}

fn sleeps() {
    let millisecond = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let asked = (&raw const millisecond) as i64;
    times(11, || call(libc::SYS_nanosleep, [asked, 0, 0, 0]));
    times(7, || call(libc::SYS_clock_nanosleep, [libc::CLOCK_MONOTONIC.into(), 0, asked, 0]));
    times(3, || call(libc::SYS_clock_nanosleep, [libc::CLOCK_MONOTONIC.into(), libc::TIMER_ABSTIME.into(), asked, 0]));
}

fn removals(folder: &Path) {
    for number in 0..7 {
        let file = folder.join(format!("file{number}"));
        fs::write(&file, "").unwrap();
        let last = folder.join("renamed");
        fs::rename(&file, &last).unwrap();
        fs::remove_file(&last).unwrap();
    }
    fs::create_dir(folder.join("sub")).unwrap();
    fs::remove_dir(folder.join("sub")).unwrap();
}

fn permissions(folder: &Path) {
    let file = fs::File::create(folder.join("mode")).unwrap();
    let name = path(&folder.join("mode"));
    times(5, || call(libc::SYS_chmod, [name.as_ptr() as i64, 0o640, 0, 0]));
    times(2, || call(libc::SYS_fchmod, [file.as_raw_fd().into(), 0o600, 0, 0]));
    times(3, || call(libc::SYS_chown, [name.as_ptr() as i64, 0, 0, 0]));
}

fn scans(folder: &Path) {
    let folder = fs::File::open(folder).unwrap();
    let mut buffer = [0_u8; 512];
    times(11, || call(libc::SYS_getdents64, [folder.as_raw_fd().into(), buffer.as_mut_ptr() as i64, 512, 0]));
}

fn watches(folder: &Path) {
    // SAFETY: takes a number.
    let watcher = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    let name = path(folder);
    times(5, || call(libc::SYS_inotify_add_watch, [watcher.into(), name.as_ptr() as i64, libc::IN_CREATE.into(), 0]));
    call(libc::SYS_inotify_rm_watch, [watcher.into(), 1, 0, 0]);
    // SAFETY: it is ours.
    unsafe { libc::close(watcher) };
}

fn locks(folder: &Path) {
    let file =
        fs::File::options().read(true).write(true).create(true).truncate(true).open(folder.join("lock")).unwrap();
    for kind in [libc::LOCK_EX, libc::LOCK_UN, libc::LOCK_SH, libc::LOCK_UN] {
        call(libc::SYS_flock, [file.as_raw_fd().into(), kind.into(), 0, 0]);
    }
    for kind in [libc::F_WRLCK, libc::F_UNLCK, libc::F_RDLCK, libc::F_UNLCK, libc::F_WRLCK, libc::F_UNLCK] {
        // SAFETY: all zeros is a lock of the whole file.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as i16;
        call(libc::SYS_fcntl, [file.as_raw_fd().into(), libc::F_SETLK.into(), (&raw const lock) as i64, 0]);
    }
}

fn descriptors() {
    let made: Vec<i32> = (0..17)
        // SAFETY: standard input is open.
        .map(|_| unsafe { libc::dup(0) })
        .collect();
    // SAFETY: they are ours; four are left open.
    made[4..].iter().for_each(|made| assert_eq!(unsafe { libc::close(*made) }, 0));
}

/// Maps pages, writes to each, and unmaps them.
fn map(pages: usize, protection: i32) {
    let bytes = pages * PAGE;
    // SAFETY: a new mapping that nothing else uses.
    unsafe {
        let at = libc::mmap(null_mut(), bytes, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        (0..pages).for_each(|page| at.cast::<u8>().add(page * PAGE).write_volatile(1));
        assert_eq!(libc::munmap(at, bytes), 0);
    }
}

fn memory_files() {
    times(5, || call(libc::SYS_memfd_create, [c"mcptrace".as_ptr() as i64, 0, 0, 0]));
    times(2, || call(libc::SYS_execveat, [-1, c"nothing".as_ptr() as i64, 0, 0]));
}

fn connects() {
    let gone = Path::new("/nonexistent/mcptrace.sock");
    times(7, || assert!(std::os::unix::net::UnixStream::connect(gone).is_err()));
}

fn sockets() {
    times(5, || drop(std::os::unix::net::UnixDatagram::unbound().unwrap()));
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    call(libc::SYS_listen, [server.as_raw_fd().into(), 17, 0, 0]);
}

fn datagrams() {
    let (v4, v6) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
    times(19, || drop(v4.send_to(&[7; 100], "127.0.0.1:9")));
    times(13, || drop(v6.send_to(&[7; 100], "[::1]:9")));
}

fn reads_and_writes() {
    let mut zero = fs::File::open("/dev/zero").unwrap();
    let mut null = fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let mut buffer = [0; 1024];
    times(23, || zero.read_exact(&mut buffer).unwrap());
    times(19, || null.write_all(&buffer).unwrap());
}

fn asks_the_clock() {
    // SAFETY: all zeros asks and changes nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    times(3, || call(libc::SYS_adjtimex, [(&raw mut state) as i64, 0, 0, 0]));
}

fn packets(count: usize) {
    let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = receiver.local_addr().unwrap();
    times(count, || assert_eq!(sender.send_to(&[7; 100], to).unwrap(), 100));
}

fn overflow() {
    let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let least: i32 = 1;
    // SAFETY: the option is an int.
    unsafe {
        libc::setsockopt(receiver.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw const least).cast(), 4);
    }
    let to = receiver.local_addr().unwrap();
    times(101, || drop(sender.send_to(&[7; 1000], to)));
}

fn conversation() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let mut other = server.accept().unwrap().0;
    let mut buffer = [0; 64];
    times(23, || {
        client.write_all(&buffer).unwrap();
        other.read_exact(&mut buffer).unwrap();
        other.write_all(&buffer).unwrap();
        client.read_exact(&mut buffer).unwrap();
    });
}

fn syncs(folder: &Path) {
    let mut file = fs::File::create(folder.join("synced")).unwrap();
    times(7, || {
        file.write_all(&[1; 8192]).unwrap();
        file.sync_all().unwrap();
    });
}

fn groups() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let root = mounts.lines().find(|line| line.contains(" cgroup2 ")).and_then(|line| line.split(' ').nth(1)).unwrap();
    let group = Path::new(root).join(format!("mcptrace-script-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    fs::remove_dir(&group).unwrap();
}
