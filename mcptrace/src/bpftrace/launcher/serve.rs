//! The launcher's side. It has one thread, which lives as long as it does: that is what the parent-death signal of scripts goes by.
//!
//! The server is taken to be anybody's: its requests are looked at as if it had been taken over. All that it can get is what the operator
//! lets scripts do, by a bpftrace that only root can have installed, in the box, for a bounded time and a bounded number at once.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType},
    process::{Pid, PidfdFlags, Signal},
};

use super::{
    Settings, ends_itself,
    message::{Answer, Order, REQUEST_BYTES, Refusal, Request, Why},
    send, trust,
};
use crate::{
    bpftrace::{
        child::Own,
        sandbox::{Cgroup, Sandbox},
        task::Task,
    },
    kernel::shed,
};

/// How long a run that attaches nothing may take. The server is content with less.
const QUESTION_TIME: Duration = Duration::from_mins(1);
/// How much longer than its program a run may take: to compile, to attach and to print its maps.
const AROUND: Duration = Duration::from_mins(1);
/// How often it is looked whether killed groups are empty.
const TICK: Duration = Duration::from_millis(10);
/// How long those may take. What is left then goes with the next start.
const EMPTY: Duration = Duration::from_secs(5);
/// How long scripts may take to end with the launcher.
const END_TIME: Duration = Duration::from_secs(2);

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum NotServed {
    /// It was not started by a server.
    #[error(
        "this command is started by `mcptrace serve` and `mcptrace daemon`, which talk to it over their own socket"
    )]
    ByHand,
    /// The server has ended before anything was asked of it.
    #[error("the server has ended")]
    Gone,
    /// The system does not let it.
    #[error("the launcher cannot begin: {0}")]
    System(#[from] io::Error),
}

/// Serves the process that has started this one until that ends.
///
/// # Errors
///
/// If standard input is not the socket of a server, or the system gives it less than it needs.
pub fn serve(settings: Settings) -> Result<(), NotServed> {
    // SAFETY: closes what was left open by others; this process has opened nothing yet but the standard files.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0) };
    let (socket, server) = server()?;
    settle(ends_itself(&settings.command))?;
    let mut launcher = Serving { settings, socket, server, scripts: Vec::new(), emptying: Vec::new() };
    launcher.work();
    launcher.end();
    Ok(())
}

/// The socket to the server, and the server's process.
fn server() -> Result<(OwnedFd, OwnedFd), NotServed> {
    let input = io::stdin();
    let by_hand = |_| NotServed::ByHand;
    let kind = rustix::net::sockopt::socket_type(&input).map_err(by_hand)?;
    let peer = rustix::net::sockopt::socket_peercred(&input).map_err(by_hand)?;
    let started_by = |pid: Pid| rustix::process::getppid() == Some(pid);
    if kind != SocketType::SEQPACKET {
        return Err(NotServed::ByHand);
    }
    let server = match rustix::process::pidfd_open(peer.pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Err(NotServed::Gone),
        other => other.map_err(io::Error::from)?,
    };
    // A server that has ended is nobody's parent, and its number may be another's by now.
    if !started_by(peer.pid) {
        return Err(if has_ended(&server)? { NotServed::Gone } else { NotServed::ByHand });
    }
    // What it starts has another standard input.
    Ok((input.as_fd().try_clone_to_owned()?, server))
}

fn has_ended(process: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    Ok(rustix::event::poll(&mut polled, Some(&Timespec::default()))? > 0)
}

/// Lets go of all but what it is for. Signals that end a server's whole group or terminal do not end it before the server.
fn settle(unboxed: bool) -> io::Result<()> {
    // Fails where it leads a group already.
    let _ = rustix::process::setsid();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: ignoring a signal has no preconditions.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    // It tells it from the server in lists of processes; without, it works as well.
    let _ = rustix::thread::set_name(c"mcptrace-launch");
    if unboxed { shed::drop_all() } else { shed::keep_for_scripts() }
}

struct Serving {
    settings: Settings,
    socket: OwnedFd,
    /// Readable once the server has ended.
    server: OwnedFd,
    scripts: Vec<Script>,
    /// Groups whose processes have been killed.
    emptying: Vec<(Cgroup, Instant)>,
}

/// A bpftrace at work.
struct Script {
    own: Own,
    /// Readable once it has ended.
    ended: OwnedFd,
    /// `None` once the server has closed it.
    orders: Option<OwnedFd>,
    until: Instant,
}

/// What was found when something happened.
#[derive(Default)]
struct Ready {
    server_ended: bool,
    request: bool,
    /// By script: it has ended; there is an order.
    scripts: Vec<(bool, bool)>,
}

impl Serving {
    fn work(&mut self) {
        loop {
            let ready = self.wait();
            if ready.server_ended {
                return;
            }
            // Those that have ended go last, so that the others keep their places meanwhile.
            for (script, (_, ordered)) in self.scripts.iter_mut().zip(&ready.scripts) {
                if *ordered {
                    script.obey();
                }
            }
            for place in (0..ready.scripts.len()).rev() {
                if ready.scripts[place].0 {
                    let script = self.scripts.swap_remove(place);
                    self.emptying.extend(script.finish());
                }
            }
            let now = Instant::now();
            self.scripts.iter().filter(|script| script.until <= now).for_each(|script| script.own.kill());
            self.emptying.retain_mut(|(group, since)| !group.is_removed() && since.elapsed() < EMPTY);
            if ready.request && self.answer().is_err() {
                return;
            }
        }
    }

    fn wait(&self) -> Ready {
        let nothing = PollFlags::empty();
        let mut all = vec![PollFd::new(&self.server, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
        for script in &self.scripts {
            all.push(PollFd::new(&script.ended, PollFlags::IN));
            // A place for each, so that they can be told apart by their places.
            all.push(
                script
                    .orders
                    .as_ref()
                    .map_or_else(|| PollFd::new(&script.ended, nothing), |orders| PollFd::new(orders, PollFlags::IN)),
            );
        }
        let time = self
            .time_left()
            .map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
        if rustix::event::poll(&mut all, time.as_ref()).is_err() {
            return Ready::default();
        }
        let happened: Vec<bool> = all.iter().map(|one| !one.revents().is_empty()).collect();
        let scripts = self.scripts.iter().zip(happened[2..].chunks_exact(2));
        Ready {
            server_ended: happened[0],
            request: happened[1],
            scripts: scripts.map(|(script, pair)| (pair[0], pair[1] && script.orders.is_some())).collect(),
        }
    }

    /// Until something is to be done without being told.
    fn time_left(&self) -> Option<Duration> {
        if !self.emptying.is_empty() {
            return Some(TICK);
        }
        let until = self.scripts.iter().map(|script| script.until).min()?;
        // One that cannot be killed is tried again now and then.
        Some(until.saturating_duration_since(Instant::now()).max(TICK))
    }

    /// Answers a request. An error means that there is nobody to serve any more.
    fn answer(&mut self) -> io::Result<()> {
        let mut packet = vec![0; REQUEST_BYTES];
        // Descriptors that come with it are closed by the kernel, since there is no room for them.
        let received = rustix::net::recv(&self.socket, &mut packet[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC);
        let length = match received {
            Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, length)) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let request = packet.get(..length).and_then(Request::decode);
        match request {
            Some(Request::Start(task)) => match self.start(&task) {
                Ok((script, pipes, theirs)) => {
                    let answer = Answer::Started(script.own.id()).encode();
                    self.scripts.push(script);
                    send(&self.socket, &answer, &[pipes.0.as_fd(), pipes.1.as_fd(), theirs.as_fd()])
                }
                Err(refusal) => self.say(&Answer::Refused(refusal)),
            },
            Some(Request::Parts) => self.say(&Answer::parts(Sandbox::get().parts())),
            None => self.say(&Answer::Refused(Refusal::new(Why::Request, "this is no request"))),
        }
    }

    fn say(&self, answer: &Answer) -> io::Result<()> {
        send(&self.socket, &answer.encode(), &[] as &[BorrowedFd<'_>])
    }

    fn start(&self, task: &Task) -> Result<(Script, (File, File), OwnedFd), Refusal> {
        self.admit(task)?;
        let unboxed = ends_itself(&self.settings.command);
        let words = trust::resolve(&self.settings.command, !unboxed).map_err(|error| Refusal::of(&error))?;
        let failed = |error: io::Error| {
            let place = if unboxed { "" } else { " in its box, and is not started without" };
            Refusal::new(Why::Box, format!("{} could not be started{place}: {error}", words.join(" ")))
        };
        let sandbox = if unboxed { None } else { Some(Sandbox::get()) };
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| failed(error.into()))?;
        let (own, out, err) = Own::spawn(&words, &task.arguments(unboxed), sandbox).map_err(failed)?;
        match rustix::process::pidfd_open(own.group(), PidfdFlags::empty()) {
            Ok(ended) => {
                let until = Instant::now() + self.time_of(task);
                Ok((Script { own, ended, orders: Some(ours), until }, (out, err), theirs))
            }
            Err(error) => {
                own.kill();
                Err(failed(error.into()))
            }
        }
    }

    /// All that the server has looked at before is looked at again.
    fn admit(&self, task: &Task) -> Result<(), Refusal> {
        task.check().map_err(|error| Refusal::of(&error))?;
        if let Task::Compile(program) | Task::Run { program, .. } = task {
            let admitted = self.settings.policy.admit(program);
            admitted.map_err(|error| Refusal::new(Why::Policy, error.to_string()))?;
        }
        let most = self.settings.most;
        if self.scripts.len() >= most {
            return Err(Refusal::new(
                Why::Request,
                format!("{most} runs of bpftrace are under way, which is the limit"),
            ));
        }
        Ok(())
    }

    fn time_of(&self, task: &Task) -> Duration {
        match task {
            Task::Run { seconds, .. } => Duration::from_secs(*seconds).min(self.settings.longest) + AROUND,
            _ => QUESTION_TIME,
        }
    }

    /// Ends all scripts; what they leave is removed when this is dropped.
    fn end(&mut self) {
        self.scripts.iter().for_each(|script| script.own.kill());
        let until = Instant::now() + END_TIME;
        for mut script in self.scripts.drain(..) {
            while !script.own.has_ended() && Instant::now() < until {
                std::thread::sleep(TICK);
            }
            // One that sits in the kernel dies when it comes out.
            if script.own.has_ended() {
                script.own.reap();
            }
        }
    }
}

impl Script {
    /// Does what the server wants of it. A server that has closed the socket, or says what is no order, wants nothing of it any more.
    fn obey(&mut self) {
        let Some(orders) = &self.orders else { return };
        let mut packet = [0; 2];
        let received = rustix::net::recv(orders, &mut packet[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC);
        let order = match received {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok((_, length)) => packet.get(..length).and_then(Order::decode),
            Err(_) => None,
        };
        match order {
            // It may have ended by now.
            Some(Order::Interrupt) => drop(self.own.signal(Signal::INT)),
            Some(Order::Terminate) => drop(self.own.signal(Signal::TERM)),
            Some(Order::Kill) => self.own.kill(),
            None => {
                self.own.kill();
                self.orders = None;
            }
        }
    }

    /// It has ended: what it left in its group goes too, and the server is told. Gives the control group, which may not be empty yet.
    fn finish(mut self) -> Option<(Cgroup, Instant)> {
        self.own.kill();
        let status = self.own.reap().map_or(libc::SIGKILL, std::process::ExitStatus::into_raw);
        if let Some(orders) = &self.orders {
            // Who does not read it does not want to know.
            let _ = send(orders, &status.to_le_bytes(), &[]);
        }
        Some((self.own.take_cgroup()?, Instant::now()))
    }
}
