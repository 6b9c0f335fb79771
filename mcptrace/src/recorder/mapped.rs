//! An array of the kernel, mapped into this process's memory: reading and clearing it takes no call.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{Ebpf, maps::Map};

/// All values of an array.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    values: *mut T,
    length: usize,
}

// SAFETY: the memory is shared with the kernel and belongs to whoever owns this; nothing in it is bound to a thread.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T> Mapped<T> {
    /// Maps an array that has so many values (`BPF_F_MMAPABLE`, 5.5 and later).
    pub(super) fn new(ebpf: &Ebpf, name: &str, length: usize) -> io::Result<Self> {
        let missing = || io::Error::other(format!("the object has no mappable array `{name}`"));
        let Some(Map::Array(array)) = ebpf.map(name) else { return Err(missing()) };
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let file = array.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let values = unsafe { libc::mmap(ptr::null_mut(), length * size_of::<T>(), protection, flags, file, 0) };
        if values == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { values: values.cast(), length })
        }
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// A value.
    pub(super) fn pointer(&self, index: usize) -> *mut T {
        assert!(index < self.length, "value {index} of {}", self.length);
        // SAFETY: within the mapping.
        unsafe { self.values.add(index) }
    }

    /// A word of a value that both sides write.
    ///
    /// # Safety
    ///
    /// `field` gives the place of a word inside the value.
    pub(super) unsafe fn word(&self, index: usize, field: impl FnOnce(*mut T) -> *mut u64) -> &AtomicU64 {
        // SAFETY: the caller's promise; the mapping lives as long as this, and words of it are aligned.
        unsafe { AtomicU64::from_ptr(field(self.pointer(index))) }
    }

    /// Reads a value that the kernel does not write at present, and makes it all zeros.
    pub(super) fn with_cleared<R>(&mut self, index: usize, read: impl FnOnce(&T) -> R) -> R {
        let value = self.pointer(index);
        // SAFETY: within the mapping, any bits are a value of what is mapped here, and nobody else uses it at present.
        unsafe {
            let result = read(&*value);
            ptr::write_bytes(value, 0, 1);
            result
        }
    }

    /// Makes all values zeros.
    pub(super) fn clear(&mut self) {
        // SAFETY: the whole of the mapping.
        unsafe { ptr::write_bytes(self.values, 0, self.length) };
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped; no reference outlives this.
        unsafe { libc::munmap(self.values.cast(), self.length * size_of::<T>()) };
    }
}

/// Stores a word that kernel programs read.
pub(super) fn store(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::SeqCst);
}
