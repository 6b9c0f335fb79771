//! The mcptrace program. What it can do stands in [`mcptrace::cli::VERBS`].

use std::process::ExitCode;

use tracing_subscriber::{Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// rmcp warns of every error it sends to the client, who has been told already. Requests over HTTP are logged.
const LOGGED: &str = "warn,rmcp=error,mcptrace::server::http=info";

fn main() -> ExitCode {
    share_one_arena();
    log_to_stderr();
    mcptrace::cli::run(std::env::args_os())
}

/// stdout is the protocol's or the report's; whatever else there is to say goes to stderr. Targets and levels are all that is asked of
/// `MCPTRACE_LOG`: filters that also look at values compile regular expressions, a megabyte of program.
fn log_to_stderr() {
    let asked = std::env::var("MCPTRACE_LOG").ok();
    let filter = asked.as_deref().map(str::parse::<Targets>);
    let refused = matches!(filter, Some(Err(_)));
    let filter = filter.and_then(Result::ok).or_else(|| LOGGED.parse().ok()).unwrap_or_default();
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(to_stderr.with_filter(filter)).init();
    if refused {
        tracing::warn!(
            "MCPTRACE_LOG is not like `{LOGGED}`, which is in force: levels, alone or of a target, between commas"
        );
    }
}

/// From so many bytes on, memory is mapped for itself and given back as soon as it is free. glibc would raise that by itself to 32 MB after the
/// first large answer, and what is kept for long would then lie scattered over where large answers have been.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// Lets all threads allocate from one arena. Each execution has a thread, and what glibc keeps for each of them adds up to 10 MB.
fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
