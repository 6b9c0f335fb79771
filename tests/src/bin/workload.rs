//! Does what it is told by lines on its standard input, exactly so often, and answers each with `ok` and numbers; or does what its
//! arguments say, and ends.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: it talks by stdout and ends on a failure"
)]

#[path = "workload/files.rs"]
mod files;
#[path = "workload/net.rs"]
mod net;

use std::{
    arch::{asm, global_asm},
    io::{BufRead as _, Write as _},
    sync::{
        atomic::{AtomicBool, AtomicI64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if !given.is_empty() {
        perform(&given.iter().map(String::as_str).collect::<Vec<_>>());
        return;
    }
    let mut state = State::default();
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers = state.run(&words).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        println!("{}", format!("ok {numbers}").trim_end());
        std::io::stdout().flush().unwrap();
    }
}

/// A thread that takes commands as the main thread does.
struct Helper {
    commands: Sender<Vec<String>>,
    answers: Receiver<Vec<i64>>,
}

#[derive(Default)]
struct State {
    helper: Option<Helper>,
}

impl State {
    fn run(&mut self, words: &[&str]) -> Vec<i64> {
        match words {
            ["thread"] => self.start_helper(),
            ["in_thread", rest @ ..] => self.in_helper(rest),
            _ => perform(words),
        }
    }

    fn start_helper(&mut self) -> Vec<i64> {
        let (commands, received) = channel::<Vec<String>>();
        let (sent, answers) = channel();
        thread::spawn(move || {
            // SAFETY: takes nothing.
            sent.send(vec![unsafe { libc::gettid() }.into()]).unwrap();
            for words in received {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                sent.send(perform(&words)).unwrap();
            }
        });
        let tid = answers.recv().unwrap();
        self.helper = Some(Helper { commands, answers });
        tid
    }

    fn in_helper(&mut self, words: &[&str]) -> Vec<i64> {
        let helper = self.helper.as_ref().unwrap();
        helper.commands.send(words.iter().map(|word| (*word).to_owned()).collect()).unwrap();
        helper.answers.recv().unwrap()
    }
}

fn perform(words: &[&str]) -> Vec<i64> {
    let number = |index: usize| words[index].parse::<i64>().unwrap();
    let times = |index: usize| 0..number(index);
    match words[0] {
        "call" => call(number(1), number(2)),
        "getppid" => call(libc::SYS_getppid, number(1)),
        "int80" => return times(2).map(|_| int80(number(1), [number(3), 0, 0])).collect(),
        "fail_opens" => {
            let path = c"/nonexistent/mcptrace".as_ptr() as i64;
            times(1).for_each(|_| assert_eq!(raw(libc::SYS_openat, [-100, path, 0, 0]), -i64::from(libc::ENOENT)));
        }
        "close_bad" => call(libc::SYS_close, number(1)),
        "close_bad_named" => close_bad_named(number(1), number(2)),
        "getppid_threads" => getppid_threads(number(1), number(2)),
        "sigreturn" => sigreturn(number(1)),
        "interrupt" => interrupt(number(1)),
        "use_up_time" => return vec![use_up_time(number(1))],
        "fork" => times(2).for_each(|_| _ = fork(words[1], number(3), None)),
        "fork_twice_as_one_id" => fork_twice_as_one_id(),
        "fork_as" => _ = fork("clone3", number(2), Some(number(1) as i32)),
        "nanosleep" => times(1).for_each(|_| nanosleep(number(2))),
        "comm" => name(words[1]),
        "spawn" => return times(1).flat_map(|_| spawn(&words[2..])).collect(),
        "raise" => times(1).for_each(|_| kill_self(number(2))),
        "raise_blocked" => raise_blocked(number(1), number(2)),
        "touch" => _ = touch(number(1)),
        "touch_and_free" => touch_and_free(number(1)),
        "raw" => return vec![raw_words(&words[1..])],
        "hop" => hop(number(1)),
        "map_file" => map_file(path(words[1]), number(2)),
        "setuid" => assert_eq!(raw(libc::SYS_setuid, [number(1), 0, 0, 0]), 0),
        "seccomp_refuse" => refuse_by_seccomp(number(1)),
        "opendir" => return vec![raw(libc::SYS_openat, [-100, path(words[1]).as_ptr() as i64, 0o200_000, 0])],
        "open" => return times(4).map(|_| open(words[1], path(words[2]), number(3), number(5))).collect(),
        "open_unreadable" => return times(2).map(|_| open_at(words[1], 1, 0, -100)).collect(),
        "flood" => return flood(number(1), number(2), path(words[3])),
        "flood_seconds" => return flood_seconds(number(1), number(2), path(words[3])),
        "hog" => hog(number(1), number(2)),
        "spin_threads" => spin_threads(number(1), number(2)),
        "write_direct" => write_direct(path(words[1]), number(2), number(3)),
        "read_direct" => read_direct(path(words[1]), number(2), number(3)),
        "fsync" => fsync(path(words[1]), number(2)),
        "file_write" => files::write(&text(words[1]), number(2), number(3)),
        "file_read" => files::read(&text(words[1]), number(2), number(3), false),
        "file_read_random" => files::read(&text(words[1]), number(2), number(3), true),
        "file_fail_reads" => files::fail_reads(&text(words[1]), number(2)),
        "file_write_nameless" => files::write_nameless(number(1), number(2)),
        "file_write_each" => files::write_each(number(1)),
        "file_write_deleted" => files::write_deleted(&text(words[1]), number(2), number(3)),
        "file_sync" => return files::sync(&text(words[1]), words[2], number(3)),
        "file_forget" => files::forget(&text(words[1])),
        "file_touch" => files::touch(&text(words[1]), number(2)),
        "burn" => burn_cpu(number(1)),
        "burn_without_return" => burn_without_return(number(1)),
        "migrate" => return vec![migrate(number(1))],
        "naps" => take_naps(number(1), number(2)),
        "futex_naps" => times(1).for_each(|_| wait_for_futex(number(2))),
        "futex_changed" => times(1).for_each(|_| refuse_futex()),
        "hand_over" => return hand_over(number(1), number(2)),
        "contend" => return contend(path(words[1]), number(2), number(3)),
        "leak" => times(1).for_each(|_| leak_memory(number(2))),
        "churn" => times(1).for_each(|_| churn_memory(number(2))),
        "grow" => times(1).for_each(|_| grow_memory(number(2))),
        "grow_in_vain" => times(1).for_each(|_| grow_in_vain(number(2))),
        "shrink" => times(1).for_each(|_| shrink_memory(number(2))),
        "tcp_listen" => return net::listen(words[1]),
        "tcp_serve" => net::serve(number(1), number(2), number(3)),
        "tcp_connect" => net::connect(words[1], number(2), number(3), number(4), number(5)),
        "tcp_serve_late" => net::serve_late(number(1)),
        "tcp_leave" => net::leave(words[1], number(2), number(3)),
        "tcp_refused" => net::refused(words[1], number(2), number(3)),
        "tcp_unanswered" => return net::unanswered(number(1), number(2)),
        "udp_bind" => return net::bind(words[1]),
        "udp_receive" => net::receive(number(1), number(2)),
        "ip_unknown" => net::send_unknown(number(1)),
        "udp_send" => net::send(words[1], number(2), number(3), number(4)),
        other => panic!("unknown command {other}"),
    }
    Vec::new()
}

/// A system call; the result or a negated errno, as the kernel gives it. Inlined, so that the caller is the innermost function of the
/// stack: this program is built without frame pointers.
#[inline(always)]
fn raw(number: i64, arguments: [i64; 4]) -> i64 {
    let [first, second, third, fourth] = arguments;
    let result;
    // SAFETY: the callers pass what the call wants; the clobbers are those of the syscall instruction.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") first, in("rsi") second, in("rdx") third, in("r10") fourth,
            lateout("rcx") _, lateout("r11") _);
    }
    result
}

fn call(number: i64, times: i64) {
    for _ in 0..times {
        raw(number, [-1, 0, 0, 0]);
    }
}

/// Closes what is not open so often, each time under the next of so many names.
fn close_bad_named(times: i64, names: i64) {
    for time in 0..times {
        // Fifteen bytes have room in a name.
        let name = format!("n{}\0", time % names);
        // SAFETY: a string with its NUL.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }, 0);
        raw(libc::SYS_close, [-1, 0, 0, 0]);
    }
}

fn getppid_threads(threads: i64, times: i64) {
    let all: Vec<_> = (0..threads).map(|_| thread::spawn(move || call(libc::SYS_getppid, times))).collect();
    for thread in all {
        thread.join().unwrap();
    }
}

/// A 32-bit system call from this 64-bit program.
fn int80(number: i64, arguments: [i64; 3]) -> i64 {
    let [first, second, third] = arguments;
    let result: i64;
    // SAFETY: the callers pass what the call wants. rbx is not allowed as an operand; r8 to r11 are cleared by old kernels.
    unsafe {
        asm!("xchg rbx, {first}", "int 0x80", "xchg rbx, {first}", first = inout(reg) first => _,
            inlateout("rax") number => result, in("rcx") second, in("rdx") third,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    }
    i64::from(result as i32)
}

extern "C" fn ignore(_: libc::c_int) {}

/// Without `SA_RESTART`.
fn handle(signal: libc::c_int) {
    handle_by(signal, ignore);
}

fn handle_by(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: zeros are a valid sigaction, and the handlers are safe in signals.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Handles a trap while rax holds what would be an errno if it were a result.
fn sigreturn(times: i64) {
    handle(libc::SIGTRAP);
    for _ in 0..times {
        // SAFETY: the handler returns behind the instruction with all registers as they were.
        unsafe { asm!("int3", inout("rax") i64::from(-libc::ENOENT) => _) };
    }
}

/// Lets a timer interrupt a receive so often.
fn interrupt(times: i64) {
    handle(libc::SIGALRM);
    let mut pair = [0; 2];
    // SAFETY: two descriptors have room.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) }, 0);
    set_timer(libc::ITIMER_REAL, 5000);
    for _ in 0..times {
        let mut byte = 0_u8;
        // SAFETY: one byte has room.
        let received = unsafe { libc::recv(pair[0], (&raw mut byte).cast(), 1, 0) };
        assert_eq!((received, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINTR)));
    }
    set_timer(libc::ITIMER_REAL, 0);
}

/// Lets a timer of the process's own CPU time run out at least so often; how often it did.
fn use_up_time(times: i64) -> i64 {
    static TIMES: AtomicI64 = AtomicI64::new(0);
    extern "C" fn count(_: libc::c_int) {
        TIMES.fetch_add(1, Ordering::Relaxed);
    }
    handle_by(libc::SIGPROF, count);
    set_timer(libc::ITIMER_PROF, 5000);
    while TIMES.load(Ordering::Relaxed) < times {
        std::hint::spin_loop();
    }
    set_timer(libc::ITIMER_PROF, 0);
    TIMES.load(Ordering::Relaxed)
}

fn set_timer(which: libc::c_int, microseconds: i64) {
    let time = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the pointers are good for the call.
    assert_eq!(unsafe { libc::setitimer(which, &raw const timer, std::ptr::null_mut()) }, 0);
}

/// Makes a child, which calls getppid so often and exits, and waits for it.
fn fork_twice_as_one_id() {
    let first = fork("clone3", 0, None);
    assert_eq!(fork("clone3", 0, Some(first)), first, "the kernel gives the id that was asked for");
}

/// Makes a child, with a certain id if asked for (`clone3` only), that makes some calls and ends; waits for it and gives its id.
fn fork(kind: &str, calls: i64, id: Option<i32>) -> i32 {
    const EXIT: i64 = libc::SYS_exit;
    // struct clone_args (include/uapi/linux/sched.h); the last two are set_tid and its size.
    let (ids, length) = id.as_ref().map_or((0, 0), |id| (std::ptr::from_ref(id) as u64, 1));
    let clone3: [u64; 10] = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0, ids, length];
    let (number, first, second) = match kind {
        "fork" => (libc::SYS_fork, 0, 0),
        "vfork" => (libc::SYS_vfork, 0, 0),
        "clone" => (libc::SYS_clone, i64::from(libc::SIGCHLD), 0),
        "clone3" => (libc::SYS_clone3, (&raw const clone3) as i64, size_of_val(&clone3) as i64),
        other => panic!("unknown fork {other}"),
    };
    let child: i64;
    // SAFETY: the child stays within these instructions: it runs on a copy of the stack, or, after vfork, does not touch it.
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 3f",
            "2: dec {calls}", "js 4f", "mov eax, {getppid}", "syscall", "jmp 2b",
            "4: mov eax, {exit}", "xor edi, edi", "syscall",
            "3:",
            calls = inout(reg) calls => _, getppid = const libc::SYS_getppid, exit = const EXIT,
            inlateout("rax") number => child, inlateout("rdi") first => _, in("rsi") second, in("rdx") 0, in("r10") 0, in("r8") 0,
            lateout("rcx") _, lateout("r11") _);
    }
    assert!(child > 0, "{child}");
    let mut status = 0;
    // SAFETY: the status has room.
    assert_eq!(i64::from(unsafe { libc::waitpid(child as i32, &raw mut status, 0) }), child);
    assert_eq!(status, 0);
    child as i32
}

/// Runs a program and waits for it; its id, what wait(2) gives, its CPU time in microseconds, and its peak memory in KB. Words that
/// begin with an x are bytes in hexadecimal.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it")]
fn spawn(words: &[&str]) -> [i64; 4] {
    use std::os::unix::ffi::OsStrExt as _;
    let plain = |word: &&str| std::ffi::OsStr::from_bytes(path(word).strip_suffix(&[0]).unwrap()).to_owned();
    let words: Vec<_> = words.iter().map(plain).collect();
    let child = std::process::Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
    let mut status = 0;
    // SAFETY: zeros are a valid rusage, and both have room.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage), child.id() as i32);
        usage
    };
    let microseconds = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    let cpu = microseconds(usage.ru_utime) + microseconds(usage.ru_stime);
    [child.id().into(), status.into(), cpu, usage.ru_maxrss]
}

/// A system call by number; arguments that begin with an x are bytes in hexadecimal.
fn raw_words(words: &[&str]) -> i64 {
    let value = |word: &&str| match word.strip_prefix('x') {
        Some(_) => path(word).as_ptr() as i64,
        None => word.parse().unwrap(),
    };
    let mut arguments = [0; 4];
    for (place, word) in words[1..].iter().enumerate() {
        arguments[place] = value(word);
    }
    raw(value(&words[0]), arguments)
}

/// Moves to the other of the first two CPUs so often; it begins on the first.
fn hop(times: i64) {
    for time in 0..times {
        pin((time + 1) % 2);
    }
}

/// Reads a byte of so many pages of a file through a mapping, without read-ahead.
fn map_file(path: &[u8], pages: i64) {
    const PAGE: usize = 4096;
    let file = descriptor(path, libc::O_RDONLY);
    let length = pages as usize * PAGE;
    // SAFETY: the file is as long as the mapping.
    unsafe {
        let memory =
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file as i32, 0).cast::<u8>();
        assert_ne!(memory.cast(), libc::MAP_FAILED);
        libc::madvise(memory.cast(), length, libc::MADV_RANDOM);
        (0..pages as usize).for_each(|page| _ = memory.add(page * PAGE).read_volatile());
        libc::munmap(memory.cast(), length);
    }
    raw(libc::SYS_close, [file, 0, 0, 0]);
}

fn kill_self(signal: i64) {
    assert_eq!(raw(libc::SYS_kill, [std::process::id().into(), signal, 0, 0]), 0);
}

/// Sends a signal to this process while it is blocked, and then takes it without a handler being run.
fn raise_blocked(times: i64, signal: i64) {
    // SAFETY: zeros are an empty set; all pointers are good for the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, signal as i32);
        assert_eq!(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()), 0);
        (0..times).for_each(|_| kill_self(signal));
        assert_eq!(libc::sigwaitinfo(&raw const set, std::ptr::null_mut()), signal as i32);
        assert_eq!(libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()), 0);
    }
}

/// Writes to so many pages of new memory, one after the other, and keeps them.
fn touch(pages: i64) -> (*mut libc::c_void, usize) {
    const PAGE: usize = 4096;
    let length = pages as usize * PAGE;
    // SAFETY: a new mapping, long enough; without huge pages, so that each page is a fault.
    unsafe {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let memory = libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0).cast::<u8>();
        assert_ne!(memory.cast(), libc::MAP_FAILED);
        libc::madvise(memory.cast(), length, libc::MADV_NOHUGEPAGE);
        (0..pages as usize).for_each(|page| memory.add(page * PAGE).write_volatile(1));
        (memory.cast(), length)
    }
}

fn touch_and_free(pages: i64) {
    let (memory, length) = touch(pages);
    // SAFETY: a whole mapping that nothing points to.
    assert_eq!(unsafe { libc::munmap(memory, length) }, 0);
}

#[inline(always)]
fn nanosleep(microseconds: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: microseconds * 1000 };
    assert_eq!(raw(libc::SYS_nanosleep, [(&raw const time) as i64, 0, 0, 0]), 0);
}

fn name(comm: &str) {
    let comm = std::ffi::CString::new(comm).unwrap();
    // SAFETY: a string with its NUL.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) }, 0);
}

/// From now on a call of this number gets EPERM before it is entered.
fn refuse_by_seccomp(number: i64) {
    // BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K (include/uapi/linux/bpf_common.h).
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = [
        statement(0x20, 0, 0, 0),
        statement(0x15, 0, 1, number as u32),
        statement(0x06, 0, 0, refuse),
        statement(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program is good for the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program), 0);
    }
}

/// Bytes written in hexadecimal after an x, with a NUL, in the first 4 GB so that 32-bit calls reach them.
fn path(hex: &str) -> &'static [u8] {
    let hex = hex.strip_prefix('x').unwrap();
    let digit = |place: usize| u8::from_str_radix(&hex[place..place + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(digit).chain([0]).collect();
    // SAFETY: a new mapping, long enough.
    unsafe {
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT);
        let memory = libc::mmap(std::ptr::null_mut(), bytes.len(), access, flags, -1, 0);
        assert_ne!(memory, libc::MAP_FAILED);
        let memory = std::slice::from_raw_parts_mut(memory.cast(), bytes.len());
        memory.copy_from_slice(&bytes);
        memory
    }
}

/// The same as text.
fn text(hex: &str) -> String {
    let bytes = path(hex);
    String::from_utf8(bytes[..bytes.len() - 1].to_vec()).unwrap()
}

/// Opens and closes; gives what the open gave.
fn open(kind: &str, path: &[u8], flags: i64, directory: i64) -> i64 {
    let result = open_at(kind, path.as_ptr() as i64, flags, directory);
    if result >= 0 {
        raw(libc::SYS_close, [result, 0, 0, 0]);
    }
    result
}

fn open_at(kind: &str, path: i64, flags: i64, directory: i64) -> i64 {
    const MODE: i64 = 0o600;
    match kind {
        "open" => raw(libc::SYS_open, [path, flags, MODE, 0]),
        "creat" => raw(libc::SYS_creat, [path, MODE, 0, 0]),
        "openat" => raw(libc::SYS_openat, [directory, path, flags, MODE]),
        "openat2" => {
            let mode = if flags & i64::from(libc::O_CREAT) == 0 { 0 } else { MODE };
            let how = [flags, mode, 0];
            raw(libc::SYS_openat2, [directory, path, (&raw const how) as i64, size_of_val(&how) as i64])
        }
        // arch/x86/entry/syscalls/syscall_32.tbl: 5 open, 295 openat.
        "i386:open" => int80(5, [path, flags, MODE]),
        "i386:openat" => int80(295, [directory, path, flags]),
        other => panic!("unknown open {other}"),
    }
}

/// Opens and closes in several threads, so often each; gives how many opens were made.
fn flood(threads: i64, opens: i64, path: &'static [u8]) -> Vec<i64> {
    let one = move || (0..opens).for_each(|_| assert!(open("openat", path, 0, -100) >= 0));
    let all: Vec<_> = (0..threads).map(|_| thread::spawn(one)).collect();
    for thread in all {
        thread.join().unwrap();
    }
    vec![threads * opens]
}

/// The same for some seconds.
fn flood_seconds(threads: i64, seconds: i64, path: &'static [u8]) -> Vec<i64> {
    static END: AtomicBool = AtomicBool::new(false);
    END.store(false, Ordering::Relaxed);
    let one = move || {
        let mut opens = 0;
        while !END.load(Ordering::Relaxed) {
            open("openat", path, 0, -100);
            opens += 1;
        }
        opens
    };
    let all: Vec<_> = (0..threads).map(|_| thread::spawn(one)).collect();
    thread::sleep(Duration::from_secs(seconds as u64));
    END.store(true, Ordering::Relaxed);
    vec![all.into_iter().map(|thread| thread.join().unwrap()).sum()]
}

fn pin(cpu: i64) {
    // SAFETY: zeros are an empty set, and the CPU is within it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
    }
}

/// Keeps a CPU busy for so many milliseconds.
fn hog(cpu: i64, milliseconds: i64) {
    pin(cpu);
    let end = Instant::now() + Duration::from_millis(milliseconds as u64);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn spin_threads(threads: i64, milliseconds: i64) {
    let all: Vec<_> = (0..threads).map(|_| thread::spawn(move || hog(0, milliseconds))).collect();
    for thread in all {
        thread.join().unwrap();
    }
}

/// Memory aligned as direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; 65_536]);

impl Block {
    #[expect(clippy::large_stack_arrays, reason = "a test, and the array is as large as the system call wants it")]
    fn filled(byte: u8) -> Box<Self> {
        Box::new(Self([byte; 65_536]))
    }
}

fn descriptor(path: &[u8], flags: i32) -> i64 {
    let descriptor = raw(libc::SYS_openat, [-100, path.as_ptr() as i64, flags.into(), 0o600]);
    assert!(descriptor >= 0, "{descriptor}");
    descriptor
}

fn write_direct(path: &[u8], times: i64, bytes: i64) {
    let block = Block::filled(7);
    let file = descriptor(path, libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT);
    for time in 0..times {
        assert_eq!(raw(libc::SYS_pwrite64, [file, block.0.as_ptr() as i64, bytes, time * bytes]), bytes);
    }
    raw(libc::SYS_close, [file, 0, 0, 0]);
}

fn read_direct(path: &[u8], times: i64, bytes: i64) {
    let mut block = Block::filled(0);
    let file = descriptor(path, libc::O_RDONLY | libc::O_DIRECT);
    for time in 0..times {
        assert_eq!(raw(libc::SYS_pread64, [file, block.0.as_mut_ptr() as i64, bytes, time * bytes]), bytes);
    }
    raw(libc::SYS_close, [file, 0, 0, 0]);
}

/// Writes a byte and makes it durable, so often.
fn fsync(path: &[u8], times: i64) {
    let file = descriptor(path, libc::O_RDWR | libc::O_CREAT);
    for _ in 0..times {
        assert_eq!(raw(libc::SYS_pwrite64, [file, b"x".as_ptr() as i64, 1, 0]), 1);
        assert_eq!(raw(libc::SYS_fsync, [file, 0, 0, 0]), 0);
    }
    raw(libc::SYS_close, [file, 0, 0, 0]);
}

/// Computes for so many milliseconds.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn burn_cpu(milliseconds: i64) {
    let cycles = milliseconds as u64 * cycles_per_millisecond();
    let end = time_stamp() + cycles;
    while time_stamp() < end {}
}

// A call that does not return is the last instruction of its function; behind it begins the next one. A compiler would put a trap between,
// and leave out the frame pointer of what is called, by which the caller is found.
global_asm!(
    ".globl call_without_return",
    ".type call_without_return, @function",
    "call_without_return:",
    "push rbp",
    "mov rbp, rsp",
    "call has_a_frame",
    ".size call_without_return, . - call_without_return",
    ".globl innocent_next",
    ".type innocent_next, @function",
    "innocent_next:",
    "ret",
    ".size innocent_next, . - innocent_next",
    "has_a_frame:",
    "push rbp",
    "mov rbp, rsp",
    "call {burn}",
    burn = sym burn_and_stay,
);

unsafe extern "C" {
    fn call_without_return(milliseconds: i64) -> !;
}

static BURNT: AtomicBool = AtomicBool::new(false);

/// Computes for so many milliseconds in a thread that stays where it is.
fn burn_without_return(milliseconds: i64) {
    // SAFETY: it has a frame and does nothing but call the function below.
    thread::spawn(move || unsafe { call_without_return(milliseconds) });
    while !BURNT.swap(false, Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
}

extern "C" fn burn_and_stay(milliseconds: i64) -> ! {
    burn_cpu(milliseconds);
    BURNT.store(true, Ordering::Relaxed);
    loop {
        thread::park();
    }
}

/// The processor's own clock, so that no function is called.
#[inline(always)]
fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the instruction writes two registers.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn cycles_per_millisecond() -> u64 {
    let (start, first) = (Instant::now(), time_stamp());
    thread::sleep(Duration::from_millis(20));
    let (time, cycles) = (start.elapsed(), time_stamp() - first);
    cycles * 1_000_000 / time.as_nanos() as u64
}

/// Goes from CPU to CPU for so many milliseconds, computing a little on each; how often.
fn migrate(milliseconds: i64) -> i64 {
    let cpus = thread::available_parallelism().unwrap().get() as i64;
    let (end, slice) = (time_stamp() + milliseconds as u64 * cycles_per_millisecond(), cycles_per_millisecond() / 50);
    let mut times = 0;
    while time_stamp() < end {
        pin(times % cpus);
        times += 1;
        let until = time_stamp() + slice;
        while time_stamp() < until {}
    }
    times
}

/// Sleeps so often for so many microseconds.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_naps(times: i64, microseconds: i64) {
    for _ in 0..times {
        nanosleep(microseconds);
    }
}

const FUTEX_WAIT_PRIVATE: i64 = 128;

/// Waits for a futex that nobody wakes, for so many microseconds.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wait_for_futex(microseconds: i64) {
    let word = 7_u32;
    let time = libc::timespec { tv_sec: 0, tv_nsec: microseconds * 1000 };
    let arguments = [(&raw const word) as i64, FUTEX_WAIT_PRIVATE, 7, (&raw const time) as i64];
    assert_eq!(raw(libc::SYS_futex, arguments), -i64::from(libc::ETIMEDOUT));
}

/// Wants to wait for a futex that has changed.
fn refuse_futex() {
    let word = 7_u32;
    let arguments = [(&raw const word) as i64, FUTEX_WAIT_PRIVATE, 8, 0];
    assert_eq!(raw(libc::SYS_futex, arguments), -i64::from(libc::EAGAIN));
}

/// A thread waits so often in `wait_for_baton`, and the main thread wakes it from `pass_baton` after so many microseconds; gives the
/// thread's id.
fn hand_over(times: i64, microseconds: i64) -> Vec<i64> {
    let mut pipe = [0; 2];
    // SAFETY: the array has room.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let (sent, tid) = channel();
    let waiter = thread::spawn(move || {
        name("baton_waiter");
        // SAFETY: takes nothing.
        sent.send(unsafe { libc::gettid() }.into()).unwrap();
        (0..times).for_each(|_| wait_for_baton(pipe[0].into()));
    });
    let tid = tid.recv().unwrap();
    for _ in 0..times {
        thread::sleep(Duration::from_micros(microseconds as u64));
        pass_baton(pipe[1].into());
    }
    waiter.join().unwrap();
    vec![tid]
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn wait_for_baton(pipe: i64) {
    let mut byte = 0_u8;
    assert_eq!(raw(libc::SYS_read, [pipe, (&raw mut byte) as i64, 1, 0]), 1);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pass_baton(pipe: i64) {
    let byte = 7_u8;
    assert_eq!(raw(libc::SYS_write, [pipe, (&raw const byte) as i64, 1, 0]), 1);
}

/// Threads that write to one file at once, which is one lock (`inode.i_rwsem`), so often each.
fn contend(path: &'static [u8], threads: i64, times: i64) -> Vec<i64> {
    let file = descriptor(path, libc::O_RDWR | libc::O_CREAT);
    let one = move || {
        let block = vec![7_u8; 1 << 20];
        for _ in 0..times {
            assert_eq!(raw(libc::SYS_pwrite64, [file, block.as_ptr() as i64, 1 << 20, 0]), 1 << 20);
        }
    };
    let all: Vec<_> = (0..threads).map(|_| thread::spawn(one)).collect();
    for thread in all {
        thread.join().unwrap();
    }
    raw(libc::SYS_close, [file, 0, 0, 0]);
    vec![threads * times]
}

/// Allocates and forgets.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn leak_memory(bytes: i64) {
    // SAFETY: the memory is written within its bounds.
    unsafe {
        let memory = libc::malloc(bytes as usize);
        std::ptr::write_volatile(memory.cast::<u8>(), 7);
    }
}

/// Allocates in every way there is, and frees all.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn churn_memory(bytes: i64) {
    let bytes = bytes as usize;
    // SAFETY: what is freed was allocated.
    unsafe {
        let mut aligned = std::ptr::null_mut();
        assert_eq!(libc::posix_memalign(&raw mut aligned, 64, bytes), 0);
        let all = [libc::malloc(bytes), libc::calloc(3, bytes), libc::memalign(64, bytes), aligned];
        for one in all {
            libc::free(std::hint::black_box(one));
        }
    }
}

/// Allocates, grows what it has to so many bytes, and forgets it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn grow_memory(bytes: i64) {
    // SAFETY: the memory is written within its bounds.
    unsafe {
        let memory = libc::realloc(std::ptr::null_mut(), 11);
        let memory = libc::realloc(memory, bytes as usize);
        std::ptr::write_volatile(memory.cast::<u8>(), 7);
    }
}

/// Allocates, wants more than there is, and forgets what it still has.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn grow_in_vain(bytes: i64) {
    // SAFETY: a realloc that fails leaves the block as it was.
    unsafe {
        let memory = libc::malloc(bytes as usize);
        assert!(libc::realloc(memory, isize::MAX as usize).is_null());
        std::ptr::write_volatile(memory.cast::<u8>(), 7);
    }
}

/// Allocates, and frees by a realloc to nothing.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn shrink_memory(bytes: i64) {
    // SAFETY: what is freed was allocated.
    unsafe {
        let memory = libc::malloc(bytes as usize);
        assert!(libc::realloc(std::hint::black_box(memory), 0).is_null());
    }
}
