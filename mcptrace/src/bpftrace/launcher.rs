//! The launcher: a process apart that builds the box of scripts and starts bpftrace, so that the server need not keep what that takes.
//!
//! A server starts it before it lets go of its privileges ([`start`]) and reaches it by one socket from then on. A request is one of a few
//! kinds ([`message`]): what bpftrace is run with, in which box and for how long at most is the launcher's own affair ([`serve`]). The
//! answer to a start brings the ends of pipes to read, and a socket for the three signals that a script can be sent; when the server
//! closes that socket, the script is killed. The launcher looks at the server's process too, and ends all when that has ended.

mod message;
mod serve;
mod trust;

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType,
    },
};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::message::check_packet;
use self::message::{ANSWER_BYTES, Answer, Order, Request};
pub use self::serve::{NotServed, serve};
use super::{
    child::ENVIRONMENT,
    error::{Category, ScriptError},
    policy::{Level, Policy},
    sandbox::{self, Part},
    task::Task,
};
use crate::kernel::{privilege, shed};

/// The name of the hidden command that it is started by.
pub const NAME: &str = "__launcher";
/// How long an answer may take. The first one brings a try of each part of the box, on a machine that may be in trouble.
const ANSWER_TIME: Duration = Duration::from_mins(1);
/// Descriptors that come with an answer.
const DESCRIPTORS: usize = 3;

/// What the launcher holds requests against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which programs may run.
    pub policy: Policy,
    /// How many runs of bpftrace there may be at once.
    pub most: usize,
    /// The longest run of a program.
    pub longest: Duration,
    /// The command of bpftrace; empty: `bpftrace` where programs are.
    pub command: Vec<String>,
}

/// The launcher of this process.
#[derive(Debug)]
pub struct Launcher {
    /// `None` once it has not answered as it should.
    socket: Mutex<Option<OwnedFd>>,
    /// Kept so that its number stays its own.
    child: Child,
}

/// A bpftrace that the launcher has started. When this is dropped, it is killed.
#[derive(Debug)]
pub(super) struct Running {
    pid: u32,
    orders: OwnedFd,
    status: Option<ExitStatus>,
}

static LAUNCHER: OnceLock<Result<Launcher, String>> = OnceLock::new();

/// Starts the launcher of this process where scripts may run at all and this process may build a box. Where it may not, scripts are refused
/// with the reason.
///
/// Must be called before capabilities are shed, and by a process without threads.
pub fn start(settings: &Settings) {
    let unboxed = ends_itself(&settings.command);
    if settings.policy.level == Level::Never || (!unboxed && !shed::lacks_for_scripts().is_empty()) {
        return;
    }
    let started = Launcher::start(settings).map_err(|error| error.to_string());
    // There is one in a process.
    let _ = LAUNCHER.set(started);
}

/// The launcher, or why it could not be started. `None`: this process starts scripts itself, or cannot.
pub(super) fn get() -> Option<Result<&'static Launcher, &'static str>> {
    LAUNCHER.get().map(|started| started.as_ref().map_err(String::as_str))
}

/// Its process id, where there is one.
pub fn process_id() -> Option<u32> {
    Some(get()?.ok()?.child.id())
}

/// Whether a command is one through which no signal reaches bpftrace, and no box is built around it.
pub(super) fn ends_itself(words: &[String]) -> bool {
    let name = words.first().and_then(|word| std::path::Path::new(word).file_name());
    name.is_some_and(|name| name == "sudo" || name == "doas")
}

impl Launcher {
    fn start(settings: &Settings) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The link names this very file, also when another has been put in its place.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("mcptrace").arg(NAME).args(settings.arguments());
        command.env_clear().envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).current_dir("/");
        Ok(Self { child: command.spawn()?, socket: Mutex::new(Some(ours)) })
    }

    /// Which parts of the box it can give.
    pub(super) fn parts(&self) -> Vec<Part> {
        let failed = |why: String| sandbox::parts(|_| Some(why.clone()));
        match self.ask(&Request::Parts) {
            Ok((Answer::Parts(found), _)) => sandbox::parts(|name| {
                let reason = found.iter().find(|(part, _)| part == name).map(|(_, reason)| reason.clone());
                reason.unwrap_or_else(|| Some("the launcher does not know it".to_owned()))
            }),
            Ok((Answer::Refused(refusal), _)) => failed(refusal.message),
            Ok((Answer::Started(_), _)) => failed("the launcher has answered something else".to_owned()),
            Err(error) => failed(error.message),
        }
    }

    /// Has it start bpftrace; gives what is running, its output and its errors.
    pub(super) fn run(&self, task: Task) -> Result<(Running, OwnedFd, OwnedFd), ScriptError> {
        match self.ask(&Request::Start(task))? {
            (Answer::Started(pid), descriptors) => {
                let [out, err, orders] = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors).map_err(|_| garbled())?;
                Ok((Running { pid, orders, status: None }, out, err))
            }
            (Answer::Refused(refusal), _) => Err(refusal.into_error()),
            (Answer::Parts(_), _) => Err(garbled()),
        }
    }

    /// Asks one thing at a time. What has once not answered is not asked again: a late answer would be taken for another's.
    fn ask(&self, request: &Request) -> Result<(Answer, Vec<OwnedFd>), ScriptError> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let open = socket.as_ref().ok_or_else(|| gone(&io::ErrorKind::NotConnected.into()))?;
        let asked = exchange(open, &request.encode()).map_err(|error| gone(&error));
        let answered = asked.and_then(|(packet, descriptors)| {
            Answer::decode(&packet).map(|answer| (answer, descriptors)).ok_or_else(garbled)
        });
        if answered.is_err() {
            *socket = None;
        }
        answered
    }
}

impl Settings {
    /// As arguments of the hidden command.
    fn arguments(&self) -> Vec<String> {
        let Self { policy, most, longest, command } = self;
        let mut words = vec!["--level".to_owned(), policy.level.to_string()];
        words.extend(policy.programs.then(|| "--programs".to_owned()));
        words.push(format!("--reveal={}", policy.reveals.words()));
        words.extend(["--most".to_owned(), most.to_string()]);
        words.extend(["--longest".to_owned(), longest.as_secs().to_string(), "--".to_owned()]);
        words.extend(command.iter().cloned());
        words
    }
}

fn gone(error: &io::Error) -> ScriptError {
    let message = format!("the launcher, which starts scripts, has ended or does not answer: {error}");
    ScriptError::new(Category::Permission, message).with_remedy("start the server anew; native probes work without it")
}

fn garbled() -> ScriptError {
    gone(&io::Error::new(io::ErrorKind::InvalidData, "its answer is none"))
}

impl Running {
    /// The process id of bpftrace.
    pub(super) fn id(&self) -> u32 {
        self.pid
    }

    /// Its status once it has ended. Where the launcher has gone, bpftrace was killed with it.
    pub(super) fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            let mut bytes = [0; 4];
            self.status = match rustix::net::recv(&self.orders, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((4, _)) => Some(ExitStatus::from_raw(i32::from_le_bytes(bytes))),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
                Ok(_) | Err(_) => Some(ExitStatus::from_raw(libc::SIGKILL)),
            };
        }
        self.status
    }

    fn order(&self, order: Order) -> io::Result<()> {
        rustix::net::send(&self.orders, &order.encode(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }

    /// Sends a signal to its process group; SIGKILL to all that is in its box.
    pub(super) fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        match signal {
            rustix::process::Signal::INT => self.order(Order::Interrupt),
            rustix::process::Signal::TERM => self.order(Order::Terminate),
            rustix::process::Signal::KILL => self.order(Order::Kill),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Sends a packet and waits for the one that answers it.
fn exchange(socket: &OwnedFd, packet: &[u8]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    rustix::net::send(socket, packet, SendFlags::NOSIGNAL)?;
    wait(socket, ANSWER_TIME)?;
    receive(socket)
}

fn wait(socket: &OwnedFd, time: Duration) -> io::Result<()> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = vec![0; ANSWER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    packet.truncate(received.bytes);
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((packet, rights.flatten().collect()))
}

/// Sends a packet with descriptors; does not wait for a peer that does not read.
fn send(socket: &OwnedFd, packet: &[u8], descriptors: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags)?;
    Ok(())
}

/// What the box of scripts takes, and whether the launcher of this process has it, or, where there is none, this process.
pub fn capabilities() -> Vec<privilege::Held> {
    shed::held_for_scripts(process_id().map_or_else(shed::permitted, shed::permitted_of))
}
