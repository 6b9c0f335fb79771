//! Loads and links that aya 0.14 does not know: by libbpf's calls, with programs of two instructions.

use std::{
    ffi::{CString, c_int},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use libbpf_sys as sys;

/// The size of the log that the verifier may fill, in bytes.
const LOG: usize = 4096;

/// What to load.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Program<'a> {
    /// `BPF_PROG_TYPE_*`.
    pub(super) kind: u32,
    /// `BPF_*` attach type; 0 for none.
    pub(super) attach: u32,
    /// `BPF_F_*`.
    pub(super) flags: u32,
    /// Instructions.
    pub(super) code: &'a [sys::bpf_insn],
}

/// Returns zero.
pub(super) fn return_zero() -> [sys::bpf_insn; 2] {
    [instruction(sys::BPF_ALU64 | sys::BPF_MOV | sys::BPF_K, 0), instruction(sys::BPF_JMP | sys::BPF_EXIT, 0)]
}

/// Calls a helper without arguments, and returns.
pub(super) fn call(helper: u32) -> [sys::bpf_insn; 2] {
    [instruction(sys::BPF_JMP | sys::BPF_CALL, helper as i32), instruction(sys::BPF_JMP | sys::BPF_EXIT, 0)]
}

fn instruction(code: u32, immediate: i32) -> sys::bpf_insn {
    let mut instruction = sys::bpf_insn { code: code as u8, imm: immediate, ..Default::default() };
    instruction.set_dst_reg(0);
    instruction
}

/// Loads a program; the error comes with the verifier's words.
pub(super) fn load(program: &Program<'_>) -> Result<OwnedFd, (io::Error, String)> {
    let mut log = [0_u8; LOG];
    let mut options = sys::bpf_prog_load_opts {
        sz: size_of::<sys::bpf_prog_load_opts>() as _,
        attempts: 1,
        expected_attach_type: program.attach,
        prog_flags: program.flags,
        log_level: 1,
        log_size: LOG as u32,
        log_buf: log.as_mut_ptr().cast(),
        ..Default::default()
    };
    // SAFETY: all pointers are to memory that outlives the call, with the lengths given.
    let fd = unsafe {
        sys::bpf_prog_load(
            program.kind,
            c"support".as_ptr(),
            c"GPL".as_ptr(),
            program.code.as_ptr(),
            program.code.len() as _,
            &raw mut options,
        )
    };
    let words = || String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    owned(fd).map_err(|error| (error, words()))
}

/// Attaches a kprobe-multi program to a function.
pub(super) fn link_kprobe_multi(program: &OwnedFd, function: &str) -> io::Result<OwnedFd> {
    let function = CString::new(function)?;
    let mut names = [function.as_ptr()];
    let mut options =
        sys::bpf_link_create_opts { sz: size_of::<sys::bpf_link_create_opts>() as _, ..Default::default() };
    options.__bindgen_anon_1.kprobe_multi = sys::bpf_link_create_opts__bindgen_ty_1__bindgen_ty_2 {
        cnt: 1,
        syms: names.as_mut_ptr(),
        ..Default::default()
    };
    link(program, sys::BPF_TRACE_KPROBE_MULTI, &options)
}

/// Attaches a uprobe-multi program to an offset in a file, for this process only.
pub(super) fn link_uprobe_multi(program: &OwnedFd, path: &str, offset: u64) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    let offsets = [offset];
    let mut options =
        sys::bpf_link_create_opts { sz: size_of::<sys::bpf_link_create_opts>() as _, ..Default::default() };
    options.__bindgen_anon_1.uprobe_multi = sys::bpf_link_create_opts__bindgen_ty_1__bindgen_ty_3 {
        cnt: 1,
        path: path.as_ptr(),
        offsets: offsets.as_ptr(),
        pid: std::process::id(),
        ..Default::default()
    };
    link(program, sys::BPF_TRACE_UPROBE_MULTI, &options)
}

fn link(program: &OwnedFd, attach: u32, options: &sys::bpf_link_create_opts) -> io::Result<OwnedFd> {
    // SAFETY: the options and what they point to outlive the call.
    owned(unsafe { sys::bpf_link_create(program.as_raw_fd(), 0, attach, options) })
}

/// libbpf gives a file descriptor, or an error number below zero.
fn owned(fd: c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
