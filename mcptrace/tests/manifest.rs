//! The committed eBPF objects are those of the committed sources, and hold nothing that they should not.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use xtask::manifest::{self, Manifest};
use xtask::{elf, workspace_root};

const REMEDY: &str = "`cargo xtask build-ebpf` builds the objects again";

fn folder() -> PathBuf {
    manifest::objects_folder(&workspace_root())
}

fn object(name: &str) -> Vec<u8> {
    fs::read(folder().join(name).with_extension("o")).expect("an object for every program")
}

#[test]
fn objects_were_built_from_these_sources() {
    let committed = Manifest::read(&folder()).unwrap().sources;
    let present = manifest::source_hash(&workspace_root()).unwrap();
    assert_eq!(committed, present, "the kernel-side sources changed after the objects were built; {REMEDY}");
}

#[test]
fn every_kernel_program_has_its_object_and_every_object_its_program() {
    let programs = manifest::kernel_programs(&workspace_root()).unwrap();
    assert_eq!(manifest::objects(&folder()).unwrap(), programs, "{REMEDY}");
    let listed: BTreeSet<String> = Manifest::read(&folder()).unwrap().objects.into_keys().collect();
    assert_eq!(listed, programs, "{REMEDY}");
    assert!(!programs.is_empty());
}

#[test]
fn objects_are_those_of_the_manifest() {
    for (name, hash) in Manifest::read(&folder()).unwrap().objects {
        assert_eq!(manifest::sha256(&object(&name)), hash, "{name}.o was changed after it was built; {REMEDY}");
    }
}

#[test]
fn objects_are_stripped_have_btf_and_name_no_machine() {
    for name in manifest::objects(&folder()).unwrap() {
        elf::check(&object(&name)).unwrap_or_else(|error| panic!("{name}.o {error:#}"));
    }
}
