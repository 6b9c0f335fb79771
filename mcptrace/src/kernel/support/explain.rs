//! Refusals of the kernel in plain words, with what to do about them. Pure.

use super::{Place, Why, config::Config};
use crate::kernel::privilege::Process;

/// `ENOTSUPP` of the kernel (include/linux/errno.h); it leaks to user space, where no header has it.
const ENOTSUPP: i32 = 524;

/// What is known of this system.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Major and minor of the kernel.
    pub(super) version: (u32, u32),
    pub(super) release: String,
    pub(super) process: Process,
    pub(super) config: Config,
    pub(super) lockdown: String,
    /// Active security modules, where they can be read.
    pub(super) modules: Option<String>,
    pub(super) memlock_bytes: Option<u64>,
    pub(super) tracefs: Place,
    /// Why the kernel's types cannot be used.
    pub(super) no_kernel: Option<String>,
}

/// What a test needs of the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// The kernel version that brought it.
    pub(super) since: (u32, u32),
    /// The options it is built with, without `CONFIG_`.
    pub(super) config: &'static [&'static str],
    /// In words what those options give.
    pub(super) built: &'static str,
    /// Whether it goes through tracefs.
    pub(super) tracefs: bool,
}

/// A refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failure {
    /// The error number, if a system call failed.
    pub(super) errno: Option<i32>,
    /// All that was said.
    pub(super) text: String,
    no_types: bool,
}

impl Failure {
    /// An error with its causes.
    pub(super) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        let errno = causes.find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
        Self { errno, text: crate::kernel::loader::chain(error), no_types: false }
    }

    /// Words; the error number is taken from them where the standard library put it (`… (os error 1)`).
    pub(super) fn said(text: impl Into<String>) -> Self {
        let text = text.into();
        let number = text.rsplit_once("(os error ").and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok());
        Self { errno: number, text, no_types: false }
    }

    /// Whether it is a matter of privilege. The verifier says `EACCES` of programs that it does not like, but gives its
    /// reasons.
    fn is_permission(&self) -> bool {
        // Where it said nothing, the next cause in the chain follows, after a colon.
        let words = self.text.split_once("Verifier output:").map_or("", |(_, words)| words.trim_start());
        let verifier = !words.is_empty() && !words.starts_with(':');
        self.is(&[libc::EPERM, libc::EACCES]) && !verifier
    }

    /// Not permitted.
    pub(super) fn permission() -> Self {
        Self { errno: Some(libc::EPERM), text: "not permitted".to_owned(), no_types: false }
    }

    /// Typed programs without the kernel's types; [`Facts`] knows why there are none.
    pub(super) fn no_types() -> Self {
        Self { no_types: true, ..Self::default() }
    }

    /// Whether the error number is one of these.
    pub(super) fn is(&self, numbers: &[i32]) -> bool {
        self.errno.is_some_and(|errno| numbers.contains(&errno))
    }
}

impl Facts {
    /// Why the kernel refused, and what to do about it.
    pub(super) fn explain(&self, failure: &Failure, needs: &Needs) -> Why {
        self.types(failure)
            .or_else(|| self.permission(failure))
            .or_else(|| self.mount(needs))
            .or_else(|| self.built_without(failure, needs))
            .or_else(|| self.too_old(failure, needs))
            .or_else(|| self.policy(failure))
            .unwrap_or_else(|| Why::new(essence(&failure.text)))
    }

    /// Options that are known to be off.
    fn off(&self, needs: &Needs) -> Vec<String> {
        let off = needs.config.iter().filter(|name| self.config.is_off(name) == Some(true));
        off.map(|name| format!("CONFIG_{name}")).collect()
    }

    fn types(&self, failure: &Failure) -> Option<Why> {
        let reason = || self.no_kernel.clone().unwrap_or_else(|| "the kernel's types cannot be read".to_owned());
        failure
            .no_types
            .then(|| Why::with_remedy(reason(), "use a kernel with CONFIG_DEBUG_INFO_BTF; most distributions' have it"))
    }

    fn permission(&self, failure: &Failure) -> Option<Why> {
        if !failure.is_permission() {
            return None;
        }
        let missing = self.process.missing_for_native();
        if !missing.is_empty() {
            let reason = format!("not permitted: this process lacks {}", missing.join(" and "));
            return Some(Why::with_remedy(reason, self.process.grant(&missing)));
        }
        if self.process.in_user_namespace {
            let reason = "not permitted: in a user namespace capabilities do not reach the kernel's tracing";
            return Some(Why::with_remedy(reason, "run it in the initial user namespace, as root"));
        }
        self.memlock()
    }

    /// Before 5.11 maps and programs count as locked memory, and passing the limit is reported as `EPERM`
    /// (kernel/bpf/syscall.c, `bpf_map_charge_init`).
    fn memlock(&self) -> Option<Why> {
        let limit = self.memlock_bytes.filter(|bytes| self.version < (5, 11) && *bytes < 64 << 20)?;
        let reason = format!(
            "not permitted: before Linux 5.11 eBPF is locked memory, of which this process may have {limit} bytes"
        );
        Some(Why::with_remedy(reason, "ulimit -l unlimited, or LimitMEMLOCK=infinity in a systemd unit"))
    }

    fn mount(&self, needs: &Needs) -> Option<Why> {
        let why =
            || Why { reason: self.tracefs.reason.clone().unwrap_or_default(), remedy: self.tracefs.remedy.clone() };
        (needs.tracefs && !self.tracefs.readable).then(why)
    }

    fn built_without(&self, failure: &Failure, needs: &Needs) -> Option<Why> {
        let off = self.off(needs);
        let gone = failure.is(&[libc::ENOENT, libc::EOPNOTSUPP, ENOTSUPP]) && !needs.built.is_empty();
        let options = match (off.is_empty(), gone, self.config.source.is_some()) {
            (false, _, _) => off.join(", "),
            (true, true, false) => {
                needs.config.iter().map(|name| format!("CONFIG_{name}")).collect::<Vec<_>>().join(", ")
            }
            _ => return None,
        };
        let reason = format!("this kernel is built without {} ({options})", needs.built);
        Some(Why::with_remedy(reason, format!("use a kernel with {options}; most distributions' have it")))
    }

    fn too_old(&self, failure: &Failure, needs: &Needs) -> Option<Why> {
        let refused = failure.is(&[libc::EINVAL, libc::EOPNOTSUPP, libc::E2BIG, ENOTSUPP]) || failure.errno.is_none();
        let (major, minor) = needs.since;
        let reason = || format!("it came with Linux {major}.{minor}; this is {}", self.release);
        (refused && self.version < needs.since)
            .then(|| Why::with_remedy(reason(), format!("use Linux {major}.{minor} or later")))
    }

    fn policy(&self, failure: &Failure) -> Option<Why> {
        if !failure.is_permission() {
            return None;
        }
        let lockdown = match self.lockdown.as_str() {
            "none" => "lockdown is off, so another policy of this kernel does it".to_owned(),
            "unknown" => "whether lockdown does it is unknown".to_owned(),
            state => format!("lockdown is {state}"),
        };
        let reason = format!("refused by this kernel's policy although the capabilities are held ({lockdown})");
        Some(Why::with_remedy(reason, "nothing this process can do: another kernel, or one booted without the policy"))
    }
}

/// The words of an error on one line, the last of them where there are many, without the verifier's book-keeping.
fn essence(text: &str) -> String {
    const MOST: usize = 600;
    let lines = text.lines().map(|line| line.trim_start_matches(':').trim());
    let line = lines.filter(|line| !line.is_empty() && !is_bookkeeping(line)).collect::<Vec<_>>().join("; ");
    let start = (line.len().saturating_sub(MOST)..=line.len()).find(|index| line.is_char_boundary(*index)).unwrap_or(0);
    if start == 0 { line } else { format!("…{}", &line[start..]) }
}

/// Statistics, states of registers (`R0_w=inv R1=ctx`, `regs=4 stack=0`) and where they came from.
fn is_bookkeeping(line: &str) -> bool {
    const STARTS: &[&str] =
        &["verification time", "stack depth", "subprog ", "processed ", "parent ", "last_idx", "from "];
    let state = line.split(' ').next().is_some_and(|word| word.contains('=') || word == ";");
    state || STARTS.iter().any(|start| line.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KPROBE: Needs =
        Needs { since: (4, 17), config: &["KPROBES", "KPROBE_EVENTS"], built: "kprobes", tracefs: false };

    fn facts() -> Facts {
        let process = Process { effective: !0, ..Process::default() };
        Facts { version: (6, 18), release: "6.18.1".into(), lockdown: "integrity".into(), process, ..Facts::default() }
    }

    fn failure(errno: i32) -> Failure {
        Failure { errno: Some(errno), text: "the chain of causes".into(), no_types: false }
    }

    #[test]
    fn a_capability_that_is_lacking_is_named() {
        let facts = Facts { process: Process { effective: 1 << 39, bounding: !0, ..Process::default() }, ..facts() };
        let why = facts.explain(&failure(libc::EPERM), &KPROBE);
        assert_eq!(why.reason, "not permitted: this process lacks CAP_PERFMON");
        assert!(why.remedy.unwrap().contains("cap_perfmon"));
    }

    #[test]
    fn what_the_verifier_refuses_is_not_a_matter_of_privilege() {
        let text = "BPF_PROG_LOAD returned Permission denied (os error 13). Verifier output: R1 invalid mem access";
        assert_eq!(Failure::said(text).errno, Some(libc::EACCES));
        assert_eq!(facts().explain(&Failure::said(text), &Needs::default()), Why::new(text));
        let silent = "the BPF_PROG_LOAD syscall returned Operation not permitted (os error 1). Verifier output: ";
        for silent in [silent.to_owned(), format!("{silent}: Operation not permitted (os error 1)")] {
            assert!(facts().explain(&Failure::said(silent), &Needs::default()).reason.contains("policy"));
        }
    }

    #[test]
    fn the_verifiers_words_are_told_without_its_book_keeping() {
        let text = "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22). Verifier output: Attaching fexit to \
            __noreturn function 'do_exit' is rejected.\nverification time 678 usec\nprocessed 0 insns (limit 1000000)\n: \
            Invalid argument (os error 22)";
        let told = essence(text);
        assert!(told.contains("function 'do_exit' is rejected.; Invalid argument") && !told.contains("678"), "{told}");
        let refused = "R0_r=map_value(id=0) R1_rw=map_value\nregs=4 stack=0 before 575: (67) r2 <<= 3\n; \n\
            577: (79) r2 = *(u64 *)(r0 +0)\nR0 invalid mem access 'inv'\nstack depth 160+0";
        assert_eq!(essence(refused), "577: (79) r2 = *(u64 *)(r0 +0); R0 invalid mem access 'inv'");
        let long = format!("{}\nunknown func bpf_x#1", "1: (bf) r1 = r2 é\n".repeat(500));
        assert!(essence(&long).ends_with("unknown func bpf_x#1") && essence(&long).len() < 610);
    }

    #[test]
    fn a_policy_is_blamed_only_when_the_capabilities_are_held() {
        let why = facts().explain(&failure(libc::EPERM), &KPROBE);
        assert!(why.reason.contains("policy although the capabilities are held (lockdown is integrity)"), "{why:?}");
    }

    #[test]
    fn a_missing_event_source_is_a_kernel_built_without_it() {
        let why = facts().explain(&failure(libc::ENOENT), &KPROBE);
        assert_eq!(why.reason, "this kernel is built without kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)");
        assert!(why.remedy.is_some());
    }

    #[test]
    fn a_kernel_before_the_feature_says_so() {
        let needs = Needs { since: (6, 6), ..Needs::default() };
        let facts = Facts { version: (5, 10), release: "5.10.0".into(), ..facts() };
        let why = facts.explain(&failure(libc::EINVAL), &needs);
        assert_eq!(why.reason, "it came with Linux 6.6; this is 5.10.0");
        assert_eq!(why.remedy.unwrap(), "use Linux 6.6 or later");
    }

    #[test]
    fn little_locked_memory_is_the_reason_on_old_kernels_only() {
        let facts = Facts { memlock_bytes: Some(65536), ..facts() };
        assert!(facts.explain(&failure(libc::EPERM), &KPROBE).reason.contains("policy"));
        let facts = Facts { version: (5, 10), ..facts };
        assert!(facts.explain(&failure(libc::EPERM), &KPROBE).reason.contains("65536 bytes"));
    }

    #[test]
    fn capabilities_in_a_user_namespace_do_not_count() {
        let process = Process { effective: !0, in_user_namespace: true, ..Process::default() };
        let why = Facts { process, ..facts() }.explain(&failure(libc::EPERM), &KPROBE);
        assert!(why.reason.contains("user namespace"), "{why:?}");
    }

    #[test]
    fn what_is_not_understood_is_passed_on_as_it_is() {
        assert_eq!(facts().explain(&failure(libc::EBUSY), &KPROBE), Why::new("the chain of causes"));
    }

    #[test]
    fn an_unmounted_tracefs_is_the_reason_for_what_needs_it() {
        let needs = Needs { tracefs: true, ..KPROBE };
        let tracefs = Place { reason: Some("not mounted".into()), remedy: Some("mount it".into()), ..Place::default() };
        let why = Facts { tracefs, ..facts() }.explain(&failure(libc::ENOENT), &needs);
        assert_eq!(why, Why::with_remedy("not mounted", "mount it"));
    }
}
