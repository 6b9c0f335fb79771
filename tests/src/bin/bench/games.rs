//! What workloads do over and over, beyond a line.

use std::{
    ffi::c_void,
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    ptr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mcptrace_tests::memory_group::Limited;

use crate::{TOOLS_CPU, machine};

/// Pages that are touched before all are given back.
pub(crate) const PAGES: u32 = 512;

const PAGE: usize = 4096;

pub(crate) fn spawn() -> Result<()> {
    ensure!(Command::new("/bin/true").env_clear().status()?.success(), "/bin/true fails");
    Ok(())
}

pub(crate) fn ignore_user_signal() {
    // SAFETY: no handler of ours is installed.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
}

pub(crate) fn signal() -> Result<()> {
    // SAFETY: takes numbers; the signal is ignored.
    ensure!(unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) } == 0, "kill fails");
    Ok(())
}

pub(crate) fn failing_call() -> Result<()> {
    // SAFETY: there is no such descriptor.
    ensure!(unsafe { libc::close(-1) } == -1, "close of -1 works");
    Ok(())
}

pub(crate) fn allocate() {
    // SAFETY: what malloc gives is freed once.
    unsafe { libc::free(std::hint::black_box(libc::malloc(std::hint::black_box(64)))) };
}

pub(crate) fn look_up() -> Result<()> {
    let mut found = ptr::null_mut();
    // SAFETY: both names end with a NUL, there are no hints, and what is found is freed once.
    unsafe {
        let outcome = libc::getaddrinfo(c"127.0.0.1".as_ptr(), ptr::null(), ptr::null(), &raw mut found);
        ensure!(outcome == 0, "getaddrinfo gives {outcome}");
        libc::freeaddrinfo(found);
    }
    Ok(())
}

/// `sethostname` asks for `CAP_SYS_ADMIN` and then refuses the length (kernel/sys.c).
pub(crate) fn ask_capability() -> Result<()> {
    // SAFETY: nothing is read: the length is refused.
    ensure!(unsafe { libc::syscall(libc::SYS_sethostname, ptr::null::<c_void>(), -1) } == -1, "sethostname works");
    Ok(())
}

pub(crate) fn set_user() -> Result<()> {
    // SAFETY: takes a number; of this thread alone, unlike libc's function.
    ensure!(unsafe { libc::syscall(libc::SYS_setuid, libc::getuid()) } == 0, "setuid fails");
    Ok(())
}

/// Passes the probe `mcptrace_bench:tick`, whose argument is a number in a register. The note is laid out as sys/sdt.h of systemtap
/// does.
#[inline(never)]
pub(crate) fn pass_static_probe(number: u64) {
    // SAFETY: a nop; the rest goes to a section that is not loaded.
    unsafe {
        std::arch::asm!(
            "990: nop",
            ".pushsection .note.stapsdt, \"\", \"note\"",
            ".balign 4",
            ".4byte 992f - 991f, 994f - 993f, 3",
            "991: .asciz \"stapsdt\"",
            "992: .balign 4",
            "993: .8byte 990b",
            ".8byte 0",
            ".8byte 0",
            ".asciz \"mcptrace_bench\"",
            ".asciz \"tick\"",
            ".asciz \"8@{number}\"",
            "994: .balign 4",
            ".popsection",
            number = in(reg) number,
            options(att_syntax, nostack),
        );
    }
}

/// A port that was free a moment ago.
pub(crate) fn nobody() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

pub(crate) fn refused_connect(nobody: SocketAddr) -> Result<()> {
    ensure!(TcpStream::connect(nobody).is_err(), "somebody listens at {nobody}");
    Ok(())
}

/// This process in a control group that has as much in the page cache as it may.
pub(crate) struct FullGroup {
    group: Limited,
    /// A file of nothing but holes: no disk is read.
    file: File,
    next: u64,
}

/// What the group may have, what is read at once, and how long the file is.
const GROUP_BYTES: u64 = 96 << 20;
const READ_BYTES: u64 = 128 << 10;
const HOLE_BYTES: u64 = 4 << 30;

impl FullGroup {
    pub(crate) fn enter() -> Result<Self> {
        let folder = std::env::current_exe()?;
        let file = tempfile::tempfile_in(folder.parent().context("no folder")?)?;
        file.set_len(HOLE_BYTES)?;
        let group = Limited::new("bench", GROUP_BYTES);
        group.add(std::process::id());
        let mut full = Self { group, file, next: 0 };
        (0..2 * GROUP_BYTES / READ_BYTES).try_for_each(|_| full.read())?;
        Ok(full)
    }

    pub(crate) fn read(&mut self) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let mut buffer = vec![0; READ_BYTES as usize];
        self.file.read_exact_at(&mut buffer, self.next)?;
        self.next = (self.next + READ_BYTES) % HOLE_BYTES;
        Ok(())
    }
}

impl Drop for FullGroup {
    fn drop(&mut self) {
        self.group.release(std::process::id());
    }
}

/// A control group in which a process dies of its appetite.
pub(crate) fn group_of_victims() -> Limited {
    Limited::new("bench_victims", 8 << 20)
}

/// The argument by which this program becomes a victim.
pub(crate) const VICTIM: &str = "--victim";

/// Starts a victim and waits for its end.
pub(crate) fn kill_one(group: &Limited) -> Result<()> {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    let procs = File::options().write(true).open(group.procs())?;
    let mut victim = Command::new(std::env::current_exe()?);
    victim.arg(VICTIM).env_clear();
    // SAFETY: only a system call between fork and exec. Zero is the process that writes it.
    unsafe { victim.pre_exec(move || (&procs).write_all(b"0")) };
    let status = victim.status()?;
    ensure!(status.signal() == Some(libc::SIGKILL), "the victim lives: {status}");
    Ok(())
}

/// What the victim does.
pub(crate) fn want_memory() {
    std::hint::black_box(vec![7_u8; 64 << 20]);
}

/// A fixed piece of work, about a millisecond.
pub(crate) fn compute() {
    let sum = (0..1_000_000_u64).fold(1_u64, |sum, number| std::hint::black_box(sum.wrapping_mul(31) ^ number));
    std::hint::black_box(sum);
}

/// Fresh pages, which the kernel gives at their first touch.
#[derive(Default)]
pub(crate) struct Pages {
    mapped: Option<*mut u8>,
    next: usize,
}

impl Pages {
    pub(crate) fn touch(&mut self) -> Result<()> {
        if self.next == PAGES as usize {
            self.give_back();
        }
        let pages = match self.mapped {
            Some(pages) => pages,
            None => self.map()?,
        };
        // SAFETY: within the mapping.
        unsafe { pages.add(self.next * PAGE).write_volatile(1) };
        self.next += 1;
        Ok(())
    }

    fn map(&mut self) -> Result<*mut u8> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a mapping of its own; no huge page may stand for many touches.
        let pages = unsafe {
            let pages = libc::mmap(ptr::null_mut(), PAGES as usize * PAGE, access, kind, -1, 0);
            ensure!(pages != libc::MAP_FAILED, "mmap fails");
            libc::madvise(pages, PAGES as usize * PAGE, libc::MADV_NOHUGEPAGE);
            pages.cast()
        };
        self.mapped = Some(pages);
        Ok(pages)
    }

    fn give_back(&mut self) {
        if let Some(pages) = self.mapped.take() {
            // SAFETY: the mapping of `map`.
            unsafe { libc::munmap(pages.cast(), PAGES as usize * PAGE) };
        }
        self.next = 0;
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Connections of this process to itself.
pub(crate) struct Connections {
    listener: TcpListener,
    at: SocketAddr,
}

impl Connections {
    pub(crate) fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let at = listener.local_addr()?;
        Ok(Self { listener, at })
    }

    /// The one who connects closes by a reset, so that no port stays occupied.
    pub(crate) fn once(&self) -> Result<()> {
        let client = TcpStream::connect(self.at)?;
        let (server, _) = self.listener.accept()?;
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = size_of::<libc::linger>() as u32;
        // SAFETY: the option's own struct, of its size.
        let set = unsafe {
            libc::setsockopt(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size)
        };
        ensure!(set == 0, "SO_LINGER is refused");
        drop((client, server));
        Ok(())
    }
}

/// Datagrams of this process to itself.
pub(crate) struct Datagrams {
    from: UdpSocket,
    to: UdpSocket,
    nobody: SocketAddr,
}

impl Datagrams {
    pub(crate) fn start() -> Result<Self> {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (from, to) = (bind()?, bind()?);
        let nobody = bind()?.local_addr()?;
        Ok(Self { from, to, nobody })
    }

    pub(crate) fn once(&self) -> Result<()> {
        self.from.send_to(&[7; 64], self.to.local_addr()?)?;
        self.to.recv(&mut [0; 64])?;
        Ok(())
    }

    /// The refusal comes back to one that is not connected as nothing.
    pub(crate) fn refused(&self) -> Result<()> {
        self.from.send_to(&[7; 64], self.nobody)?;
        Ok(())
    }
}

/// Two threads of one CPU that wait for each other.
pub(crate) struct Futex {
    turn: Arc<(Mutex<Turn>, Condvar)>,
    other: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Turn {
    Ours,
    Theirs,
    Over,
}

impl Futex {
    /// The other thread inherits our CPU.
    pub(crate) fn start() -> Self {
        let turn = Arc::new((Mutex::new(Turn::Ours), Condvar::new()));
        let theirs = Arc::clone(&turn);
        Self { turn, other: Some(thread::spawn(move || while pass(&theirs, Turn::Theirs, Turn::Ours) {})) }
    }

    pub(crate) fn once(&self) {
        let mut turn = self.turn.0.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = Turn::Theirs;
        self.turn.1.notify_all();
        while *turn == Turn::Theirs {
            turn = self.turn.1.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Futex {
    fn drop(&mut self) {
        *self.turn.0.lock().unwrap_or_else(PoisonError::into_inner) = Turn::Over;
        self.turn.1.notify_all();
        if let Some(other) = self.other.take() {
            let _ = other.join();
        }
    }
}

/// Waits for its turn and passes it on; whether the game goes on.
fn pass(turn: &(Mutex<Turn>, Condvar), own: Turn, next: Turn) -> bool {
    let mut state = turn.0.lock().unwrap_or_else(PoisonError::into_inner);
    while *state != own && *state != Turn::Over {
        state = turn.1.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if *state == Turn::Over {
        return false;
    }
    *state = next;
    turn.1.notify_all();
    true
}

/// A file that another CPU writes to all the time.
pub(crate) struct Contention {
    file: Arc<File>,
    stop: Arc<AtomicBool>,
    other: Option<JoinHandle<()>>,
}

/// A writer that is forgotten ends by itself.
const LONGEST: Duration = Duration::from_mins(1);

impl Contention {
    pub(crate) fn start() -> Result<Self> {
        let file = Arc::new(tempfile::tempfile_in("/dev/shm").context("no /dev/shm")?);
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&file), Arc::clone(&stop));
        let other = thread::spawn(move || {
            let _ = machine::keep_to_cpu(TOOLS_CPU);
            let end = Instant::now() + LONGEST;
            while !stopped.load(Ordering::Relaxed) && Instant::now() < end {
                let _ = write(&theirs);
            }
        });
        Ok(Self { file, stop, other: Some(other) })
    }

    pub(crate) fn once(&self) -> Result<()> {
        write(&self.file)
    }
}

impl Drop for Contention {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(other) = self.other.take() {
            let _ = other.join();
        }
    }
}

/// A write takes the lock of the file's inode.
fn write(file: &File) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    file.write_all_at(&[7; 64], 0)?;
    Ok((&*file).flush()?)
}
