//! Whose configuration it is.

use std::{
    env,
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::Failure;

/// Who calls, and where their files are.
pub(super) struct Person {
    pub(super) home: PathBuf,
    variable: fn(&str) -> Option<OsString>,
}

impl std::fmt::Debug for Person {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Person").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Person {
    /// Who has called, behind sudo too: then this process becomes them, for good. Root would follow links of theirs anywhere, and what
    /// it makes would not be theirs.
    pub(super) fn become_caller() -> Result<Self, Failure> {
        let behind_sudo = env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
        match behind_sudo {
            Some(uid) if uid != 0 && rustix::process::geteuid().is_root() => {
                let account = Account::of(uid).ok_or_else(|| {
                    Failure::failed(format!(
                        "sudo was called by user {uid}, who has no account here; run this without sudo"
                    ))
                })?;
                account.become_them()?;
                // sudo may have kept variables, and they are those of somebody's session; its own HOME is root's.
                Ok(Self { home: account.home, variable: |_| None })
            }
            _ => {
                let home = env::home_dir().filter(|home| home.is_absolute());
                let home = home.ok_or_else(|| Failure::failed("there is no HOME; set it to your folder"))?;
                Ok(Self { home, variable: |name| env::var_os(name) })
            }
        }
    }

    /// The folder that a variable names, or one below the home.
    pub(super) fn folder(&self, variable: &str, below_home: &str) -> PathBuf {
        let named = (self.variable)(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        named.unwrap_or_else(|| self.home.join(below_home))
    }

    #[cfg(test)]
    pub(super) fn with_home(home: &str, variable: fn(&str) -> Option<OsString>) -> Self {
        Self { home: home.into(), variable }
    }
}

/// An account of the system.
#[derive(Debug)]
struct Account {
    uid: libc::uid_t,
    gid: libc::gid_t,
    name: CString,
    home: PathBuf,
}

impl Account {
    /// From wherever the system has its accounts, as a directory of an organisation too.
    fn of(uid: libc::uid_t) -> Option<Self> {
        let mut buffer = vec![0; 16 << 10];
        // SAFETY: all fields are numbers and pointers, which may be zero.
        let mut found: libc::passwd = unsafe { std::mem::zeroed() };
        let mut result = std::ptr::null_mut();
        // SAFETY: the buffer is as long as is said, and outlives what is made to point into it.
        let error =
            unsafe { libc::getpwuid_r(uid, &raw mut found, buffer.as_mut_ptr(), buffer.len(), &raw mut result) };
        if error != 0 || result.is_null() {
            return None;
        }
        // SAFETY: the call has succeeded, so both are terminated strings in the buffer.
        let (name, home) = unsafe { (CStr::from_ptr(found.pw_name), CStr::from_ptr(found.pw_dir)) };
        let home = Path::new(OsStr::from_bytes(home.to_bytes())).to_owned();
        Some(Self { uid, gid: found.pw_gid, name: name.to_owned(), home })
    }

    /// Groups first: without the right to change users one cannot change them.
    fn become_them(&self) -> io::Result<()> {
        // SAFETY: the name is terminated; the rest are numbers. There is one thread, and glibc would tell all of them.
        let done = unsafe {
            libc::initgroups(self.name.as_ptr(), self.gid) == 0
                && libc::setresgid(self.gid, self.gid, self.gid) == 0
                && libc::setresuid(self.uid, self.uid, self.uid) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_number() {
        let root = Account::of(0).unwrap();
        assert_eq!((root.name.as_c_str(), root.home.as_path()), (c"root", Path::new("/root")));
        assert!(Account::of(3_999_999_999).is_none());
    }

    #[test]
    fn only_whole_paths_move_files() {
        let person = Person::with_home("/home/kim", |_| Some("relative".into()));
        assert_eq!(person.folder("CODEX_HOME", ".codex"), Path::new("/home/kim/.codex"));
    }
}
