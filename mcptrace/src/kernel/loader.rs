//! The one loader of the server: the kernel's types and features, read at the first native call and kept.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    programs::{BtfTracePoint, Program, ProgramFd, links::FdLink},
};

use super::{
    btf::{BtfError, KernelBtf},
    image::{Image, ImageError},
    layout::Layout,
};

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
    #[error("the kernel refused program `{program}` of `{probe}` at `tp_btf/{hook}`: {reason}")]
    Program {
        /// The probe.
        probe: &'static str,
        /// The program in the object.
        program: &'static str,
        /// The tracepoint.
        hook: &'static str,
        /// The chain of causes, with the verifier's last words.
        reason: String,
    },
    /// Not allowed to.
    #[error(
        "not permitted to load eBPF programs: this process lacks {missing}. Run as root, or give the binary the capabilities: \
         sudo setcap cap_bpf,cap_perfmon+ep {binary}"
    )]
    Permission {
        /// The capabilities that it lacks.
        missing: String,
        /// The path of this program.
        binary: String,
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

/// A program of an object and the BTF tracepoint that it attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The function in the object.
    pub program: &'static str,
    /// The tracepoint.
    pub tracepoint: &'static str,
}

impl Attach {
    /// A program at a BTF tracepoint.
    pub const fn tracepoint(program: &'static str, tracepoint: &'static str) -> Self {
        Self { program, tracepoint }
    }
}

/// A program that is attached; detaches when dropped.
#[derive(Debug)]
pub struct AttachedProgram {
    /// The function in the object.
    pub name: &'static str,
    /// The tracepoint.
    pub tracepoint: &'static str,
    fd: ProgramFd,
    link: Option<FdLink>,
}

impl AttachedProgram {
    /// Detaches; what the program has counted stays readable.
    pub fn detach(&mut self) {
        self.link = None;
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
        let layout = Layout::read(&KernelBtf::load()?, &crate::probes::tracepoints());
        let btf = Btf::from_sys_fs().map_err(LoadError::ParseBtf)?;
        // The objects carry no CO-RE relocations, so the loader needs no types of its own.
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        release_free_memory();
        Ok(Self { btf, loader: Mutex::new(loader), layout })
    }

    /// Loads an object and attaches its programs, in the order given. All or nothing.
    pub fn attach(
        &self,
        probe: &'static str,
        image: &Image,
        attach: &[Attach],
    ) -> Result<(Ebpf, Vec<AttachedProgram>), LoadError> {
        let loaded = self.load(image.bytes());
        let mut ebpf = loaded.map_err(|error| refused(&error, |reason| LoadError::Object { probe, reason }))?;
        let programs = attach.iter().map(|one| self.attach_one(&mut ebpf, probe, *one)).collect::<Result<_, _>>()?;
        Ok((ebpf, programs))
    }

    /// Loads an object and nothing else: its maps exist, its programs are not loaded yet.
    pub fn load(&self, object: &[u8]) -> Result<Ebpf, EbpfError> {
        self.loader.lock().unwrap_or_else(PoisonError::into_inner).load(object)
    }

    /// Loads an object and its programs without attaching them: whether this kernel takes them.
    pub fn check(&self, probe: &'static str, image: &Image, attach: &[Attach]) -> Result<(), LoadError> {
        let loaded = self.load(image.bytes());
        let mut ebpf = loaded.map_err(|error| refused(&error, |reason| LoadError::Object { probe, reason }))?;
        attach.iter().try_for_each(|one| self.load_one(&mut ebpf, probe, *one).map(drop))
    }

    /// Attaches a program that does nothing.
    pub fn attach_empty(&self, tracepoint: &'static str) -> Result<AttachedProgram, LoadError> {
        let image = Image::new(ATTACH_TYPES)?;
        let (_, programs) = self.attach("attach_types", &image, &[Attach { program: "empty_tp_btf", tracepoint }])?;
        programs.into_iter().next().ok_or(LoadError::Btf(BtfError::Missing))
    }

    /// The kernel's types as aya has them, for programs that are loaded one by one.
    pub fn btf(&self) -> &Btf {
        &self.btf
    }

    fn load_one<'a>(
        &self,
        ebpf: &'a mut Ebpf,
        probe: &'static str,
        attach: Attach,
    ) -> Result<&'a mut BtfTracePoint, LoadError> {
        let Attach { program, tracepoint } = attach;
        let failed = |reason| LoadError::Program { probe, program, hook: tracepoint, reason };
        let handle: &mut BtfTracePoint = ebpf
            .program_mut(program)
            .ok_or_else(|| failed("the object has no such program".to_owned()))
            .and_then(|found: &mut Program| found.try_into().map_err(|error| refused(&error, failed)))?;
        handle.load(tracepoint, &self.btf).map_err(|error| refused(&error, failed))?;
        Ok(handle)
    }

    fn attach_one(&self, ebpf: &mut Ebpf, probe: &'static str, attach: Attach) -> Result<AttachedProgram, LoadError> {
        let Attach { program, tracepoint } = attach;
        let failed = |reason| LoadError::Program { probe, program, hook: tracepoint, reason };
        let handle = self.load_one(ebpf, probe, attach)?;
        let id = handle.attach().map_err(|error| refused(&error, failed))?;
        let link: FdLink = handle.take_link(id).map_err(|error| refused(&error, failed))?.into();
        let fd = handle.fd().and_then(ProgramFd::try_clone_fd).map_err(|error| refused(&error, failed))?;
        Ok(AttachedProgram { name: program, tracepoint, fd, link: Some(link) })
    }
}

/// aya's `ProgramFd::try_clone` under a name that composes.
trait TryCloneFd {
    fn try_clone_fd(&self) -> Result<ProgramFd, aya::programs::ProgramError>;
}

impl TryCloneFd for ProgramFd {
    fn try_clone_fd(&self) -> Result<ProgramFd, aya::programs::ProgramError> {
        self.try_clone().map_err(Into::into)
    }
}

/// An error with all its causes on one line; lack of privilege becomes [`LoadError::Permission`].
fn refused(error: &(dyn std::error::Error + 'static), otherwise: impl FnOnce(String) -> LoadError) -> LoadError {
    let missing = super::privilege::missing_for_native();
    if !missing.is_empty() && is_permission(error) {
        let binary = std::env::current_exe().map_or_else(|_| "mcptrace".to_owned(), |path| path.display().to_string());
        return LoadError::Permission { missing: missing.join(" and "), binary };
    }
    otherwise(chain(error))
}

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.raw_os_error() == Some(libc::EPERM))
    })
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

/// Gives freed memory back to the system: parsing the kernel's types frees some 20 MB at once, which glibc would keep.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only touches the allocator's own state.
    unsafe {
        libc::malloc_trim(0);
    }
}
