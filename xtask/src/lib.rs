//! What `cargo xtask` and the tests share: the manifest of the eBPF objects, what an object must be, and clients of others.

pub mod clients;
pub mod elf;
pub mod manifest;

use std::path::{Path, PathBuf};

/// The root of the workspace that this crate was compiled in.
pub fn workspace_root() -> PathBuf {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir).to_owned()
}
