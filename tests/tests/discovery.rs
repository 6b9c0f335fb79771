//! Discovery against the running kernel and real binaries. Needs root, tracefs, BTF, bpftrace, bpftool, cc, binutils and
//! `sys/sdt.h` (Debian: bpftrace bpftool gcc binutils systemtap-sdt-dev); what is missing fails a test.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use mcptrace::kernel::btf::{BtfError, KernelBtf};
use mcptrace::kernel::discovery::{Access, DiscoveryError, KernelProbe, MAX_LIMIT, Page, Query, describe, list};
use mcptrace::kernel::tracefs::{self, MOUNT_COMMAND, Tracefs, TracefsError};

const ACCESS: Access = Access { allow_mount: true, fentry_works: None };

/// A program with functions, a static one too, and USDT probes without semaphores.
const SHOP: &str = r"
#include <sys/sdt.h>
static __attribute__((noinline)) int halve(int n) { DTRACE_PROBE1(shop, halved, n); return n / 2; }
__attribute__((noinline)) long serve(long customer, int items) {
    DTRACE_PROBE2(shop, served, customer, items);
    DTRACE_PROBE(shop, closed);
    return customer + halve(items);
}
int main(int argc, char **argv) {
    (void)argv;
    DTRACE_PROBE2(shop, served, (long)argc, argc);
    return (int)serve(argc, argc) & 1;
}
";

/// A program whose probe has a semaphore.
const SHOP_WITH_SEMAPHORE: &str = r#"
#define _SDT_HAS_SEMAPHORES 1
__extension__ unsigned short shop_opened_semaphore __attribute__((unused, section(".probes")));
#include <sys/sdt.h>
int main(int argc, char **argv) { (void)argv; DTRACE_PROBE1(shop, opened, argc); return 0; }
"#;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn compile(directory: &Path, source: &str, flags: &[&str]) -> PathBuf {
    let (input, output) = (directory.join("shop.c"), directory.join("shop"));
    fs::write(&input, source).unwrap();
    let mut arguments = vec!["-O1", "-o", output.to_str().unwrap(), input.to_str().unwrap()];
    arguments.extend(flags);
    run("cc", &arguments);
    output
}

fn first_page(filter: &str) -> Result<Page, DiscoveryError> {
    list(&Query { filter: Some(filter), limit: MAX_LIMIT, cursor: None }, ACCESS)
}

fn page(filter: &str) -> Page {
    first_page(filter).unwrap_or_else(|error| panic!("{filter:?}: {error}"))
}

fn all(filter: Option<&str>, limit: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut cursor = None;
    loop {
        let page = list(&Query { filter, limit, cursor: cursor.as_deref() }, ACCESS).unwrap();
        assert!(page.names.len() <= limit);
        names.extend(page.names);
        cursor = page.next;
        if cursor.is_none() {
            assert_eq!(names.len() as u64, page.total);
            return names;
        }
    }
}

/// The original's own example of a filter.
#[test]
fn a_filter_without_probe_type_finds_what_bpftrace_finds_with_it() {
    let short = page("syscalls:*read*").names;
    let bpftrace = run("bpftrace", &["-l", "tracepoint:syscalls:*read*"]);
    let bpftrace: Vec<&str> = bpftrace.lines().collect();
    assert!(bpftrace.contains(&"tracepoint:syscalls:sys_enter_read"), "{bpftrace:?}");
    assert_eq!(short, bpftrace);
    assert_eq!(short, page("tracepoint:syscalls:*read*").names);
    assert_eq!(short, page("t:syscalls:*read*").names);
}

#[test]
fn every_tracepoint_is_listed() {
    let at = tracefs::ensure(true).unwrap();
    let events = fs::read_to_string(at.join("available_events")).unwrap();
    let start = Instant::now();
    let page = page("tracepoint:*");
    println!("{} tracepoints in {:?}", page.total, start.elapsed());
    assert_eq!(page.total, events.lines().count() as u64);
    let expected: BTreeSet<String> = events.lines().map(|line| format!("tracepoint:{line}")).collect();
    let listed = all(Some("tracepoint:*"), 333);
    assert_eq!(listed.len(), expected.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn paging_walks_everything_exactly_once() {
    let start = Instant::now();
    let first = list(&Query::default(), ACCESS).unwrap();
    println!("first of {} names in {:?}", first.total, start.elapsed());
    assert_eq!(first.names.len(), 100);
    let names = all(None, MAX_LIMIT);
    assert_eq!(names.len() as u64, first.total);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    assert_eq!(names[..100], first.names);
    for family in ["tracepoint:", "rawtracepoint:", "kfunc:vmlinux:", "software:", "profile:", "interval:"] {
        let of_all = names.iter().filter(|name| name.starts_with(family)).count();
        assert!(of_all > 0, "{family}");
        assert_eq!(page(&format!("{family}*")).total, of_all as u64, "{family}");
    }
    let functions: BTreeSet<&str> = names.iter().filter_map(|name| name.strip_prefix("kfunc:vmlinux:")).collect();
    assert_eq!(functions, functions_of(&run("bpftool", &["btf", "dump", "file", "/sys/kernel/btf/vmlinux"])));
}

/// The functions in what `bpftool btf dump` prints.
fn functions_of(dump: &str) -> BTreeSet<&str> {
    dump.lines().filter(|line| line.contains("] FUNC '")).filter_map(|line| line.split('\'').nth(1)).collect()
}

#[test]
fn a_function_is_found_by_each_of_its_names() {
    for filter in ["kfunc:vfs_read", "kfunc:vmlinux:vfs_read", "fentry:vmlinux:vfs_read", "vmlinux:vfs_read"] {
        assert_eq!(page(filter).names, ["kfunc:vmlinux:vfs_read"], "{filter}");
    }
}

#[test]
fn what_this_kernel_lacks_is_said() {
    let at = tracefs::ensure(true).unwrap();
    let kprobes = page("kprobe:*");
    if at.join("kprobe_events").exists() {
        assert!(kprobes.total > 1000);
    } else {
        assert_eq!(kprobes.total, 0);
        assert!(kprobes.notes[0].contains("CONFIG_KPROBE_EVENTS"), "{:?}", kprobes.notes);
    }
    let refusing = Access { fentry_works: Some(false), ..ACCESS };
    let refused = list(&Query { filter: Some("kfunc:vfs_*"), ..Query::default() }, refusing).unwrap();
    assert!(refused.total > 0 && refused.notes[0].contains("refuses fentry"), "{:?}", refused.notes);
    assert!(page("uprobe:*").notes[0].contains("binary:/path"));
}

#[test]
fn a_filter_is_only_a_pattern() {
    for filter in ["--version", "-e BEGIN{exit()}", "\0", "$(id)", "; id", "tracepoint:a/../b:*", "[", "%s%n"] {
        let page = page(filter);
        assert_eq!((page.names.len(), page.total), (0, 0), "{filter:?}");
        assert!(page.notes.iter().any(|note| note.contains("nothing matches")), "{filter:?}: {:?}", page.notes);
    }
}

#[test]
fn what_matches_nothing_names_what_is_near() {
    for (filter, near) in [
        ("sycalls:*read*", "tracepoint:syscalls:*"),
        ("tracepoint:sycalls:*read*", "tracepoint:syscalls:*"),
        ("tracepoint:sched:sched_swich", "tracepoint:sched:sched_switch"),
        ("kfunc:vfs_raed", "kfunc:vmlinux:vfs_read"),
        ("sched_swich", "tracepoint:sched:sched_switch"),
    ] {
        let notes = page(filter).notes;
        assert!(notes.iter().any(|note| note.contains(near)), "{filter}: {notes:?}");
    }
}

#[test]
fn a_cursor_is_checked() {
    let cursor = list(&Query::default(), ACCESS).unwrap().next.unwrap();
    let with = |filter, cursor| list(&Query { filter, limit: 10, cursor: Some(cursor) }, ACCESS);
    assert_eq!(with(None, "mine"), Err(DiscoveryError::BadCursor));
    assert_eq!(with(Some("sched:*"), &cursor), Err(DiscoveryError::ForeignCursor));
    let spoilt = format!("{}{:016x}", &cursor[..8], 7);
    assert_eq!(with(None, &spoilt), Err(DiscoveryError::StaleCursor));
}

#[test]
fn a_tracepoint_is_described_by_its_format() {
    let probe = describe("tracepoint:syscalls:sys_enter_openat", ACCESS).unwrap();
    let field = |at: usize| {
        let field = &probe.arguments[at];
        (field.name.as_str(), field.type_name.as_str(), field.offset.unwrap(), field.size.unwrap())
    };
    assert_eq!(probe.arguments.len(), 5);
    assert_eq!(field(0), ("__syscall_nr", "int", 8, 4));
    assert_eq!(field(1), ("dfd", "int", 16, 8));
    assert_eq!(field(2), ("filename", "const char *", 24, 8));
    assert_eq!(field(3), ("flags", "int", 32, 8));
    assert_eq!(field(4), ("mode", "umode_t", 40, 8));
    assert!(probe.format.as_ref().unwrap().contains("dfd: 0x%08lx"));
    assert_eq!(describe("syscalls:sys_enter_openat", ACCESS).unwrap(), probe);
}

#[test]
fn every_tracepoint_can_be_described() {
    for name in all(Some("tracepoint:*"), MAX_LIMIT) {
        // Events of ftrace itself (`ftrace:*`) have fields and no more; all have at least one but for a handful.
        let probe = describe(&name, ACCESS).unwrap_or_else(|error| panic!("{name}: {error}"));
        let odd = probe.arguments.iter().find(|each| each.type_name.is_empty() || each.offset.is_none());
        assert_eq!(odd, None, "{name}");
    }
}

#[test]
fn a_raw_tracepoint_has_the_kernels_own_prototype() {
    let probe = describe("rawtracepoint:sched_switch", ACCESS).unwrap();
    let arguments: Vec<_> = probe.arguments.iter().map(|each| (each.name.as_str(), each.type_name.as_str())).collect();
    let task = "struct task_struct *";
    let mut expected = vec![("preempt", "bool"), ("prev", task), ("next", task)];
    // fa2c3254d7cf added it in 5.18.
    expected.extend((kernel_release() >= (5, 18)).then_some(("prev_state", "unsigned int")));
    assert_eq!(arguments, expected);
    let btf = KernelBtf::load().unwrap();
    for name in btf.tracepoints() {
        let parameters = btf.tracepoint(name).unwrap();
        assert!(parameters.iter().all(|each| !each.type_name.is_empty() && each.name != "__data"), "{name}");
    }
}

fn kernel_release() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_function_has_parameters_and_a_result() {
    let probe = describe("kfunc:vfs_read", ACCESS).unwrap();
    assert_eq!(probe.name, "kfunc:vmlinux:vfs_read");
    let arguments: Vec<_> = probe.arguments.iter().map(|each| (each.name.as_str(), each.type_name.as_str())).collect();
    assert_eq!(arguments, [("file", "struct file *"), ("buf", "char *"), ("count", "size_t"), ("pos", "loff_t *")]);
    assert_eq!(probe.returns.as_deref(), Some("ssize_t"));
}

#[test]
fn what_does_not_exist_gets_a_suggestion() {
    let near = |name| match describe(name, ACCESS) {
        Err(DiscoveryError::Unknown { did_you_mean, .. }) => did_you_mean,
        other => panic!("{name}: {other:?}"),
    };
    assert!(near("tracepoint:sched:sched_swich").contains(&"tracepoint:sched:sched_switch".into()));
    assert!(near("rawtracepoint:sched_swich").contains(&"rawtracepoint:sched_switch".into()));
    assert!(near("kfunc:vmlinux:vfs_raed").contains(&"kfunc:vmlinux:vfs_read".into()));
    assert!(near("software:cpu-clok").contains(&"software:cpu-clock:".into()));
    for hostile in ["tracepoint:../../proc:self", "tracepoint:a/b:c", "tracepoint:sched:..", "tracepoint:\0:\0", "x:y"]
    {
        near(hostile);
    }
    assert!(matches!(describe("sched_switch", ACCESS), Err(DiscoveryError::Unnamed(_))));
}

/// The truth is what bpftool's dumper writes as C, compiled by the C compiler: `offsetof` of every member asked for.
#[test]
fn offsets_are_those_of_the_c_compiler() {
    const MEMBERS: [(&str, &str); 12] = [
        ("task_struct", "pid"),
        ("task_struct", "tgid"),
        ("task_struct", "comm"),
        ("task_struct", "se.vruntime"),
        ("task_struct", "thread_info.flags"),
        ("task_struct", "real_parent"),
        ("task_struct", "start_time"),
        ("sk_buff", "dev"),
        ("sk_buff", "sk"),
        ("request", "__data_len"),
        ("sock", "__sk_common.skc_dport"),
        ("file", "f_inode"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let header = run("bpftool", &["btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "c"]);
    fs::write(directory.path().join("vmlinux.h"), header).unwrap();
    let line = |(structure, member): &(&str, &str)| {
        let offset = format!("(int)__builtin_offsetof(struct {structure}, {member})");
        let size = format!("(int)sizeof(((struct {structure} *)0)->{member})");
        format!("  __builtin_printf(\"%d %d\\n\", {offset}, {size});\n")
    };
    let body: String = MEMBERS.iter().map(line).collect();
    let source = format!("#include \"vmlinux.h\"\nint main(void) {{\n{body}  return 0;\n}}\n");
    let program = compile(directory.path(), &source, &["-w", "-std=gnu11"]);
    let btf = KernelBtf::load().unwrap();
    let members = MEMBERS.iter().map(|(structure, member)| btf.member(structure, member).unwrap());
    let found: Vec<String> = members.map(|member| format!("{} {}", member.offset, member.size)).collect();
    let expected = run(program.to_str().unwrap(), &[]);
    assert_eq!(found, expected.lines().collect::<Vec<_>>());
}

#[test]
fn types_read_as_c_writes_them() {
    let btf = KernelBtf::load().unwrap();
    let member = |structure, path| btf.member(structure, path).unwrap().type_name;
    assert_eq!(member("task_struct", "comm"), "char[16]");
    assert_eq!(member("task_struct", "cpus_ptr"), "const cpumask_t *");
    assert_eq!(member("work_struct", "func"), "work_func_t");
    assert_eq!(member("file_operations", "flush"), "int (*)(struct file *, fl_owner_t)");
}

#[test]
fn what_the_kernels_types_lack_is_named() {
    let btf = KernelBtf::load().unwrap();
    assert!(btf.has_struct("task_struct") && !btf.has_struct("no_such"));
    assert_eq!(btf.offset("no_such", "a"), Err(BtfError::NoStruct("no_such".into())));
    let error = btf.offset("task_struct", "se.no_such").unwrap_err();
    assert_eq!(error.to_string(), "this kernel's struct `task_struct` has no member `se.no_such`");
    assert!(matches!(btf.offset("task_struct", "mm.pgd"), Err(BtfError::NotAStruct { .. })));
    assert!(matches!(btf.offset("task_struct", "in_execve"), Err(BtfError::BitField { .. })));
    assert_eq!(btf.tracepoint("no_such"), Err(BtfError::NoTracepoint("no_such".into())));
    assert_eq!(btf.function("no_such"), Err(BtfError::NoFunction("no_such".into())));
}

#[test]
fn a_compiled_program_shows_its_functions_and_probes() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), SHOP, &[]);
    let path = program.to_str().unwrap();
    let names = page(&format!("binary:{path}")).names;
    for name in ["uprobe:P:main", "uprobe:P:serve", "uprobe:P:halve", "usdt:P:shop:served", "usdt:P:shop:closed"] {
        let name = name.replace('P', path);
        assert_eq!(names.iter().filter(|each| **each == name).count(), 1, "{name} in {names:?}");
    }
    let (serve, served) = (format!("uprobe:{path}:serve"), format!("usdt:{path}:shop:served"));
    assert_eq!(page(&format!("binary:{path}:ser*")).names, [serve.clone(), served]);
    assert_eq!(page(&format!("uprobe:{path}:ser*")).names, [serve]);
    assert_eq!(page(&format!("usdt:{path}:shop:h*")).names, [format!("usdt:{path}:shop:halved")]);
    assert!(page(&format!("binary:{path}:nothing")).notes[0].contains("nothing matches"));
}

#[test]
fn symbols_lie_where_readelf_and_objdump_say() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), SHOP, &[]);
    let path = program.to_str().unwrap();
    let place = describe(&format!("uprobe:{path}:serve"), ACCESS).unwrap().places[0].clone();
    let symbols = run("readelf", &["-sW", path]);
    let line = symbols.lines().find(|line| line.ends_with(" serve")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(place.address, u64::from_str_radix(fields[1], 16).unwrap());
    assert_eq!(place.size, Some(fields[2].parse().unwrap()));
    let code = run("objdump", &["-d", "-F", "--disassemble=serve", path]);
    let offset = format!("<serve> (File Offset: {:#x}):", place.offset.unwrap());
    assert!(code.contains(&offset), "{offset} in {code}");
}

#[test]
fn usdt_arguments_are_decoded() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), SHOP, &[]);
    let path = program.to_str().unwrap();
    let probe = describe(&format!("usdt:{path}:shop:served"), ACCESS).unwrap();
    let shape: Vec<_> = probe.arguments.iter().map(|each| (each.size.unwrap(), each.signed.unwrap())).collect();
    assert_eq!(shape, [(8, true), (4, true)]);
    assert!(probe.arguments.iter().all(|each| !each.operand.as_ref().unwrap().is_empty()));
    assert!(probe.notes.iter().any(|note| note.contains("no semaphore")), "{:?}", probe.notes);
    assert_eq!(probe.places.iter().map(|place| place.address).collect::<Vec<_>>(), readelf_places(path, &probe));
    assert_eq!(probe.places.len(), 2);
    assert_eq!(describe(&format!("usdt:{path}:shop:closed"), ACCESS).unwrap().arguments, []);
    let near = describe(&format!("usdt:{path}:shop:servd"), ACCESS).unwrap_err().to_string();
    assert!(near.contains(":shop:served"), "{near}");
}

/// The addresses that `readelf -n` shows for a USDT probe.
fn readelf_places(path: &str, probe: &KernelProbe) -> Vec<u64> {
    let name = format!("Name: {}", probe.name.rsplit(':').next().unwrap());
    let notes = run("readelf", &["-nW", path]);
    let lines: Vec<&str> = notes.lines().map(str::trim).collect();
    let locations =
        lines.windows(2).filter(|pair| pair[0] == name).map(|pair| pair[1].split([' ', ',']).nth(1).unwrap());
    let mut addresses: Vec<u64> =
        locations.map(|at| u64::from_str_radix(at.trim_start_matches("0x"), 16).unwrap()).collect();
    addresses.sort_unstable();
    addresses
}

#[test]
fn a_semaphore_is_found_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), SHOP_WITH_SEMAPHORE, &[]);
    let probe = describe(&format!("usdt:{}:shop:opened", program.display()), ACCESS).unwrap();
    assert!(probe.places[0].semaphore_offset.is_some_and(|at| at > 0), "{probe:?}");
    assert!(probe.notes[0].contains("has a semaphore"), "{:?}", probe.notes);
}

#[test]
fn a_library_is_found_by_its_short_name() {
    let names = page("usdt:libstdc++").names;
    let probes: Vec<&str> = names.iter().map(|name| name.rsplit(':').next().unwrap()).collect();
    assert_eq!(probes, ["catch", "rethrow", "throw"]);
    let path = names[2].split(':').nth(1).unwrap();
    let throw = describe(&names[2], ACCESS).unwrap();
    assert_eq!(throw.places.iter().map(|place| place.address).collect::<Vec<_>>(), readelf_places(path, &throw));
    assert_eq!(page("uprobe:libc:malloc").total, 1);
}

#[test]
fn a_stripped_program_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "int main(void) { return 0; }", &["-static", "-s"]);
    let page = page(&format!("uprobe:{}", program.display()));
    assert_eq!(page.total, 0);
    assert!(page.notes[0].contains("stripped"), "{:?}", page.notes);
}

#[test]
fn what_is_no_binary_gets_a_clear_error() {
    let error = |filter: &str| first_page(filter).unwrap_err().to_string();
    assert!(error("binary:/no/such").contains("No such file"));
    assert!(error("binary:/proc").contains("not a regular file"));
    assert!(error("binary:/dev/null").contains("not a regular file"));
    assert!(error("binary:/etc/passwd").contains("ELF"));
    assert!(error("binary:no-such-library").contains("usual directories"));
    assert!(error("binary:").contains("give its full path"));
    assert!(error("binary:/a\0b").contains("cannot open"));
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    run("mkfifo", &[pipe.to_str().unwrap()]);
    assert!(error(&format!("binary:{}", pipe.display())).contains("not a regular file"));
}

/// Spoils headers, notes and symbol tables byte by byte: whatever comes out, it must come out.
#[test]
fn a_spoilt_program_neither_panics_nor_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), SHOP, &[]);
    let image = fs::read(&program).unwrap();
    let spoilt = directory.path().join("spoilt");
    let filter = format!("binary:{}", spoilt.display());
    let mut listed = 0;
    for at in (0..image.len()).filter(|at| *at < 1024 || (*at > 0x3000 && at % 5 == 0)) {
        let mut copy = image.clone();
        copy[at] ^= 0xff;
        fs::write(&spoilt, copy).unwrap();
        listed += usize::from(first_page(&filter).is_ok());
    }
    assert!(listed > 100, "most spoilt bytes leave something to list: {listed}");
}

/// Runs in a mount namespace that ends with its thread and has no tracefs.
fn without_tracefs(inside: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: the flag asks for nothing but a private mount namespace for this thread.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare needs root");
        let none = std::ptr::null();
        // SAFETY: a change of propagation takes the target only.
        let private = unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) };
        assert_eq!(private, 0);
        for at in [c"/sys/kernel/debug/tracing", c"/sys/kernel/tracing", c"/sys/kernel/debug"] {
            // SAFETY: the path ends with a NUL. It ends with an error when nothing is mounted there any more.
            while unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) } == 0 {}
        }
        inside();
    });
    thread.join().unwrap();
}

#[test]
fn an_unmounted_tracefs_is_said_and_mounted_when_allowed() {
    without_tracefs(|| {
        let closed = Access::default();
        let query = Query { filter: Some("syscalls:*read*"), ..Query::default() };
        assert_eq!(tracefs::state(), Tracefs::NotMounted);
        assert_eq!(tracefs::ensure(false), Err(TracefsError::NotMounted));
        let page = list(&query, closed).unwrap();
        assert_eq!(page.total, 0);
        assert!(page.notes[0].contains(MOUNT_COMMAND), "{:?}", page.notes);
        let error = describe("tracepoint:sched:sched_switch", closed).unwrap_err();
        assert!(error.to_string().contains(MOUNT_COMMAND));
        // What needs only BTF still works.
        assert!(describe("rawtracepoint:sched_switch", closed).is_ok());

        assert!(list(&query, ACCESS).unwrap().total > 10);
        assert_eq!(tracefs::state(), Tracefs::MountedAt("/sys/kernel/tracing".into()));
    });
}

#[test]
fn a_tracefs_mounted_elsewhere_is_found() {
    without_tracefs(|| {
        let directory = tempfile::Builder::new().prefix("trace fs ").tempdir().unwrap();
        let target = CString::new(directory.path().to_str().unwrap()).unwrap();
        let kind = c"tracefs".as_ptr();
        // SAFETY: all strings end with a NUL and outlive the call.
        assert_eq!(unsafe { libc::mount(kind, target.as_ptr(), kind, 0, std::ptr::null()) }, 0);
        let state = tracefs::state();
        // SAFETY: as above.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        assert_eq!(state, Tracefs::MountedAt(directory.path().into()));
    });
}
