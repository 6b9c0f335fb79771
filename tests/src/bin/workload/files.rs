//! Reads, writes and syncs of known number and size.

use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

/// The size of a page on the machines that the tests run on.
const PAGE: usize = 4096;

fn open(path: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Writes one after the other, so many bytes each.
pub(crate) fn write(path: &str, times: i64, bytes: i64) {
    let file = open(path);
    for time in 0..times {
        assert_eq!(file.write_at(&vec![7; bytes as usize], (time * bytes) as u64).unwrap() as i64, bytes);
    }
}

/// Reads one after the other, so many bytes each. With `random` the kernel reads nothing ahead.
pub(crate) fn read(path: &str, times: i64, bytes: i64, random: bool) {
    let file = open(path);
    if random {
        advise(&file, libc::POSIX_FADV_RANDOM);
    }
    for time in 0..times {
        assert_eq!(file.read_at(&mut vec![0; bytes as usize], (time * bytes) as u64).unwrap() as i64, bytes);
    }
}

/// Reads a file that is only open for writing.
pub(crate) fn fail_reads(path: &str, times: i64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for _ in 0..times {
        assert_eq!(file.read_at(&mut [0; 8], 0).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

/// Writes to a file that never had a name.
pub(crate) fn write_nameless(times: i64, bytes: i64) {
    // SAFETY: a string with its NUL.
    let descriptor = unsafe { libc::memfd_create(c"nameless".as_ptr(), 0) };
    for _ in 0..times {
        // SAFETY: the bytes are good for the call.
        let written = unsafe { libc::write(descriptor, vec![7_u8; bytes as usize].as_ptr().cast(), bytes as usize) };
        assert_eq!(written as i64, bytes);
    }
    // SAFETY: nobody else has it.
    unsafe { libc::close(descriptor) };
}

/// Writes once to each of so many files.
pub(crate) fn write_each(files: i64) {
    (0..files).for_each(|_| write_nameless(1, 1));
}

/// Writes to a file whose name is gone.
pub(crate) fn write_deleted(path: &str, times: i64, bytes: i64) {
    let file = open(path);
    std::fs::remove_file(path).unwrap();
    for _ in 0..times {
        assert_eq!(file.write_at(&vec![7; bytes as usize], 0).unwrap() as i64, bytes);
    }
}

/// Makes data durable by a certain call; gives how the last went.
pub(crate) fn sync(path: &str, call: &str, times: i64) -> Vec<i64> {
    let file = open(path);
    file.write_at(&[7; PAGE], 0).unwrap();
    let descriptor = file.as_raw_fd();
    // SAFETY: a new mapping of a page that the file has; the rest takes numbers.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(std::ptr::null_mut(), PAGE, access, libc::MAP_SHARED, descriptor, 0);
        let once = || match call {
            "fsync" => libc::fsync(descriptor),
            "fdatasync" => libc::fdatasync(descriptor),
            "sync_file_range" => libc::sync_file_range(descriptor, 0, PAGE as i64, libc::SYNC_FILE_RANGE_WRITE),
            "syncfs" => libc::syncfs(descriptor),
            "msync" => libc::msync(page, PAGE, libc::MS_SYNC),
            "sync" => {
                libc::sync();
                0
            }
            // A descriptor that nobody has.
            "bad" => libc::fsync(9999),
            other => panic!("unknown call {other}"),
        };
        let results: Vec<i64> = (0..times).map(|_| i64::from(once())).collect();
        results.last().copied().into_iter().collect()
    }
}

/// Writes out a file and lets its pages go.
pub(crate) fn forget(path: &str) {
    let file = open(path);
    file.sync_all().unwrap();
    advise(&file, libc::POSIX_FADV_DONTNEED);
}

/// Touches every second page of a mapped file, so many of them, with no reading ahead.
pub(crate) fn touch(path: &str, pages: i64) {
    let file = open(path);
    let length = 2 * pages as usize * PAGE;
    // SAFETY: a new mapping, read within its length and within the file's.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::madvise(start, length, libc::MADV_RANDOM), 0);
        for page in 0..pages as usize {
            start.cast::<u8>().add(2 * page * PAGE).read_volatile();
        }
        libc::munmap(start, length);
    }
}

fn advise(file: &File, advice: i32) {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) }, 0);
}
