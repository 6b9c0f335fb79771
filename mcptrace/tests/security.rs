//! SECURITY.md names the test of each promise; they must exist.

use std::{fs, path::Path};

#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("SECURITY.md")).expect("SECURITY.md");
    let rows: Vec<Vec<&str>> =
        page.lines().filter(|line| line.starts_with("| ") && line.contains(".rs`")).map(cells).collect();
    assert!(rows.len() > 20, "{rows:?}");
    for row in rows {
        let [_, file, test] = row.as_slice() else { panic!("three columns: {row:?}") };
        let source = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {test}(")), "{file} has no {test}");
    }
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()
}
