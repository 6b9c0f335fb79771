//! A process that does exactly what a test tells it, and says what came of it. The other end is `src/bin/workload.rs`.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use mcptrace::report::Envelope;

/// Starts the workload program of this package.
#[macro_export]
macro_rules! workload {
    () => {
        $crate::workload::Workload::start(env!("CARGO_BIN_EXE_workload"))
    };
}

/// A running workload. It sleeps in a read of its standard input whenever it has nothing to do; dropping it ends it.
#[derive(Debug)]
pub struct Workload {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Workload {
    /// Starts the program and waits until it listens.
    pub fn start(program: &str) -> Self {
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut workload = Self { child, stdin, stdout };
        assert_eq!(workload.answer(), "ready");
        workload
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something and gives the numbers that it answers.
    pub fn run(&mut self, command: &str) -> Vec<i64> {
        self.begin(command);
        self.finish()
    }

    /// Has it do something without waiting; [`Self::finish`] waits.
    pub fn begin(&mut self, command: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Waits for the answer to what was begun.
    pub fn finish(&mut self) -> Vec<i64> {
        let answer = self.answer();
        let numbers = answer.strip_prefix("ok").unwrap_or_else(|| panic!("the workload says {answer:?}"));
        numbers.split_whitespace().map(|number| number.parse().unwrap()).collect()
    }

    /// Ends it by the end of its input and waits for its exit.
    pub fn end(&mut self) {
        self.stdin = None;
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status} {:?}", status.signal());
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        self.wait_until_asleep();
        line.trim_end().to_owned()
    }

    /// On a busy machine it may take a while from its answer to the read in which it waits for the next command, and what it does in
    /// between would be counted with whatever comes after.
    fn wait_until_asleep(&self) {
        let begun = Instant::now();
        while self.state().is_some_and(|state| !matches!(state, 'S' | 'Z' | 'X')) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the workload does not come to rest");
            sleep(Duration::from_micros(200));
        }
    }

    /// The state of its main thread, as proc(5) calls it.
    fn state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes as the workload program takes them in a command.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    // The x keeps an empty string a word.
    "x".chars()
        .chain(bytes.as_ref().iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).map(char::from))
        .collect()
}

/// Starts the program of this package that runs a probe.
#[macro_export]
macro_rules! prober {
    ($probe:expr, $seconds:expr, $options:expr, $filter:expr) => {
        $crate::workload::Prober::start(
            env!("CARGO_BIN_EXE_run_probe"),
            &[$probe.to_owned(), $seconds.to_string(), $options.to_string(), serde_json::to_string($filter).unwrap()],
        )
    };
}

/// Another process that runs a probe.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Prober {
    /// Starts the program and waits until its probe is attached.
    pub fn start(program: &str, arguments: &[String]) -> Self {
        let mut child =
            Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut prober = Self { child, stdout };
        assert_eq!(prober.line(), "running\n");
        prober
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Ends the probe and gives the envelope.
    pub fn end(&mut self) -> Envelope {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
