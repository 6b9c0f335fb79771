//! The first file system of the guest: busybox, the modules that reach the host's files, and the script that mounts them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Cursor, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use cpio::{NewcBuilder, write_cpio};

use super::Kernel;
use crate::process;

/// What the kernel starts.
const INIT: &str = include_str!("init.sh");

/// What it takes to get at the host's files, to talk with it and to have a disk. What a kernel has built in is in no list of its modules.
/// ext4 asks for crc32c by another way than by needing its module.
const MODULES: [&str; 8] =
    ["virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "overlay", "crc32c_generic", "ext4"];

/// Types of files, as `stat` gives them, with their permissions.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Writes it, with a script that is run over the host's files and settings for [`INIT`].
pub(super) fn write(path: &Path, kernel: &Kernel, script: &str, settings: &str) -> Result<()> {
    let busybox = process::all_in_path("busybox").into_iter().next().context("busybox is missing")?;
    let modules = kernel.modules();
    let list = fs::read_to_string(modules.join("modules.dep"))?;
    let order = in_order(&list, &MODULES);
    let mut files = vec![
        ("bin".to_owned(), FOLDER, Vec::new()),
        ("modules".to_owned(), FOLDER, Vec::new()),
        ("bin/busybox".to_owned(), PROGRAM, fs::read(busybox)?),
        ("init".to_owned(), PROGRAM, INIT.into()),
        ("settings".to_owned(), PROGRAM, settings.into()),
        ("script".to_owned(), PROGRAM, script.into()),
    ];
    let mut names = String::new();
    for module in order {
        let name = module.rsplit('/').next().unwrap_or(module);
        files.push((format!("modules/{name}"), PROGRAM, fs::read(modules.join(module))?));
        names.extend([name, "\n"]);
    }
    files.push(("modules/order".to_owned(), PROGRAM, names.into()));
    let inputs = files.into_iter().map(|(name, mode, data)| (NewcBuilder::new(&name).mode(mode), Cursor::new(data)));
    write_cpio(inputs, BufWriter::new(File::create(path)?))?.flush()?;
    Ok(())
}

/// The files of modules, each after those that it needs, out of the text of `modules.dep`.
fn in_order<'a>(list: &'a str, modules: &[&str]) -> Vec<&'a str> {
    let needs: BTreeMap<&str, &str> = list.lines().filter_map(|line| line.split_once(':')).collect();
    let mut order = Vec::new();
    for module in modules {
        let path = needs.keys().find(|path| name(path) == *module);
        let Some(path) = path else { continue };
        // What a module needs is listed whole, the deepest last.
        for one in needs[path].split_whitespace().rev().chain([*path]) {
            if !order.contains(&one) {
                order.push(one);
            }
        }
    }
    order
}

/// `kernel/fs/9p/9p.ko.xz` is `9p`.
fn name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let list = "k/9p.ko.xz: k/netfs.ko.xz k/9pnet.ko.xz\n\
                    k/9pnet_virtio.ko.xz: k/9pnet.ko.xz k/virtio_ring.ko.xz k/virtio.ko.xz\n\
                    k/9pnet.ko.xz:\nk/netfs.ko.xz:\n";
        let order = in_order(list, &["9pnet_virtio", "built_in", "9p"]);
        assert_eq!(
            order,
            [
                "k/virtio.ko.xz",
                "k/virtio_ring.ko.xz",
                "k/9pnet.ko.xz",
                "k/9pnet_virtio.ko.xz",
                "k/netfs.ko.xz",
                "k/9p.ko.xz"
            ]
        );
    }
}
