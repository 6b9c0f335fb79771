//! The command of `mcptrace run PROBE -- COMMAND`: started stopped, traced from its first instruction.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::fd::AsFd as _,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::process::{Child, Command};

use super::{Failure, gate};

/// How long a command has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// A command that is stopped before its first instruction, or runs.
#[derive(Debug)]
pub(super) struct Workload {
    child: Child,
    pid: Pid,
}

impl Workload {
    /// Starts it, stopped. Its stdin, stdout and stderr are those of this process; if this one's stdout is for a program to read, what the
    /// command prints goes to stderr.
    pub(super) fn start(words: &[OsString], keeps_stdout: bool) -> Result<Self, Failure> {
        let (Some(name), Ok(own)) = (words.first(), env::current_exe()) else {
            return Err(Failure::failed(
                "cannot find this program's own file (/proc/self/exe) to start the command with",
            ));
        };
        let program = find(name).ok_or_else(|| {
            Failure::usage(format!(
                "there is no program `{}` to run: not a file that may be executed, nor one on PATH",
                name.display()
            ))
        })?;
        let mut command = Command::new(own);
        command.arg(gate::NAME).arg("--").arg(program).args(words).kill_on_drop(true);
        if keeps_stdout {
            command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        }
        let child = command.spawn()?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid as i32))
            .ok_or_else(|| Failure::failed("the command has no pid"))?;
        let workload = Self { child, pid };
        workload.wait_for_stop()?;
        Ok(workload)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// Lets it go.
    pub(super) fn go(&self) -> Result<(), Failure> {
        kill_process(self.pid, Signal::CONT)
            .map_err(|error| Failure::failed(format!("cannot continue the command: {error}")))
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        Ok(self.child.wait().await?)
    }

    /// Ends it if it still runs: SIGTERM, and SIGKILL if that is not enough. Says how it ended.
    pub(super) async fn end(&mut self) -> Result<String, Failure> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(in_words(status));
        }
        // It may have ended since; then there is nothing left to end.
        let _ = kill_process(self.pid, Signal::TERM);
        if let Ok(status) = tokio::time::timeout(GRACE, self.child.wait()).await {
            return Ok(format!("the command still ran when tracing ended and got SIGTERM: {}", in_words(status?)));
        }
        self.child.kill().await?;
        Ok("the command still ran when tracing ended, did not heed SIGTERM and was killed".to_owned())
    }

    fn wait_for_stop(&self) -> Result<(), Failure> {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.pid), options) {
            Ok(Some(status)) if status.stopped() => Ok(()),
            Ok(_) => Err(Failure::failed("the command could not be held at its start")),
            Err(error) => Err(Failure::failed(format!("cannot wait for the command: {error}"))),
        }
    }
}

/// How a command ended.
pub(super) fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("the command ended with exit status {code}"),
        (None, Some(signal)) => format!("the command was ended by signal {signal}"),
        (None, None) => "the command ended".to_owned(),
    }
}

/// The file that a name means, as a shell finds it.
fn find(name: &OsStr) -> Option<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| is_program(path));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert_eq!(find("/bin/sh".as_ref()), Some("/bin/sh".into()));
        assert!(find("sh".as_ref()).unwrap().ends_with("sh"));
        assert_eq!(find("/etc/passwd".as_ref()), None, "not executable");
        assert_eq!(find("/etc".as_ref()), None, "a folder");
        assert_eq!(find("no_such_program_anywhere".as_ref()), None);
        assert_eq!(find("".as_ref()), None);
    }
}
