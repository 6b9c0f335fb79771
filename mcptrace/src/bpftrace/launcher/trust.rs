//! Which programs are started with the launcher's privileges: those that only root can have put where they are.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::bpftrace::{child, error::ScriptError, look_up};

/// The command as it is to be run: its program with links resolved.
pub(super) fn resolve(command: &[String], boxed: bool) -> Result<Vec<String>, ScriptError> {
    let usual = ["bpftrace".to_owned()];
    let words = if command.is_empty() { &usual[..] } else { command };
    let found = look_up(&words[0], child::variable("PATH"))?;
    let program = if boxed { trusted(&found).map_err(|why| distrust(&found, &why))? } else { found };
    let mut words = words.to_vec();
    words[0] = program.into_os_string().into_string().map_err(|name| not_text(&name))?;
    Ok(words)
}

fn distrust(program: &Path, why: &io::Error) -> ScriptError {
    let message = format!("{} is not run with privileges: {why}", program.display());
    ScriptError::new(super::Category::Permission, message)
        .with_remedy("install bpftrace where only root may write, such as /usr/bin")
}

fn not_text(name: &OsString) -> ScriptError {
    ScriptError::new(super::Category::Permission, format!("{} is no text", name.display()))
}

/// The program, if it and all folders above it belong to root and only root may put others in their place.
fn trusted(program: &Path) -> io::Result<PathBuf> {
    let program = fs::canonicalize(program)?;
    for path in program.ancestors() {
        let status = fs::metadata(path)?;
        let sticky = status.is_dir() && status.mode() & libc::S_ISVTX != 0;
        if status.uid() != 0 || (status.mode() & 0o022 != 0 && !sticky) {
            return Err(io::Error::other(format!("others than root may write {}", path.display())));
        }
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_others_could_have_put_there_is_not_run() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let (inside, program, link) =
            (folder.path().join("bin"), folder.path().join("bin/bpftrace"), folder.path().join("link"));
        fs::create_dir(&inside).unwrap();
        fs::write(&program, "").unwrap();
        symlink(&program, &link).unwrap();
        mode(&program, 0o755);
        assert_eq!(trusted(&link).unwrap(), program.canonicalize().unwrap());
        mode(&inside, 0o777);
        assert!(trusted(&link).unwrap_err().to_string().contains("/bin"), "others may replace it");
        mode(&inside, 0o755);
        mode(&program, 0o775);
        assert!(trusted(&program).is_err(), "its group may write it");
        mode(&program, 0o755);
        std::os::unix::fs::chown(&program, Some(65_534), None).unwrap();
        assert!(trusted(&program).is_err(), "it belongs to another");
    }
}
