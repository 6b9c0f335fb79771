//! The mcptrace program. What it can do stands in [`mcptrace::cli::VERBS`].

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    share_one_arena();
    log_to_stderr();
    mcptrace::cli::run(std::env::args_os())
}

/// stdout is the protocol's or the report's; whatever else there is to say goes to stderr.
fn log_to_stderr() {
    // rmcp warns of every error it sends to the client, who has been told already. Requests over HTTP are logged.
    let filter = EnvFilter::try_from_env("MCPTRACE_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,rmcp=error,mcptrace::server::http=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Lets all threads allocate from one arena. Each execution has a thread, and what glibc keeps for each of them adds up to 10 MB.
fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
