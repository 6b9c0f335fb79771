//! `file_io`, `fs_sync` and `page_cache` on the real kernel and disk. Needs root; without, it fails.
#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use mcptrace::report::{Envelope, Row};
use mcptrace_tests::{
    probing::{around, assert_no_loss, events, of_pid, one_series, rows, series},
    workload,
    workload::{Workload, hex},
};
use serde_json::json;

/// A folder on a disk, removed when dropped. `/tmp` may be in memory.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("files_{name}_{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(fs::canonicalize(path).unwrap())
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn number(row: &Row, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("{field}: {row:?}"))
}

/// The row of a file and operation.
fn of<'a>(envelope: &'a Envelope, path: &str, operation: &str) -> &'a Row {
    let found = rows(envelope).iter().find(|row| row["path"] == path && row["operation"] == operation);
    found.unwrap_or_else(|| panic!("no {operation} of {path}: {:?}", rows(envelope)))
}

/// A number that the kernel keeps of a process (Documentation/filesystems/proc.rst, 3.3).
fn io(workload: &Workload, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", workload.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn reads_and_writes_of_a_file_are_there_to_the_byte() {
    let (mut workload, folder) = (workload!(), Folder::new("bytes"));
    let path = folder.file("data");
    let before = (io(&workload, "wchar"), io(&workload, "rchar"));
    let envelope = around("file_io", &json!({"by": "pid"}), &of_pid(workload.pid()), || {
        workload.run(&format!("file_write {} 97 1009", hex(&path)));
        workload.run(&format!("file_read {} 89 503", hex(&path)));
        workload.run(&format!("file_fail_reads {} 7", hex(&path)));
    });
    assert_no_loss(&envelope);
    assert_eq!(rows(&envelope).len(), 2, "{:?}", rows(&envelope));
    for (operation, calls, bytes, errors) in [("write", 97, 97 * 1009, 0), ("read", 96, 89 * 503, 7)] {
        let row = of(&envelope, &path, operation);
        assert_eq!((number(row, "calls"), number(row, "bytes"), number(row, "errors")), (calls, bytes, errors));
        assert_eq!(
            (&row["path_from"], &row["pid"], &row["comm"]),
            (&json!("dentry"), &json!(workload.pid()), &json!("workload"))
        );
        assert!(number(row, "p50_ns") > 0 && number(row, "p50_ns") <= number(row, "max_ns"), "{row:?}");
    }
    assert!(io(&workload, "wchar") - before.0 >= 97 * 1009);
    assert!(io(&workload, "rchar") - before.1 >= 89 * 503);
}

#[test]
fn a_file_without_a_path_says_what_it_is() {
    let (mut workload, folder) = (workload!(), Folder::new("names"));
    let deep = (0..40).fold(folder.0.clone(), |path, level| path.join(format!("d{level}")));
    fs::create_dir_all(&deep).unwrap();
    let deep = deep.join("deep").to_str().unwrap().to_owned();
    let gone = folder.file("gone");
    let envelope = around("file_io", &json!({}), &of_pid(workload.pid()), || {
        workload.run(&format!("file_write {} 3 10", hex(&deep)));
        workload.run(&format!("file_write_deleted {} 5 10", hex(&gone)));
        workload.run("file_write_nameless 7 10");
    });
    assert_no_loss(&envelope);
    assert_eq!(number(of(&envelope, &format!("{gone} (deleted)"), "write"), "calls"), 5);
    assert_eq!(number(of(&envelope, "memfd:nameless", "write"), "calls"), 7);
    let cut = rows(&envelope).iter().find(|row| row["path_from"] == "dentry_partial").unwrap();
    let shown = cut["path"].as_str().unwrap().strip_prefix("…/").unwrap();
    assert!(deep.ends_with(shown) && shown.len() > 60, "{shown}");
    assert_eq!(number(cut, "calls"), 3);
}

#[test]
fn a_mounted_file_system_is_part_of_the_path() {
    let mut workload = workload!();
    // Another file system than the root's: shared memory.
    let path = format!("/dev/shm/mcptrace_files_{}", std::process::id());
    let envelope = around("file_io", &json!({"by": "comm"}), &of_pid(workload.pid()), || {
        drop(workload.run(&format!("file_write {} 11 100", hex(&path))));
    });
    fs::remove_file(&path).unwrap();
    assert_no_loss(&envelope);
    assert_eq!(number(of(&envelope, &path, "write"), "bytes"), 1100);
}

#[test]
fn distributions_count_what_the_table_does() {
    let (mut workload, folder) = (workload!(), Folder::new("distribution"));
    let path = folder.file("data");
    let envelope = around("file_io", &json!({"histogram": true}), &of_pid(workload.pid()), || {
        drop(workload.run(&format!("file_write {} 97 1009", hex(&path))));
    });
    assert_no_loss(&envelope);
    let one = one_series(&envelope, "path", path.as_str());
    assert_eq!((one.count, &one.also["bytes"], &one.also["errors"]), (97, &json!(97 * 1009), &json!(0)));
}

#[test]
fn every_call_that_makes_data_durable_is_counted_and_named() {
    let calls = [("fsync", 23), ("fdatasync", 19), ("sync_file_range", 17), ("syncfs", 3), ("msync", 13), ("sync", 2)];
    for transport in ["ring", "perf"] {
        let (mut workload, folder) = (workload!(), Folder::new("sync"));
        let path = folder.file("durable");
        let envelope = around("fs_sync", &json!({"transport": transport}), &of_pid(workload.pid()), || {
            for (call, times) in calls {
                assert_eq!(workload.run(&format!("file_sync {} {call} {times}", hex(&path))), [0]);
            }
        });
        assert_no_loss(&envelope);
        assert_eq!(series(&envelope).len(), calls.len());
        assert_eq!(events(&envelope).len(), 77);
        for (call, times) in calls {
            let one = one_series(&envelope, "call", call);
            assert_eq!((one.count, &one.also["errors"]), (times, &json!(0)), "{call}");
            let rows: Vec<_> = events(&envelope).iter().filter(|row| row["call"] == call).collect();
            assert_eq!(rows.len() as u64, times);
            let named = !matches!(call, "sync" | "msync");
            for row in rows {
                assert_eq!(row.get("path").cloned(), named.then(|| json!(path)), "{row:?}");
                assert_eq!((&row["pid"], row.get("errno")), (&json!(workload.pid()), None));
                assert!((one.min..=one.max).contains(&number(row, "latency_ns")));
            }
        }
    }
}

#[test]
fn a_sync_that_fails_says_why_and_is_all_that_failed_only_shows() {
    let (mut workload, folder) = (workload!(), Folder::new("bad"));
    let path = folder.file("durable");
    let envelope = around("fs_sync", &json!({"failed_only": true}), &of_pid(workload.pid()), || {
        workload.run(&format!("file_sync {} fsync 5", hex(&path)));
        workload.run(&format!("file_sync {} bad 7", hex(&path)));
    });
    assert_no_loss(&envelope);
    assert_eq!(events(&envelope).len(), 7);
    assert!(events(&envelope).iter().all(|row| row["errno"] == "EBADF" && row.get("path").is_none()));
    assert_eq!(one_series(&envelope, "call", "fsync").also["errors"], 7);
}

/// The row of a process.
fn cache(workload: &mut Workload, command: &str) -> Row {
    let envelope = around("page_cache", &json!({"by": "pid"}), &of_pid(workload.pid()), || drop(workload.run(command)));
    assert_no_loss(&envelope);
    let [row] = rows(&envelope) else { panic!("{:?}", rows(&envelope)) };
    assert_eq!((&row["pid"], &row["comm"]), (&json!(workload.pid()), &json!("workload")));
    row.clone()
}

#[test]
fn cold_pages_miss_warm_pages_hit_and_new_pages_are_dirty() {
    let (mut workload, folder) = (workload!(), Folder::new("cache"));
    let path = hex(folder.file("pages"));
    let written = cache(&mut workload, &format!("file_write {path} 97 4096"));
    assert_eq!((number(&written, "dirtied_pages"), number(&written, "added_pages")), (97, 97));
    assert_eq!((number(&written, "read_pages"), written.get("hit_percent")), (0, None));

    workload.run(&format!("file_forget {path}"));
    let before = io(&workload, "read_bytes");
    let cold = cache(&mut workload, &format!("file_read_random {path} 97 4096"));
    assert_eq!(io(&workload, "read_bytes") - before, 97 * 4096, "the kernel's own count of what came from the disk");
    assert_eq!((number(&cold, "read_pages"), number(&cold, "read_missed_pages")), (97, 97));
    assert_eq!((number(&cold, "added_pages"), &cold["hit_percent"]), (97, &json!(0.0)));

    let warm = cache(&mut workload, &format!("file_read {path} 97 4096"));
    assert_eq!((number(&warm, "read_pages"), number(&warm, "read_missed_pages")), (97, 0));
    assert_eq!((number(&warm, "added_pages"), &warm["hit_percent"]), (0, &json!(100.0)));
    assert_eq!(number(&warm, "dirtied_pages"), 0);
}

#[test]
fn one_large_read_asks_for_each_page_once_and_for_none_behind_the_end() {
    let (mut workload, folder) = (workload!(), Folder::new("large"));
    let path = hex(folder.file("pages"));
    workload.run(&format!("file_write {path} 997 4096"));
    let warm = cache(&mut workload, &format!("file_read {path} 1 {}", 997 * 4096));
    assert_eq!((number(&warm, "read_pages"), number(&warm, "read_missed_pages")), (997, 0));
    workload.run(&format!("file_forget {path}"));
    let cold = cache(&mut workload, &format!("file_read {path} 1 {}", 997 * 4096));
    assert_eq!((number(&cold, "read_pages"), number(&cold, "added_pages")), (997, 997));
    let missed = number(&cold, "read_missed_pages");
    assert!(missed > 0 && missed <= 997, "{missed}");
}

#[test]
fn hits_by_read_ahead_are_said_to_be_so() {
    let (mut workload, folder) = (workload!(), Folder::new("ahead"));
    let path = hex(folder.file("pages"));
    workload.run(&format!("file_write {path} 997 4096"));
    let read = format!("file_read {path} 997 4096");
    let notes = |workload: &mut Workload| {
        let run = around("page_cache", &json!({"by": "pid"}), &of_pid(workload.pid()), || drop(workload.run(&read)));
        run.notes.into_iter().filter(|note| note.contains("read-ahead brought in")).count()
    };
    assert_eq!(notes(&mut workload), 0, "all in memory");
    workload.run(&format!("file_forget {path}"));
    assert_eq!(notes(&mut workload), 1, "none in memory");
}

#[test]
fn what_a_write_brings_in_is_no_miss_of_a_read() {
    let (mut workload, folder) = (workload!(), Folder::new("mixed"));
    let path = hex(folder.file("pages"));
    let envelope = around("page_cache", &json!({}), &of_pid(workload.pid()), || {
        workload.run(&format!("file_write {path} 89 4096"));
        workload.run(&format!("file_read {path} 89 4096"));
    });
    let [row] = rows(&envelope) else { panic!("{:?}", rows(&envelope)) };
    assert_eq!((number(row, "read_pages"), number(row, "read_missed_pages")), (89, 0));
}

#[test]
fn faults_on_a_cold_mapping_miss() {
    let (mut workload, folder) = (workload!(), Folder::new("mapped"));
    let path = hex(folder.file("pages"));
    workload.run(&format!("file_write {path} 200 4096"));
    workload.run(&format!("file_touch {path} 1"));
    workload.run(&format!("file_forget {path}"));
    let row = cache(&mut workload, &format!("file_touch {path} 83"));
    // The program's own pages may have to be mapped as well, but are in memory.
    assert!(number(&row, "faults") >= 83, "{row:?}");
    assert_eq!((number(&row, "fault_misses"), number(&row, "added_pages")), (83, 83));
    assert_eq!(number(&row, "read_missed_pages"), 0);
}
