//! `mcptrace __gate`: stops itself until tracing has begun, then becomes the command.
//!
//! A signal rather than a pipe holds it: a process that waits in `read` would return from that call, and the trace of the command
//! would begin with half a system call that is not its own. One that has stopped itself is past its last call.

use std::{
    convert::Infallible,
    ffi::{CString, OsString},
    io,
    os::unix::ffi::OsStringExt as _,
};

use clap::{Arg, ArgMatches, Command, value_parser};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::Failure;

/// The name of the hidden command.
pub(super) const NAME: &str = "__gate";

pub(super) fn define() -> Command {
    Command::new(NAME).hide(true).arg(
        Arg::new("command")
            .num_args(2..)
            .required(true)
            .allow_hyphen_values(true)
            .value_parser(value_parser!(OsString)),
    )
}

/// Arguments: the program's path, then all that the program is to see, its own name first.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let words: Vec<OsString> = matches.get_many("command").into_iter().flatten().cloned().collect();
    let words: Vec<CString> = words
        .into_iter()
        .map(|word| CString::new(word.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::usage("an argument has a zero byte"))?;
    // Whoever ends the tracer ends what it started, also while it is stopped.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    restore_sigpipe();
    let mut pointers: Vec<*const libc::c_char> = words[1..].iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let Err(error) = stop_then_become(&words[0], &pointers);
    Err(Failure::failed(format!("cannot run `{}`: {error}", words[0].to_string_lossy())))
}

/// Between the stop and the new program there is no system call but `execve`, so that the trace is of the program alone.
fn stop_then_become(program: &CString, arguments: &[*const libc::c_char]) -> Result<Infallible, io::Error> {
    // SAFETY: raise takes no pointer. The path is terminated, and the arguments are, with a null pointer after the last.
    unsafe {
        libc::raise(libc::SIGSTOP);
        libc::execv(program.as_ptr(), arguments.as_ptr());
    }
    Err(io::Error::last_os_error())
}

/// Rust ignores SIGPIPE, and what is ignored stays so in the new program.
fn restore_sigpipe() {
    // SAFETY: the default action needs no handler.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}
