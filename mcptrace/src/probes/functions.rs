//! What probes of functions in user space share.

use std::path::{Path, PathBuf};

use super::{Context, OptionError, syscall_counts::words};
use crate::kernel::{
    arch::ARCH,
    discovery::binary::{self, Binary, BinaryFile},
    hook::{Function, locate},
};

/// The globals that say where registers are.
pub(super) fn register_globals() -> [(&'static str, Vec<u8>); 3] {
    [
        ("REGS_FUNCTION", words(&ARCH.regs_function)),
        ("REGS_STACK", ARCH.regs_stack.to_ne_bytes().to_vec()),
        ("RETURN_POPS", ARCH.return_pops.to_ne_bytes().to_vec()),
    ]
}

/// The library of functions where `options.binary` names none.
pub(super) const LIBC: &str = "libc";

/// The process that breakpoints are set in; none where its children are to be followed, too.
pub(super) fn scope(context: &Context<'_>) -> Option<u32> {
    context.filter.pid.filter(|_| context.filter.follow.is_none())
}

/// Opens the file of `options.binary`: with a process, as that process sees it.
pub(super) fn open(file: &str, context: &Context<'_>) -> Result<BinaryFile, OptionError> {
    let wrong = |error: &dyn std::fmt::Display| OptionError::new(format!("options.binary: {error}"));
    let path = locate(file, context.filter.pid).or_else(|error| {
        // A process that is followed may yet run another program, which has this library: it is looked for as without a process.
        context.filter.follow.map(|_| PathBuf::from(file)).ok_or_else(|| wrong(&error))
    })?;
    binary::open(&path.to_string_lossy()).map_err(|error| wrong(&error))
}

/// What a binary has.
pub(super) fn read(file: &BinaryFile) -> Result<Binary<'_>, OptionError> {
    Binary::parse(file).map_err(|error| OptionError::new(format!("options.binary: {error}")))
}

/// A place in a file as something to attach to.
pub(super) fn place(label: &str, path: &Path, offset: u64, pid: Option<u32>, cookie: Option<u64>) -> Function {
    Function { label: label.to_owned().into(), path: path.to_owned(), offset, pid, cookie, semaphore: None }
}
