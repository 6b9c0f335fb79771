//! Ways to attach, with programs that do nothing, on the real kernel. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::time::{Duration, Instant};

use aya_obj::btf::BtfKind;
use mcptrace::kernel::{
    cost,
    hook::{Attach, Function, Hook},
    image::Image,
    loader::{AttachedProgram, Kernel, LoadError},
};
use mcptrace_tests::{probing::kernel_version, workload};

const EMPTY: &[u8] = aya::include_bytes_aligned!("../../mcptrace/bpf/attach_types.o");

fn attach(hooks: &[Attach]) -> Result<Vec<AttachedProgram>, LoadError> {
    let image = Image::new(EMPTY).unwrap();
    let (_, programs) = Kernel::get().unwrap().attach("attach_types", &image, hooks)?;
    Ok(programs)
}

/// Runs of the one program of some hooks while something happens, and that it does not run any more once it is detached.
fn runs(hooks: &[Attach], mut happens: impl FnMut()) -> u64 {
    let _counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    let mut programs = attach(hooks).unwrap();
    assert_eq!(programs.len(), 1, "{programs:?}");
    let program = &mut programs[0];
    let runs = |program: &AttachedProgram| cost::info(program.raw_fd()).unwrap().runs;
    happens();
    // The last call may not have returned.
    std::thread::sleep(Duration::from_millis(20));
    let before = runs(program);
    program.detach();
    std::thread::sleep(Duration::from_millis(20));
    let detached = runs(program);
    happens();
    assert_eq!(runs(program), detached, "it runs although it is detached");
    before
}

#[test]
fn the_clock_samples_every_cpu_at_its_frequency() {
    let started = Instant::now();
    let runs = runs(&[Attach::clock("empty_perf_event", 97)], || std::thread::sleep(Duration::from_secs(1)));
    let cpus = aya::util::online_cpus().unwrap().len() as f64;
    // A CPU that idles all the time may give no samples.
    let rate = runs as f64 / cpus;
    assert!((80.0 / cpus..150.0).contains(&rate), "{rate} samples a second and CPU, {:?}", started.elapsed());
}

#[test]
fn functions_of_a_process_run_a_program_once_a_call() {
    let mut workload = workload!();
    for program in ["empty_uprobe", "empty_uretprobe"] {
        let function = Function::find("libc", "write", Some(workload.pid())).unwrap();
        assert_eq!(function.label, "libc:write");
        let hooks = [Attach::function(program, function)];
        // Not of that process, so it must not count.
        std::fs::write("/dev/null", "x").unwrap();
        // The answer is the one write of a command.
        let runs = runs(&hooks, || (0..23).for_each(|_| assert!(workload.run("comm hooked").is_empty())));
        assert_eq!(runs, 23, "{program}");
    }
}

#[test]
fn a_program_may_have_several_functions() {
    let pid = std::process::id();
    let [first, second] = ["getpid", "getppid"].map(|symbol| Function::find("libc", symbol, Some(pid)).unwrap());
    // Kernels before 5.15 take no cookie.
    let cookie = Function { cookie: (kernel_version() >= (5, 15)).then_some(7), ..second };
    let hooks = [Attach::function("empty_uprobe", first), Attach::function("empty_uprobe", cookie)];
    let mine = || {
        for _ in 0..17 {
            // SAFETY: the calls only give numbers.
            unsafe { libc::getppid() };
        }
    };
    let runs = runs(&hooks, mine);
    assert!(runs >= 17, "{runs}");
}

#[test]
fn what_is_optional_may_lack_and_what_is_required_is_named() {
    let lacks = Attach::tracepoint("empty_tp_btf", "no_such_tracepoint");
    let programs = attach(&[lacks.clone().optional(), Attach::clock("empty_perf_event", 1)]).unwrap();
    assert_eq!(programs.iter().map(|program| program.name).collect::<Vec<_>>(), ["empty_perf_event"]);
    let error = attach(std::slice::from_ref(&lacks)).unwrap_err().to_string();
    assert!(error.contains("it has no BTF tracepoint `no_such_tracepoint`"), "{error}");
    let instead = Attach::tracepoint("empty_tp_btf", "sched_switch").alternative();
    let programs = attach(&[lacks, instead]).unwrap();
    assert_eq!(programs[0].hook, Hook::Tracepoint("sched_switch"));
}

#[test]
fn a_function_that_is_not_there_is_named() {
    let pid = Some(std::process::id());
    for (file, symbol, words) in [
        ("libc", "no_such_function", "`libc` has no function `no_such_function`"),
        ("libnone", "malloc", "has mapped no file `libnone`"),
        ("/no/such/file", "main", "cannot open"),
    ] {
        let error = Function::find(file, symbol, pid).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// The loader keeps a part of the kernel's types only; each number in it must be the one of the whole.
#[test]
fn the_loaders_numbers_are_those_of_the_kernel() {
    let whole = aya::Btf::from_sys_fs().unwrap();
    let part = Kernel::get().unwrap().btf();
    let number = |types: &aya::Btf, name: &str, kind| types.id_by_type_name_kind(name, kind).ok();
    for (name, kind) in [
        ("btf_trace_sched_switch", BtfKind::Typedef),
        ("btf_trace_sys_enter", BtfKind::Typedef),
        ("btf_trace_block_rq_complete", BtfKind::Typedef),
        ("bpf_iter_task", BtfKind::Func),
        ("cap_capable", BtfKind::Func),
    ] {
        assert!(number(&whole, name, kind).is_some(), "{name}");
        assert_eq!(number(part, name, kind), number(&whole, name, kind), "{name}");
    }
    assert_eq!(number(part, "vfs_read", BtfKind::Func), None, "what no program attaches to is left out");
}
