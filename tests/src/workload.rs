//! A process that does exactly what a test tells it, and says what came of it. The other end is `src/bin/workload.rs`.
#![expect(clippy::unwrap_used, reason = "part of the tests")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

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
        line.trim_end().to_owned()
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
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
