//! What mcptrace finds out about the running kernel, compared with what is so. Needs root, and fails without.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use libbpf_rs::query::ProgInfoIter;
use mcptrace::kernel::support::{Check, Info, Options, info, text};
use mcptrace_tests::{
    lacks::{How, lacks},
    probing::kernel_version,
};
use serde_json::Value;
use tempfile::TempDir;

/// Programs are looked for on the whole host, so only one test has some at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn found() -> &'static Info {
    static FOUND: OnceLock<Info> = OnceLock::new();
    FOUND.get_or_init(|| {
        // A fresh machine has tracefs unmounted; that it is mounted already is as good.
        let _ = Command::new("mount").args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]).output();
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        info(&Options::default())
    })
}

fn check<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn attach(name: &str) -> &'static Check {
    check(&found().attach_types, name)
}

/// An option of the running kernel, read independently; `None` where it does not tell.
fn option(name: &str) -> Option<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let script = format!("zcat /proc/config.gz 2>/dev/null || cat /boot/config-{}", release.trim());
    let config = Command::new("sh").args(["-c", &script]).output().unwrap();
    let config = String::from_utf8(config.stdout).unwrap();
    (!config.is_empty()).then(|| config.lines().any(|line| line == format!("CONFIG_{name}=y")))
}

/// Runs `support_info` by way of a shell, whose last words it is.
fn elsewhere(before: &str) -> (Output, Duration) {
    let (_folder, program) = program();
    let program = program.display();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let started = Instant::now();
    let output = Command::new("sh").args(["-c", &format!("{before} {program} json")]).output().unwrap();
    (output, started.elapsed())
}

/// A copy of `support_info` where every user can reach it.
fn program() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("support_info");
    fs::copy(env!("CARGO_BIN_EXE_support_info"), &program).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    (folder, program)
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn of<'a>(found: &'a Value, list: &str, name: &str) -> &'a Value {
    found[list].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap()
}

#[test]
fn the_ways_that_every_supported_kernel_has_work() {
    for name in ["tp_btf", "raw_tp", "tracepoint", "perf_event", "uprobe", "uretprobe", "iter"] {
        assert_eq!(attach(name).works, Some(true), "{:?}", attach(name));
    }
    for name in
        ["ringbuf", "perf_event_array", "array", "percpu_array", "hash", "percpu_hash", "lru_hash", "stack_trace"]
    {
        assert_eq!(check(&found().map_types, name).works, Some(true), "{name}");
    }
}

#[test]
fn kprobes_work_exactly_where_the_kernel_has_them() {
    let has = fs::exists("/sys/bus/event_source/devices/kprobe").unwrap();
    for name in ["kprobe", "kretprobe"] {
        assert_eq!(attach(name).works, Some(has), "{:?}", attach(name));
        if !has {
            let reason = attach(name).reason.as_ref().unwrap();
            assert!(reason.contains("built without kprobes") && reason.contains("CONFIG_KPROBES"), "{reason}");
            assert!(attach(name).remedy.as_ref().unwrap().contains("CONFIG_KPROBES"));
        }
    }
    if option("FPROBE") == Some(false) {
        assert!(attach("kprobe_multi").reason.as_ref().unwrap().contains("CONFIG_FPROBE"));
    }
}

/// Those that attach to many places at once came last.
#[test]
fn newer_ways_work_from_their_kernel_on() {
    let fprobe = option("FPROBE") == Some(true);
    for (name, has) in [("kprobe_multi", fprobe), ("uprobe_multi", kernel_version() >= (6, 6))] {
        assert_eq!(attach(name).works, Some(has), "{:?}", attach(name));
    }
}

/// bpftrace lists functions only where they can be traced; here it is the kernel's own file that tells.
#[test]
fn fentry_is_refused_in_plain_words_where_a_policy_forbids_it() {
    let check = attach("fentry");
    let forbidden = fs::read("/sys/kernel/tracing/available_filter_functions").is_err();
    assert_eq!(check.works, Some(!forbidden), "{check:?}");
    if forbidden {
        let reason = check.reason.as_ref().unwrap();
        assert!(reason.starts_with("refused by this kernel's policy although the capabilities are held"), "{reason}");
        assert!(check.remedy.is_some());
    }
}

#[test]
fn native_probes_are_available_where_the_kernel_lacks_nothing_for_them() {
    let probes = &found().probes;
    assert_eq!(probes.len(), mcptrace::probes::PROBES.len());
    for probe in probes {
        let lack = lacks(&probe.name).into_iter().find(|lack| lack.how == How::NotAtAll);
        assert_eq!(probe.available, lack.is_none(), "{probe:?}");
        if let Some(lack) = lack {
            assert!(probe.reason.as_ref().unwrap().contains(lack.says), "{probe:?}");
        }
        let reads_only = probe.name == "bpf_programs";
        assert!(probe.hooks.is_empty() == reads_only && probe.cost_ns > 0.0, "{probe:?}");
        assert!(
            probe
                .hooks
                .iter()
                .all(|hook| ["tp_btf/", "perf_event/", "uprobe/"].iter().any(|way| hook.starts_with(way)))
        );
    }
    assert!(found().native_works());
}

/// The probes' own programs call these, and this kernel takes them.
#[test]
fn helpers_that_loaded_programs_call_are_found() {
    for name in ["ktime_get_ns", "ringbuf_output", "perf_event_output", "get_current_task", "probe_read_user_str"] {
        assert_eq!(check(&found().helpers, name).works, Some(true), "{name}");
    }
}

#[test]
fn facts_are_those_of_the_system() {
    let info = found();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(info.kernel, release.trim());
    assert_eq!(info.btf.size_bytes, fs::metadata("/sys/kernel/btf/vmlinux").unwrap().len());
    let online = Command::new("nproc").arg("--all").output().unwrap();
    assert!(info.cpus.possible >= info.cpus.online);
    assert!(info.cpus.possible >= String::from_utf8_lossy(&online.stdout).trim().parse().unwrap());
    if let Some(uprobes) = option("UPROBE_EVENTS") {
        assert_eq!(info.config["CONFIG_UPROBE_EVENTS"] == "y", uprobes);
    }
    assert!(info.process.missing_for_native().is_empty());
}

#[test]
fn bpftrace_is_described_in_its_own_words() {
    let bpftrace = found().bpftrace.as_ref().unwrap();
    assert!(bpftrace.works, "{:?}", bpftrace.reason);
    let version = Command::new("bpftrace").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    assert!(version.contains(bpftrace.version.as_ref().unwrap()), "{version}");
    assert!(bpftrace.info.contains("Probe types"));
    assert!(bpftrace.features.iter().any(|one| one.section == "Map types" && one.name == "hash" && one.value == "yes"));
}

/// Repeated, so that what is remembered and what is tried again are both covered.
#[test]
fn nothing_stays_attached_or_loaded() {
    found();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..3 {
        info(&Options { bpftrace: false, ..Options::default() });
    }
    assert_eq!(held_open(), [] as [String; 0], "a program lives as long as something of it is open");
    // The kernel frees what is closed a moment later.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !loaded().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(loaded(), [] as [String; 0]);
}

/// What this process has open of eBPF.
fn held_open() -> Vec<String> {
    let files = fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    let names = files.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.contains("bpf") || name.contains("perf_event")).collect()
}

/// The empty programs, which nothing else on this host has.
fn loaded() -> Vec<String> {
    let names = ProgInfoIter::default().map(|program| program.name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("empty_") || name == "support").collect()
}

#[test]
fn without_privilege_it_names_what_is_lacking_and_how_to_get_it() {
    let (output, took) = elsewhere("exec setpriv --reuid 65534 --clear-groups --inh-caps=-all --bounding-set=-all");
    let found = json(&output);
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(found["native_works"], false);
    assert_eq!(found["process"]["uid"], 65534);
    let capabilities = found["process"]["capabilities"].as_array().unwrap();
    assert!(capabilities.iter().all(|one| one["held"] == false), "{capabilities:?}");
    let first = &found["problems"][0];
    assert_eq!(first["blocking"], true);
    assert!(first["what"].as_str().unwrap().contains("lacks CAP_BPF and CAP_PERFMON"), "{first}");
    assert!(first["remedy"].as_str().unwrap().contains("cap_bpf,cap_perfmon"), "{first}");
    let reason = of(&found, "attach_types", "tp_btf")["reason"].as_str().unwrap();
    assert_eq!(reason, "not permitted: this process lacks CAP_BPF and CAP_PERFMON");
    assert!(of(&found, "helpers", "ktime_get_ns").get("works").is_none(), "not tested is not the same as missing");
}

/// The remedy for a user who may get capabilities is the command that works, with the path of the program.
#[test]
fn the_command_that_is_named_works() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (_folder, program) = program();
    let run = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all"]).arg(&program).arg("json");
        json(&command.output().unwrap())
    };
    let found = run();
    assert_eq!(found["native_works"], false);
    let remedy = found["problems"][0]["remedy"].as_str().unwrap().to_owned();
    let command = remedy.strip_prefix("sudo ").unwrap().split(" (or").next().unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    let found = run();
    assert_eq!(found["native_works"], true, "{}", found["problems"]);
    assert_eq!(of(&found, "attach_types", "tp_btf")["works"], true);
}

#[test]
fn without_btf_it_says_so_and_what_works_without_still_does() {
    let found =
        json(&elsewhere("exec unshare -m sh -c 'mount --bind /dev/null /sys/kernel/btf/vmlinux && exec \"$@\"' sh").0);
    assert_eq!(found["native_works"], false);
    assert_eq!(found["btf"]["present"], false);
    assert_eq!(found["problems"].as_array().unwrap().iter().filter(|one| one["blocking"] == true).count(), 1);
    assert!(found["problems"][0]["remedy"].as_str().unwrap().contains("CONFIG_DEBUG_INFO_BTF"));
    assert_eq!(of(&found, "attach_types", "raw_tp")["works"], true);
    assert_eq!(of(&found, "attach_types", "tp_btf")["works"], false);
}

#[test]
fn without_tracefs_native_probes_run_and_the_mount_command_is_told() {
    let found = json(&elsewhere("exec unshare -m sh -c 'umount -a -t debugfs,tracefs; exec \"$@\"' sh").0);
    assert_eq!(found["native_works"], true);
    let check = of(&found, "attach_types", "tracepoint");
    assert_eq!(check["works"], false);
    assert!(check["remedy"].as_str().unwrap().contains("mount -t tracefs tracefs /sys/kernel/tracing"), "{check}");
}

#[test]
fn without_proc_and_sys_it_ends_with_an_answer() {
    let found = json(&elsewhere("exec unshare -m sh -c 'umount -l /sys; umount -l /proc; exec \"$@\"' sh").0);
    assert_eq!(found["native_works"], false);
    let held = found["process"]["capabilities"].as_array().unwrap().iter().filter(|one| one["held"] == true).count();
    assert!(held >= 5, "capabilities are known without /proc: {}", found["process"]);
}

#[test]
fn namespaces_that_matter_are_told() {
    let found = json(&elsewhere("exec unshare -U -r").0);
    assert_eq!((&found["process"]["in_user_namespace"], &found["native_works"]), (&true.into(), &false.into()));
    assert!(found["problems"][0]["what"].as_str().unwrap().contains("user namespace"));
    let found = json(&elsewhere("exec unshare -p -f").0);
    assert_eq!((&found["process"]["in_pid_namespace"], &found["native_works"]), (&true.into(), &true.into()));
    let told = found["problems"].as_array().unwrap().iter().any(|one| one["what"].as_str().unwrap().contains("host's"));
    assert!(told, "{}", found["problems"]);
}

#[test]
fn the_text_is_short_and_bounded() {
    let whole = text(found(), 1 << 20);
    let lacking = found().probes.iter().any(|probe| !probe.available);
    let all = format!("mcptrace {}: all native probes run here\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(whole.starts_with(&all), !lacking, "{whole}");
    assert!(whole.len() < 7000, "{}", whole.len());
    for most in [200, 1000, 3000] {
        assert!(text(found(), most).len() <= most);
    }
}
