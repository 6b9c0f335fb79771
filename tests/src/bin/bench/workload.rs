//! Loops that give probes their events, timed.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read as _, Write as _, pipe},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags};

use crate::{WORKLOAD_CPU, games, machine};

/// What a thread does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// The cheapest system call.
    Getppid,
    /// Opens and closes a file that exists.
    OpenClose,
    /// Two threads of one CPU hand a byte to and fro through pipes.
    PingPong,
    /// Reads 4 KB from the disk, past the page cache.
    DirectRead,
    /// Reads 4 KB of a file that is in the page cache.
    CachedRead,
    /// Synchronises a file that has nothing to write.
    Sync,
    /// Starts a program and waits for its end.
    Spawn,
    /// Sends this process a signal that it ignores.
    Signal,
    /// A system call that fails.
    FailingCall,
    /// Touches a page for the first time.
    TouchPage,
    /// Allocates memory and frees it.
    Allocate,
    /// A TCP connection to this process: made, accepted, closed.
    Connect,
    /// A datagram to this process over the loopback device, and its receipt.
    Datagram,
    /// A datagram to a port where nobody listens.
    RefusedDatagram,
    /// Looks up a name that needs no server.
    LookUp,
    /// Two threads of one CPU wake each other through a futex.
    Futex,
    /// Two CPUs append to one file, whose lock they contend for.
    Lock,
    /// Calls a function that does nothing.
    Function,
    /// A system call that asks for a capability.
    Capability,
    /// Sets the user that is set already.
    SetUser,
    /// Computes for a millisecond.
    Compute,
    /// Passes a static probe.
    Usdt,
    /// Connects to a port where nobody listens.
    RefusedConnect,
    /// Reads more into the page cache than a control group may have.
    Reclaim,
    /// Starts a process that wants more memory than its control group may have.
    Victim,
}

/// The nanoseconds per event of one measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Timing {
    /// Of the fastest slice.
    pub(crate) fastest: f64,
    /// How many events there were.
    pub(crate) events: u64,
}

impl Workload {
    /// What one event is.
    pub(crate) fn event(self) -> &'static str {
        match self {
            Self::Getppid => "getppid call",
            Self::OpenClose => "open and close of a file",
            Self::PingPong => "switch to another thread of the same CPU and back, through pipes",
            Self::DirectRead => "read of 4 KB with O_DIRECT",
            Self::CachedRead => "read of 4 KB from the page cache",
            Self::Sync => "fdatasync of a file with nothing to write",
            Self::Spawn => "start and end of a program",
            Self::Signal => "signal that is ignored",
            Self::FailingCall => "close of no file",
            Self::TouchPage => "first touch of a page",
            Self::Allocate => "malloc and free",
            Self::Connect => "TCP connection over the loopback device, made, accepted and closed",
            Self::Datagram => "datagram of 64 bytes over the loopback device, sent and received",
            Self::RefusedDatagram => "datagram to a port where nobody listens",
            Self::LookUp => "getaddrinfo of a numeric address",
            Self::Futex => "switch to another thread of the same CPU and back, through a condition variable",
            Self::Lock => "write to a file that another CPU writes to",
            Self::Function => "call of an empty function",
            Self::Capability => "system call that asks for a capability",
            Self::SetUser => "setuid",
            Self::Compute => "millisecond of computing",
            Self::Usdt => "pass of a static probe",
            Self::RefusedConnect => "TCP connect over the loopback device, refused",
            Self::Reclaim => "read of 128 KB in a control group that is full",
            Self::Victim => "start of a program and its end for want of memory",
        }
    }

    /// Runs for some time on a CPU of its own, in slices that are timed apart: one in which another task had the CPU stands out.
    pub(crate) fn run(self, length: Duration) -> Result<Timing> {
        let thread = thread::spawn(move || {
            machine::keep_to_cpu(WORKLOAD_CPU).context("cannot keep the workload to one CPU")?;
            self.run_here(length)
        });
        thread.join().map_err(|_| anyhow::anyhow!("the workload {self:?} panicked"))?
    }

    /// Each loop is compiled on its own: an indirect call that the traced kernel makes mispredicted would count as its cost.
    fn run_here(self, length: Duration) -> Result<Timing> {
        let slice = self.events_of_slice();
        match self {
            Self::Getppid => time(length, slice, || {
                // Through the C library, as programs call it: what tracing does to the prediction of its return is part of the cost.
                // SAFETY: getppid takes nothing and cannot fail.
                std::hint::black_box(unsafe { libc::getppid() });
                Ok(())
            }),
            Self::OpenClose => {
                let path = std::env::current_exe()?;
                time(length, slice, || {
                    drop(rustix::fs::openat(CWD, &path, OFlags::RDONLY, Mode::empty())?);
                    Ok(())
                })
            }
            Self::PingPong => {
                let mut pingpong = PingPong::start()?;
                time(length, slice, || pingpong.once())
            }
            Self::DirectRead => {
                let mut file = DirectFile::create()?;
                time(length, slice, || file.read())
            }
            Self::CachedRead => {
                let file = File::open(std::env::current_exe()?)?;
                let mut buffer = [0; PAGE as usize];
                time(length, slice, || Ok(file.read_exact_at(&mut buffer, 0)?))
            }
            Self::Sync => {
                let file = tempfile::tempfile_in("/dev/shm")?;
                time(length, slice, || Ok(file.sync_data()?))
            }
            Self::Spawn => time(length, slice, games::spawn),
            Self::Signal => {
                games::ignore_user_signal();
                time(length, slice, games::signal)
            }
            Self::FailingCall => time(length, slice, games::failing_call),
            Self::TouchPage => {
                let mut pages = games::Pages::default();
                time(length, slice, || pages.touch())
            }
            Self::Allocate => time(length, slice, || {
                games::allocate();
                Ok(())
            }),
            Self::Connect => {
                let listener = games::Connections::listen()?;
                time(length, slice, || listener.once())
            }
            Self::Datagram => {
                let datagrams = games::Datagrams::start()?;
                time(length, slice, || datagrams.once())
            }
            Self::RefusedDatagram => {
                let datagrams = games::Datagrams::start()?;
                time(length, slice, || datagrams.refused())
            }
            Self::LookUp => time(length, slice, games::look_up),
            Self::Futex => {
                let futex = games::Futex::start();
                time(length, slice, || {
                    futex.once();
                    Ok(())
                })
            }
            Self::Lock => {
                let contention = games::Contention::start()?;
                time(length, slice, || contention.once())
            }
            Self::Function => time(length, slice, || {
                mcptrace_bench_function(std::hint::black_box(7));
                Ok(())
            }),
            Self::Capability => time(length, slice, games::ask_capability),
            Self::SetUser => time(length, slice, games::set_user),
            Self::Compute => time(length, slice, || {
                games::compute();
                Ok(())
            }),
            Self::Usdt => time(length, slice, || {
                games::pass_static_probe(std::hint::black_box(7));
                Ok(())
            }),
            Self::RefusedConnect => {
                let nobody = games::nobody()?;
                time(length, slice, || games::refused_connect(nobody))
            }
            Self::Reclaim => {
                let mut reader = games::FullGroup::enter()?;
                time(length, slice, || reader.read())
            }
            Self::Victim => {
                let group = games::group_of_victims();
                time(length, slice, || games::kill_one(&group))
            }
        }
    }

    /// A slice takes a quarter of a millisecond: short enough to lie between two disturbances. One of opens takes longer than the
    /// pause between two looks of a reader at its buffer, so that no slice evades what reading costs.
    fn events_of_slice(self) -> u32 {
        match self {
            Self::Getppid | Self::FailingCall | Self::Capability | Self::SetUser => 1000,
            Self::OpenClose => 2000,
            Self::PingPong | Self::Datagram | Self::RefusedDatagram | Self::Futex => 40,
            Self::DirectRead | Self::Connect | Self::Reclaim | Self::RefusedConnect => 8,
            Self::CachedRead | Self::Sync | Self::Signal | Self::LookUp | Self::Lock => 500,
            Self::TouchPage => games::PAGES,
            Self::Allocate | Self::Function => 10_000,
            Self::Usdt => 100,
            Self::Spawn | Self::Victim => 1,
            // Long enough for the samples of a twentieth of a second.
            Self::Compute => 50,
        }
    }
}

/// Opens and closes a file so often.
pub(crate) fn open_and_close(times: u64) -> Result<()> {
    for _ in 0..times {
        rustix::fs::openat(CWD, "/dev/null", OFlags::RDONLY, Mode::empty())?;
    }
    Ok(())
}

/// What `function_latency` is asked about: found by its name in this program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mcptrace_bench_function(number: u64) -> u64 {
    std::hint::black_box(number)
}

impl Timing {
    fn of(slices: &[f64], events_of_slice: u64) -> Self {
        // The slice that warmed up is not among them, but its events were seen.
        let events = (slices.len() as u64 + 1) * events_of_slice;
        Self { fastest: slices.iter().copied().fold(f64::INFINITY, f64::min), events }
    }
}

/// Times slices of so many events for some time, after one that warms up.
fn time(length: Duration, events: u32, mut body: impl FnMut() -> Result<()>) -> Result<Timing> {
    time_slice(events, &mut body)?;
    let end = Instant::now() + length;
    let mut slices = Vec::new();
    while Instant::now() < end || slices.is_empty() {
        slices.push(time_slice(events, &mut body)?);
    }
    Ok(Timing::of(&slices, u64::from(events)))
}

fn time_slice(events: u32, body: &mut impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..events {
        body()?;
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(events))
}

/// One end of a game of two threads.
struct PingPong {
    to: Option<PipeWriter>,
    from: PipeReader,
    other: Option<JoinHandle<()>>,
}

impl PingPong {
    /// The other thread inherits our CPU.
    fn start() -> Result<Self> {
        let (mut theirs, to) = pipe()?;
        let (from, mut back) = pipe()?;
        let echo = move || {
            let mut byte = [0];
            while theirs.read_exact(&mut byte).and_then(|()| back.write_all(&byte)).is_ok() {}
        };
        Ok(Self { to: Some(to), from, other: Some(thread::spawn(echo)) })
    }

    fn once(&mut self) -> Result<()> {
        let mut byte = [7];
        self.to.as_mut().context("the game is over")?.write_all(&byte)?;
        Ok(self.from.read_exact(&mut byte)?)
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        self.to = None;
        if let Some(other) = self.other.take() {
            let _ = other.join();
        }
    }
}

/// A file beside this program, which is read at one place after the other.
struct DirectFile {
    file: File,
    path: PathBuf,
    buffer: Box<Page>,
    next: u64,
}

/// `O_DIRECT` wants memory and offsets aligned to the device's blocks.
#[repr(align(4096))]
struct Page([u8; PAGE as usize]);

const PAGE: u64 = 4096;
const PAGES: u64 = 256;

impl DirectFile {
    fn create() -> Result<Self> {
        let path = std::env::current_exe()?.with_extension("data");
        let mut writer = File::create(&path)?;
        writer.write_all(&vec![7; (PAGE * PAGES) as usize])?;
        writer.sync_all()?;
        let direct = OFlags::DIRECT.bits() as i32;
        let file = File::options().read(true).custom_flags(direct).open(&path);
        let file = file.with_context(|| format!("{}: its file system does not take O_DIRECT", path.display()))?;
        Ok(Self { file, path, buffer: Box::new(Page([0; PAGE as usize])), next: 0 })
    }

    fn read(&mut self) -> Result<()> {
        self.next = (self.next + 1) % PAGES;
        let read = self.file.read_at(&mut self.buffer.0, self.next * PAGE)?;
        ensure!(read as u64 == PAGE, "short read of {}", self.path.display());
        Ok(())
    }
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disturbed_slices_do_not_count_but_their_events_do() {
        let timing = Timing::of(&[1000.0, 10.0, 11.0], 5);
        assert_eq!(timing, Timing { fastest: 10.0, events: 20 });
    }

    #[test]
    fn a_byte_comes_back() {
        let mut game = PingPong::start().unwrap();
        game.once().unwrap();
        game.once().unwrap();
    }
}
