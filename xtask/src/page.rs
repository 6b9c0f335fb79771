//! Pages of docs/ of which a part is written by a command: what stands between two lines.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A page, split around the part that is written.
#[derive(Debug)]
pub(crate) struct Page {
    path: PathBuf,
    before: String,
    /// What was written the last time.
    pub(crate) written: String,
    after: String,
}

impl Page {
    /// Reads a page that has both lines.
    pub(crate) fn read(path: &Path, begin: &str, end: &str) -> Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| name.to_string())?;
        let (before, rest) = text.split_once(begin).with_context(|| format!("{name} lacks the line {begin:?}"))?;
        let (written, after) = rest.split_once(end).with_context(|| format!("{name} lacks the line {end:?}"))?;
        Ok(Self {
            path: path.to_owned(),
            before: format!("{before}{begin}"),
            written: written.to_owned(),
            after: format!("{end}{after}"),
        })
    }

    /// Puts a new text between the lines.
    pub(crate) fn write(self, text: &str) -> Result<()> {
        let Self { path, before, after, .. } = self;
        fs::write(&path, format!("{before}\n{text}\n{after}")).with_context(|| path.display().to_string())?;
        println!("xtask: wrote {}", path.display());
        Ok(())
    }
}
