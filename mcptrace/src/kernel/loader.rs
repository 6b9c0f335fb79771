//! The one loader of the server: the kernel's types and features, read at the first native call and kept.

use std::{
    fmt::Debug,
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, Endianness,
    programs::{
        BtfTracePoint, FExit, PerfEvent, ProbeKind, Program, ProgramError, UProbe,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
    util::{KernelVersion, online_cpus},
};

use super::{
    btf::{BtfError, KernelBtf},
    hook::{Attach, Function, Hook, resolve},
    image::{Image, ImageError},
    layout::{self, Layout},
    privilege, support,
    uprobes::{self, Multi},
};
use crate::memory;

/// Why native probes cannot be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel does not describe its types.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// aya could not read them.
    #[error("cannot parse the kernel's types")]
    ParseBtf(#[source] aya::BtfError),
    /// The object could not be prepared.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The object could not be loaded.
    #[error("cannot load the eBPF object of `{probe}`: {reason}")]
    Object {
        /// The probe.
        probe: &'static str,
        /// The chain of causes.
        reason: String,
    },
    /// A program was refused.
    #[error("the kernel refused program `{program}` of `{probe}` at `{hook}`: {reason}")]
    Program {
        /// The probe.
        probe: &'static str,
        /// The program in the object.
        program: &'static str,
        /// Where it attaches.
        hook: String,
        /// The chain of causes, with the verifier's last words.
        reason: String,
    },
    /// Not allowed to.
    #[error("not permitted to load eBPF programs: this process lacks {missing}. To change that: {remedy}")]
    Permission {
        /// The capabilities that it lacks.
        missing: String,
        /// How it gets them.
        remedy: String,
    },
    /// The kernel lacks a hook.
    #[error("`{probe}` cannot run on this kernel: {reason}")]
    Hook {
        /// The probe.
        probe: &'static str,
        /// Which.
        reason: String,
    },
    /// A buffer could not be opened.
    #[error("cannot open the {what}: {reason}")]
    Buffer {
        /// Which.
        what: &'static str,
        /// The chain of causes.
        reason: String,
    },
}

/// An empty program for every way to attach.
const ATTACH_TYPES: &[u8] = aya::include_bytes_aligned!("../../bpf/attach_types.o");

/// A program that is attached; detaches when dropped.
#[derive(Debug)]
pub struct AttachedProgram {
    /// The function in the object.
    pub name: &'static str,
    /// Where it attaches; the first place, if there are several.
    pub hook: Hook,
    fd: OwnedFd,
    links: Vec<Link>,
}

/// Whatever detaches when dropped.
type Link = Box<dyn Held>;

/// What may be held without being looked at.
trait Held: Debug + Send + Sync {}

impl<T: Debug + Send + Sync> Held for T {}

impl AttachedProgram {
    /// Detaches; what the program has counted stays readable.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// The file descriptor number of the program.
    pub fn raw_fd(&self) -> i32 {
        self.fd.as_fd().as_raw_fd()
    }
}

/// What is known of this kernel for the life of the server.
#[derive(Debug)]
pub struct Kernel {
    btf: Btf,
    loader: Mutex<EbpfLoader<'static>>,
    /// Where it keeps what programs read.
    pub layout: Layout,
}

impl Kernel {
    /// The running kernel. The first call reads its types, which takes some 60 ms; it is repeated only after a failure.
    pub fn get() -> Result<&'static Self, LoadError> {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        static READING: Mutex<()> = Mutex::new(());
        if let Some(kernel) = KERNEL.get() {
            return Ok(kernel);
        }
        let _reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        if KERNEL.get().is_none() {
            let _ = KERNEL.set(Self::read()?);
        }
        KERNEL.get().ok_or(LoadError::Btf(BtfError::Missing))
    }

    fn read() -> Result<Self, LoadError> {
        // What fails comes back as an error; libbpf would write it to standard error as well.
        libbpf_rs::set_print(None);
        let types = KernelBtf::load()?;
        let layout = Layout::read(&types);
        let functions = [layout::FUNCTIONS, support::FUNCTIONS].concat();
        let points = types.attach_points(&functions);
        drop(types);
        let btf = Btf::parse(&points, Endianness::default()).map_err(LoadError::ParseBtf)?;
        drop(points);
        // The objects carry no CO-RE relocations, so the loader needs no types of its own.
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        memory::release_free();
        Ok(Self { btf, loader: Mutex::new(loader), layout })
    }

    /// Loads an object and attaches its programs, in the order given, as far as this kernel has their hooks. All or nothing.
    pub fn attach(
        &self,
        probe: &'static str,
        image: &Image,
        attach: &[Attach],
    ) -> Result<(Ebpf, Vec<AttachedProgram>), LoadError> {
        self.attach_filled(probe, image, attach, &[])
    }

    /// The same with values in arrays before anything is attached.
    pub fn attach_filled(
        &self,
        probe: &'static str,
        image: &Image,
        attach: &[Attach],
        values: &[(&'static str, Vec<Vec<u8>>)],
    ) -> Result<(Ebpf, Vec<AttachedProgram>), LoadError> {
        let loaded = self.load(image.bytes());
        let mut ebpf = loaded.map_err(|error| refused(&error, |reason| LoadError::Object { probe, reason }))?;
        for (name, values) in values {
            let filled = uprobes::fill(&ebpf, name, values);
            filled.map_err(|error| refused(&error, |reason| LoadError::Object { probe, reason }))?;
        }
        let mut programs = Vec::new();
        for group in self.resolved(probe, attach)?.chunk_by(are_one_list) {
            self.attach_group(&mut ebpf, probe, image, group, &mut programs)?;
        }
        Ok((ebpf, programs))
    }

    /// Attaches programs of an object that is loaded, as far as this kernel has their hooks: new ones, and those that were detached. When
    /// it fails, those before are attached.
    pub fn attach_loaded(
        &self,
        ebpf: &mut Ebpf,
        probe: &'static str,
        attach: &[Attach],
        programs: &mut Vec<AttachedProgram>,
    ) -> Result<(), LoadError> {
        self.resolved(probe, attach)?.into_iter().try_for_each(|one| self.attach_one(ebpf, probe, one, programs))
    }

    /// Loads an object and nothing else: its maps exist, its programs are not loaded yet.
    pub fn load(&self, object: &[u8]) -> Result<Ebpf, EbpfError> {
        self.loader.lock().unwrap_or_else(PoisonError::into_inner).load(object)
    }

    /// Loads an object and its programs without attaching them: whether this kernel takes them.
    pub fn check(&self, probe: &'static str, image: &Image, attach: &[Attach]) -> Result<(), LoadError> {
        let loaded = self.load(image.bytes());
        let mut ebpf = loaded.map_err(|error| refused(&error, |reason| LoadError::Object { probe, reason }))?;
        let attach = self.resolved(probe, attach)?;
        attach.iter().try_for_each(|one| self.load_one(&mut ebpf, probe, one).map(drop))
    }

    fn resolved(&self, probe: &'static str, attach: &[Attach]) -> Result<Vec<Attach>, LoadError> {
        resolve(attach, &self.layout).map_err(|reason| LoadError::Hook { probe, reason })
    }

    /// Attaches a program that does nothing.
    pub fn attach_empty(&self, tracepoint: &'static str) -> Result<AttachedProgram, LoadError> {
        let image = Image::new(ATTACH_TYPES)?;
        let (_, programs) = self.attach("attach_types", &image, &[Attach::tracepoint("empty_tp_btf", tracepoint)])?;
        programs.into_iter().next().ok_or(LoadError::Btf(BtfError::Missing))
    }

    /// What programs attach to, as aya has it, for those that are loaded one by one.
    pub fn btf(&self) -> &Btf {
        &self.btf
    }

    /// Loads a program, unless it is loaded: one program may attach to several functions.
    fn load_one<'a>(
        &self,
        ebpf: &'a mut Ebpf,
        probe: &'static str,
        attach: &Attach,
    ) -> Result<&'a mut Program, LoadError> {
        let failed = |reason| failed(probe, attach, reason);
        let found = ebpf.program_mut(attach.program);
        let program = found.ok_or_else(|| failed("the object has no such program".to_owned()))?;
        if program.fd().is_err() {
            self.load_program(program, &attach.hook).map_err(|error| refused(&error, failed))?;
        }
        Ok(program)
    }

    fn load_program(&self, program: &mut Program, hook: &Hook) -> Result<(), ProgramError> {
        match hook {
            Hook::Tracepoint(name) => <&mut BtfTracePoint>::try_from(program)?.load(name, &self.btf),
            Hook::Return(name) => <&mut FExit>::try_from(program)?.load(name, &self.btf),
            Hook::Clock { .. } | Hook::PageFaults { .. } => <&mut PerfEvent>::try_from(program)?.load(),
            Hook::Function(_) => <&mut UProbe>::try_from(program)?.load(),
        }
    }

    /// Functions of one file for one program: at once where the kernel can, else one by one.
    fn attach_group(
        &self,
        ebpf: &mut Ebpf,
        probe: &'static str,
        image: &Image,
        group: &[Attach],
        programs: &mut Vec<AttachedProgram>,
    ) -> Result<(), LoadError> {
        if group.len() > 1 {
            match attach_at_once(ebpf, image, group) {
                Ok(program) => {
                    programs.push(program);
                    return Ok(());
                }
                Err(error) => tracing::debug!(%error, probe, "functions are attached one by one"),
            }
        }
        group.iter().try_for_each(|one| self.attach_one(ebpf, probe, one.clone(), programs))
    }

    fn attach_one(
        &self,
        ebpf: &mut Ebpf,
        probe: &'static str,
        attach: Attach,
        programs: &mut Vec<AttachedProgram>,
    ) -> Result<(), LoadError> {
        let program = self.load_one(ebpf, probe, &attach)?;
        let attached = link(program, &attach.hook);
        let links = attached.map_err(|error| refused(&error, |reason| failed(probe, &attach, reason)))?;
        if let Some(known) = programs.iter_mut().find(|known| known.name == attach.program) {
            known.links.extend(links);
            return Ok(());
        }
        let fd = program.fd().and_then(|fd| fd.as_fd().try_clone_to_owned().map_err(ProgramError::IOError));
        let fd = fd.map_err(|error| refused(&error, |reason| failed(probe, &attach, reason)))?;
        programs.push(AttachedProgram { name: attach.program, hook: attach.hook, fd, links });
        Ok(())
    }
}

/// Whether the kernel could take both in one list: functions of one file, for one program and process.
fn are_one_list(one: &Attach, next: &Attach) -> bool {
    let (Hook::Function(first), Hook::Function(second)) = (&one.hook, &next.hook) else { return false };
    one.program == next.program && first.path == second.path && first.pid == second.pid
}

fn attach_at_once(ebpf: &Ebpf, image: &Image, group: &[Attach]) -> io::Result<AttachedProgram> {
    let functions: Vec<&Function> = group
        .iter()
        .filter_map(|one| if let Hook::Function(function) = &one.hook { Some(function) } else { None })
        .collect();
    let first = group.first().ok_or(io::ErrorKind::InvalidInput)?;
    // Before 6.10 a list for a process saw its first thread only (commit 46ba0e49b642).
    let of_process = functions.iter().any(|function| function.pid.is_some());
    if of_process && KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 10, 0)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let at_return = match ebpf.program(first.program) {
        Some(Program::UProbe(program)) => matches!(program.kind(), ProbeKind::Return),
        _ => return Err(io::ErrorKind::NotFound.into()),
    };
    let Multi { program, link } = uprobes::attach_all(ebpf, image, first.program, &functions, at_return)?;
    Ok(AttachedProgram { name: first.program, hook: first.hook.clone(), fd: program, links: vec![Box::new(link)] })
}

fn failed(probe: &'static str, attach: &Attach, reason: String) -> LoadError {
    LoadError::Program { probe, program: attach.program, hook: attach.hook.to_string(), reason }
}

fn link(program: &mut Program, hook: &Hook) -> Result<Vec<Link>, ProgramError> {
    match hook {
        Hook::Tracepoint(_) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            let id = program.attach()?;
            Ok(vec![Box::new(program.take_link(id)?)])
        }
        Hook::Return(_) => {
            let program: &mut FExit = program.try_into()?;
            let id = program.attach()?;
            Ok(vec![Box::new(program.take_link(id)?)])
        }
        Hook::Clock { hertz } => {
            let policy = SamplePolicy::Frequency((*hertz).into());
            link_event(program.try_into()?, SoftwareEvent::CpuClock, policy)
        }
        Hook::PageFaults { major } => {
            let event = if *major { SoftwareEvent::PageFaultsMaj } else { SoftwareEvent::PageFaultsMin };
            link_event(program.try_into()?, event, SamplePolicy::Period(1))
        }
        Hook::Function(function) => link_function(program.try_into()?, function).map(|link| vec![link]),
    }
}

/// A CPU that goes offline meanwhile has its event moved nowhere: its samples end.
fn link_event(program: &mut PerfEvent, event: SoftwareEvent, policy: SamplePolicy) -> Result<Vec<Link>, ProgramError> {
    let cpus = online_cpus().map_err(|(_, error)| ProgramError::IOError(error))?;
    let one = |cpu| -> Result<Link, ProgramError> {
        let scope = PerfEventScope::AllProcessesOneCpu { cpu };
        let id = program.attach(PerfEventConfig::Software(event), scope, policy, false)?;
        Ok(Box::new(program.take_link(id)?))
    };
    cpus.into_iter().map(one).collect()
}

fn link_function(program: &mut UProbe, function: &Function) -> Result<Link, ProgramError> {
    if function.semaphore.is_some() {
        let fd = program.fd()?.as_fd().as_raw_fd();
        let attached = uprobes::attach_with_semaphore(fd, function).map_err(ProgramError::IOError)?;
        return Ok(Box::new(attached));
    }
    let scope = function.pid.and_then(NonZeroU32::new).map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
    let location = UProbeAttachLocation::AbsoluteOffset(function.offset);
    let point = UProbeAttachPoint { location, cookie: function.cookie };
    let id = program.attach(point, &function.path, scope)?;
    Ok(Box::new(program.take_link(id)?))
}

/// [`LoadError::Permission`], if this process may not load eBPF programs. Asked of the kernel, not tried.
pub fn lack_of_privilege() -> Option<LoadError> {
    let process = privilege::process();
    let missing = process.missing_for_native();
    let lack = || LoadError::Permission { missing: missing.join(" and "), remedy: process.grant(&missing) };
    (!missing.is_empty()).then(lack)
}

/// An error with all its causes on one line; lack of privilege becomes [`LoadError::Permission`].
fn refused(error: &(dyn std::error::Error + 'static), otherwise: impl FnOnce(String) -> LoadError) -> LoadError {
    is_permission(error).then(lack_of_privilege).flatten().unwrap_or_else(|| otherwise(chain(error)))
}

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error)
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error() == Some(libc::EPERM)))
}

/// An error and its causes, separated by colons, without repetition, at most 2 KB from the end (the verifier speaks last).
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    const LONGEST: usize = 2048;
    let mut text = String::new();
    for cause in causes(error) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    let start = (text.len().saturating_sub(LONGEST)..=text.len()).find(|index| text.is_char_boundary(*index));
    text.split_off(start.unwrap_or(0))
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}
