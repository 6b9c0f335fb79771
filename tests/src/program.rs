//! The program itself, built as the tests are.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The binary `mcptrace`, built once in each test process: cargo builds a package's own binaries for its tests, and this one belongs
/// to another.
///
/// # Panics
///
/// If it cannot be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let own = env::current_exe().expect("a test knows its own file");
        let folder = own.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
        let release = folder.ends_with("release");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--package", "mcptrace", "--bin", "mcptrace"]);
        cargo.args(release.then_some("--release"));
        let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo starts");
        assert!(status.success(), "mcptrace does not build");
        folder.join("mcptrace")
    })
}
