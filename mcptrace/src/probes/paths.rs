//! Paths of files as the kernel programs find them. Pure.

use mcptrace_wire::{FileId, WALK_COMPLETE, WALK_DELETED, WALK_DETACHED, Walk};

use crate::{report::Row, text::untrusted};

/// The offsets that a file, its path and the name of who uses it are found by.
pub const FILES: &[&str] = &[
    "TASK_COMM",
    "TASK_FILES",
    "FILES_TABLE",
    "TABLE_FILES",
    "TABLE_LENGTH",
    "FILE_INODE",
    "FILE_DENTRY",
    "FILE_MOUNT",
    "INODE_MODE",
    "INODE_NUMBER",
    "INODE_SUPER",
    "SUPER_DEVICE",
    "DENTRY_PARENT",
    "DENTRY_NAME",
    "DENTRY_HASHED",
    "VFSMOUNT_ROOT",
    "MOUNT_VFSMOUNT",
    "MOUNT_PARENT",
    "MOUNT_POINT",
];

/// The longest path that is shown, in bytes.
const MOST: usize = 1024;

/// Fills in the path of a file and where it is from: `dentry` for the kernel's own tree of names, `dentry_partial` where the walk ended before
/// the root, `inode` where there was no room for a path.
pub fn insert(row: &mut Row, file: FileId, walk: Option<&Walk>) {
    let found = walk.and_then(|walk| of_names(walk.names.get(..walk.len as usize)?, walk.flags));
    let (path, from) = found.unwrap_or_else(|| (by_number(file), "inode"));
    row.insert("path".into(), path.into());
    row.insert("path_from".into(), from.into());
}

/// The path out of names from the file up, each ended by a NUL, and where it is from.
pub fn of_names(names: &[u8], flags: u32) -> Option<(String, &'static str)> {
    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.reverse();
    if names.is_empty() && flags & WALK_COMPLETE == 0 {
        return None;
    }
    let (start, from) = match flags & (WALK_COMPLETE | WALK_DETACHED) {
        0 => ("…/", "dentry_partial"),
        WALK_COMPLETE => ("/", "dentry"),
        _ => ("", "dentry"),
    };
    let end = if flags & WALK_DELETED != 0 && flags & WALK_DETACHED == 0 { " (deleted)" } else { "" };
    Some((format!("{start}{}{end}", untrusted(&names.join(&b'/'), MOST)), from))
}

/// A file by device and inode. The kernel keeps 20 bits of minor number (include/linux/kdev_t.h).
fn by_number(file: FileId) -> String {
    format!("inode {} on {}:{}", file.inode, file.device >> 20, file.device & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_file_up_are_a_path() {
        let names = b"passwd\0etc\0";
        assert_eq!(of_names(names, WALK_COMPLETE), Some(("/etc/passwd".into(), "dentry")));
        assert_eq!(of_names(names, WALK_COMPLETE | WALK_DELETED), Some(("/etc/passwd (deleted)".into(), "dentry")));
        assert_eq!(of_names(names, 0), Some(("…/etc/passwd".into(), "dentry_partial")));
        assert_eq!(of_names(b"memfd:x\0", WALK_DETACHED | WALK_DELETED), Some(("memfd:x".into(), "dentry")));
        assert_eq!(of_names(b"", WALK_COMPLETE), Some(("/".into(), "dentry")));
        assert_eq!(of_names(b"", 0), None);
    }

    #[test]
    fn a_file_without_a_path_shows_its_number() {
        let mut row = Row::new();
        insert(&mut row, FileId { inode: 7, device: 254 << 20 | 3, zero: 0 }, None);
        assert_eq!((&row["path"], &row["path_from"]), (&"inode 7 on 254:3".into(), &"inode".into()));
    }
}
