//! The daemon that is soaked.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    sync::Mutex,
    time::{sleep, timeout},
};

use crate::{
    boxes,
    mcp::{Client, PATIENCE, ServerProcess},
};

/// A user that needs no account.
const USER: u32 = 70_011;

/// A daemon with its files.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Mutex<Child>,
    pid: u32,
    folder: TempDir,
}

impl Daemon {
    pub(super) async fn start(program: &Path) -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        // Users start it too, and cannot reach every folder of a build.
        fs::copy(program, path.join("mcptrace")).unwrap();
        // As many results are kept as one round makes, so that what grows afterwards is none of theirs.
        let text = format!(
            "[limits]\nkept = 16\nevents_mb = 8\n\
             [socket]\npath = \"{0}/socket\"\nusers = [{USER}]\n[audit]\nto = \"{0}/audit.jsonl\"\n\
             [recorder]\nstate = \"{0}/state\"\nbudget_percent = 50.0\n",
            path.display()
        );
        fs::write(path.join("config.toml"), text).unwrap();
        let mut command = Command::new(path.join("mcptrace"));
        command.arg("daemon").arg("--config").arg(path.join("config.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().unwrap();
        let pid = child.id().unwrap();
        let daemon = Arc::new(Self { child: Mutex::new(child), pid, folder });
        let begun = Instant::now();
        while UnixStream::connect(daemon.socket()).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the daemon does not serve");
            sleep(Duration::from_millis(50)).await;
        }
        daemon
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Where the history is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// A client of root's, without a process of its own.
    pub(super) async fn client(&self) -> Client {
        let (read, write) = UnixStream::connect(self.socket()).await.unwrap().into_split();
        let mut client = Client::new(read, write);
        client.initialize("2025-11-25").await;
        client
    }

    /// A client of a user's, with the process that passes bytes on.
    pub(super) async fn user(&self) -> ServerProcess {
        let mut command = self.program();
        command.uid(USER).gid(USER);
        ServerProcess::start_by(command).await
    }

    /// A server of its own on standard input and output, beside the daemon.
    pub(super) async fn beside(&self) -> ServerProcess {
        ServerProcess::start_by(self.program()).await
    }

    fn program(&self) -> Command {
        let mut command = Command::new(self.path("mcptrace"));
        command.arg("--config").arg(self.path("config.toml")).current_dir("/");
        command
    }

    /// Ends all executions, whoever has left them running.
    pub(super) async fn stop_all(&self) {
        let mut client = self.client().await;
        let begun = Instant::now();
        loop {
            let all = client.tool("list_executions", json!({})).await.success();
            let running: Vec<_> =
                all["executions"].as_array().unwrap().iter().filter(|one| one["status"] == "running").collect();
            if running.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "they do not end: {running:?}");
            for one in running {
                client.tool("stop_execution", json!({ "execution_id": one["execution_id"] })).await;
            }
        }
    }

    /// Tells it to end, and gives its exit code and the control groups that are left.
    pub(super) async fn end(&self) -> (Option<i32>, Vec<PathBuf>) {
        // SAFETY: kill takes numbers only; the process is our child and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid as i32, libc::SIGTERM) }, 0);
        let status = timeout(PATIENCE, self.child.lock().await.wait()).await.expect("it does not end").unwrap();
        (status.code(), boxes::groups(&BTreeSet::from([self.pid])))
    }
}
