//! Another Linux kernel than the one that runs: Debian's, in an emulated machine over the files of this one.
//!
//! The guest sees the root of the host read-only (virtio-9p) below an overlay in its own memory, so that every program of the host runs
//! there and nothing of what it writes comes back. It needs qemu, a static busybox, kmod and a kernel's package; no image of a disk.

mod guest;
mod initramfs;
mod package;

pub(crate) use guest::{Ended, Job, quoted, run};
pub(crate) use package::{KEYS, Kernel};
