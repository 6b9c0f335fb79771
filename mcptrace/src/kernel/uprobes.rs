//! Attaching to functions in ways that aya does not offer: one program to many of them at once, and to probes that a semaphore switches on.
//!
//! Setting and removing breakpoints one by one waits each time until no CPU runs the old ones: some 90 ms for each on the reference machine. The
//! kernel of 6.6 and later takes a list (`BPF_TRACE_UPROBE_MULTI`) and waits once. A program for it is loaded with that purpose, which aya
//! cannot say, so it is loaded from the same object a second time, with the maps that aya has made.

use std::{
    collections::HashSet,
    ffi::{CString, c_ulong},
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{
    Object,
    generated::{bpf_insn, perf_event_attr},
};
use libbpf_sys::{
    BPF_F_UPROBE_MULTI_RETURN, BPF_PERF_EVENT, BPF_PROG_TYPE_KPROBE, BPF_TRACE_UPROBE_MULTI, bpf_link_create,
    bpf_link_create_opts, bpf_map_update_elem, bpf_prog_load, bpf_prog_load_opts,
};

use super::{hook::Function, image::Image};

/// The kernel's word for dynamic probes in user space among its performance units.
const UNIT: &str = "/sys/bus/event_source/devices/uprobe";
/// `PERF_EVENT_IOC_ENABLE` and `PERF_EVENT_IOC_SET_BPF` (include/uapi/linux/perf_event.h).
const ENABLE: c_ulong = 0x2400;
const SET_BPF: c_ulong = 0x4004_2408;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOEXEC: c_ulong = 8;

/// A program attached to many functions; detaches when dropped.
#[derive(Debug)]
pub(super) struct Multi {
    /// The program.
    pub(super) program: OwnedFd,
    /// What holds it attached.
    pub(super) link: OwnedFd,
}

/// Attaches a program of an object to functions of one file at once. An error says that the kernel, or this code, cannot.
pub(super) fn attach_all(
    ebpf: &Ebpf,
    image: &Image,
    program: &str,
    functions: &[&Function],
    at_return: bool,
) -> io::Result<Multi> {
    let first = functions.first().ok_or(io::ErrorKind::InvalidInput)?;
    let program = load(ebpf, image, program)?;
    let link = link(&program, first, functions, at_return)?;
    Ok(Multi { program, link })
}

/// Puts values into an array, from its first entry on.
pub(super) fn fill(ebpf: &Ebpf, name: &str, values: &[Vec<u8>]) -> io::Result<()> {
    let map = ebpf.map(name).and_then(data).ok_or(io::ErrorKind::NotFound)?;
    let fd = map.fd().as_fd().as_raw_fd();
    for (value, index) in values.iter().zip(0_u32..) {
        // SAFETY: the key is the 4 bytes of an array's index, and the caller's values are as long as the array's.
        let failed = unsafe { bpf_map_update_elem(fd, (&raw const index).cast(), value.as_ptr().cast(), 0) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(-failed));
        }
    }
    Ok(())
}

/// Loads a program for many functions, with the maps that are there.
fn load(ebpf: &Ebpf, image: &Image, name: &str) -> io::Result<OwnedFd> {
    let mut object = Object::parse(image.bytes()).map_err(io::Error::other)?;
    let maps: Vec<(String, RawFd, aya_obj::Map)> = ebpf
        .maps()
        .filter_map(|(name, map)| {
            let described = object.maps.get(name)?.clone();
            Some((name.to_owned(), data(map)?.fd().as_fd().as_raw_fd(), described))
        })
        .collect();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let relocated = object.relocate_maps(maps.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &sections);
    relocated.map_err(io::Error::other)?;
    object.relocate_calls(&sections).map_err(io::Error::other)?;
    object.sanitize_functions(aya::features());
    let program = object.programs.get(name).ok_or(io::ErrorKind::NotFound)?;
    let function = object.functions.get(&program.function_key()).ok_or(io::ErrorKind::NotFound)?;
    load_instructions(name, &program.license, &function.instructions)
}

fn load_instructions(name: &str, license: &CString, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    // The kernel takes 15 bytes of a name.
    let name = CString::new(&name[..name.len().min(15)])?;
    let mut options = bpf_prog_load_opts {
        sz: size_of::<bpf_prog_load_opts>() as _,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..bpf_prog_load_opts::default()
    };
    // SAFETY: all pointers are valid for the call; both types are the kernel's struct bpf_insn.
    let fd = unsafe {
        bpf_prog_load(
            BPF_PROG_TYPE_KPROBE,
            name.as_ptr(),
            license.as_ptr(),
            instructions.as_ptr().cast(),
            instructions.len() as _,
            &raw mut options,
        )
    };
    owned(fd)
}

fn link(program: &OwnedFd, first: &Function, functions: &[&Function], at_return: bool) -> io::Result<OwnedFd> {
    let path = c_path(&first.path)?;
    let offsets: Vec<c_ulong> = functions.iter().map(|function| function.offset).collect();
    let cookies: Vec<u64> = functions.iter().map(|function| function.cookie.unwrap_or(0)).collect();
    let semaphores: Vec<c_ulong> = functions.iter().map(|function| function.semaphore.unwrap_or(0)).collect();
    let has_semaphores = semaphores.iter().any(|at| *at != 0);
    let mut options = bpf_link_create_opts { sz: size_of::<bpf_link_create_opts>() as _, ..Default::default() };
    options.__bindgen_anon_1.uprobe_multi = libbpf_sys::bpf_link_create_opts__bindgen_ty_1__bindgen_ty_3 {
        flags: if at_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
        cnt: functions.len() as u32,
        path: path.as_ptr(),
        offsets: offsets.as_ptr(),
        ref_ctr_offsets: if has_semaphores { semaphores.as_ptr() } else { std::ptr::null() },
        cookies: cookies.as_ptr(),
        pid: first.pid.unwrap_or(0),
        ..Default::default()
    };
    // SAFETY: all pointers are valid for the call, and the arrays have as many entries as is said.
    owned(unsafe { bpf_link_create(program.as_raw_fd(), 0, BPF_TRACE_UPROBE_MULTI, &raw const options) })
}

/// Attaches a loaded program to one place whose semaphore is raised meanwhile.
pub(super) fn attach_with_semaphore(program: RawFd, function: &Function) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let event = open_event(function)?;
    let cookie = function.cookie.unwrap_or(0);
    let mut options = bpf_link_create_opts { sz: size_of::<bpf_link_create_opts>() as _, ..Default::default() };
    options.__bindgen_anon_1.perf_event.bpf_cookie = cookie;
    // SAFETY: the options are valid for the call.
    let link = owned(unsafe { bpf_link_create(program, event.as_raw_fd(), BPF_PERF_EVENT, &raw const options) });
    match link {
        Ok(link) => {
            control(&event, ENABLE, 0)?;
            Ok((event, Some(link)))
        }
        // Before 5.15 there are no links of events, and no cookies.
        Err(_) if cookie == 0 => {
            control(&event, SET_BPF, program)?;
            control(&event, ENABLE, 0)?;
            Ok((event, None))
        }
        Err(error) => Err(error),
    }
}

/// An event of the kernel's unit for breakpoints in user space (kernel/events/core.c, perf_uprobe).
fn open_event(function: &Function) -> io::Result<OwnedFd> {
    let path = c_path(&function.path)?;
    // SAFETY: all zeros is a valid attribute.
    let mut attribute: perf_event_attr = unsafe { std::mem::zeroed() };
    attribute.type_ = number(&format!("{UNIT}/type"))?;
    attribute.size = size_of::<perf_event_attr>() as u32;
    // `config:32-63` (format/ref_ctr_offset).
    attribute.config = function.semaphore.unwrap_or(0) << 32;
    attribute.__bindgen_anon_3.config1 = path.as_ptr() as u64;
    attribute.__bindgen_anon_4.config2 = function.offset;
    let (pid, cpu) = function.pid.map_or((-1, 0), |pid| (pid as i32, -1));
    // SAFETY: the attribute and the path in it are valid for the call.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attribute, pid, cpu, -1, CLOEXEC) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { owned(fd as i32) }
}

fn control(event: &OwnedFd, request: c_ulong, argument: i32) -> io::Result<()> {
    // SAFETY: both requests take a number.
    let done = unsafe { libc::ioctl(event.as_raw_fd(), request as _, argument) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn number(path: &str) -> io::Result<u32> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// libbpf gives a descriptor or a negated errno.
fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The data of a map of the kinds that objects have.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::PerfEventArray(data)
        | Map::RingBuf(data)
        | Map::StackTraceMap(data) => Some(data),
        _ => None,
    }
}
