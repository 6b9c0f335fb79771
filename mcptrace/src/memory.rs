//! How much memory this process holds, and giving back what is not needed any more.

use std::ffi::c_void;

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

/// The process's own resident memory, in bytes: without pages of files. 0 where the kernel does not say.
pub fn own() -> u64 {
    let memory = Process::myself().and_then(|process| process.statm());
    memory.map_or(0, |memory| memory.resident.saturating_sub(memory.shared) * procfs::page_size())
}

/// Gives freed memory back to the system: parsing the kernel's types frees some 20 MB at once, which glibc would keep.
pub fn release_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only touches the allocator's own state.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the program's code that only the start needed: reading arguments and settings, and whatever lies beside it, because the
/// kernel maps 64 KB around each page that is touched. What is needed again is mapped again out of the page cache.
///
/// To be called once, before anything is traced: breakpoints in this program's own code, of whoever traces it, would go too. Libraries
/// are left alone for that reason.
pub fn release_start() {
    let Ok(maps) = Process::myself().and_then(|process| process.maps()) else { return };
    let program = std::fs::read_link("/proc/self/exe").ok();
    let code = |map: &&MemoryMap| {
        let wanted = MMPermissions::READ | MMPermissions::EXECUTE | MMPermissions::PRIVATE;
        map.perms == wanted && matches!(&map.pathname, MMapPath::Path(path) if Some(path) == program.as_ref())
    };
    for map in maps.iter().filter(code) {
        let (start, end) = map.address;
        // SAFETY: a private mapping of a file that is never written to has the file's bytes after this as before it.
        unsafe {
            libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of this program's code that are mapped.
    fn resident() -> u64 {
        let maps = Process::myself().unwrap().smaps().unwrap();
        let code = maps.iter().filter(|map| {
            map.perms.contains(MMPermissions::EXECUTE)
                && matches!(&map.pathname, MMapPath::Path(path) if path.ends_with(name()))
        });
        code.map(|map| map.extension.map["Rss"]).sum()
    }

    fn name() -> std::ffi::OsString {
        std::env::current_exe().unwrap().file_name().unwrap().to_owned()
    }

    #[test]
    fn own_memory_is_what_the_kernel_calls_anonymous() {
        let kernel = Process::myself().unwrap().status().unwrap().rssanon.unwrap() << 10;
        // Other threads go on meanwhile.
        assert!(own().abs_diff(kernel) < 16 << 20, "{} and {kernel} bytes", own());
        assert!(own() > 0);
    }

    /// Code that was touched is let go of, and the program goes on.
    #[test]
    fn what_the_start_has_touched_is_let_go_of() {
        let maps = Process::myself().unwrap().maps().unwrap();
        let code = maps.iter().find(|map| map.perms.contains(MMPermissions::EXECUTE)).unwrap();
        let (start, end) = code.address;
        let touched: u64 = (start..end)
            .step_by(4096)
            .map(|at| {
                // SAFETY: the mapping is readable and stays for the life of the program.
                u64::from(unsafe { std::ptr::read_volatile(at as *const u8) })
            })
            .sum();
        assert!(touched > 0);
        let before = resident();
        release_start();
        let after = resident();
        assert!(after < before / 2, "{before} bytes before, {after} after");
    }
}
