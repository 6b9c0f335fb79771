//! What the kernel programs in `src/bin`, one object each, share. What they send is in [`mcptrace_wire`].

#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    expect(unstable_features, reason = "the atomic add has to be written in assembly"),
    feature(asm_experimental_arch)
)]

pub use mcptrace_wire::*;

pub mod actor;
pub mod file;
pub mod function;
pub mod groups;
pub mod kernel;
pub mod memory;
pub mod names;
pub mod process;
pub mod socket;
pub mod stack;
pub mod syscall;
