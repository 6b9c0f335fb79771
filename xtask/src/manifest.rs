//! The manifest of the committed eBPF objects: what they were built from, by what, and their hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The package that holds the kernel programs.
pub const PACKAGE: &str = "mcptrace-ebpf";

/// Dependencies that only run on the build machine. They are hashed themselves, but what they depend on is not: it is
/// shared with the rest of the workspace, changes often, and does not end in an object.
///
/// What the wire page depends on is for user space alone.
const BUILD_MACHINE_ONLY: &[&str] =
    &["aya-build", "aya-ebpf-macros", "aya-log-ebpf-macros", "mcptrace-wire", "num_enum", "rustversion"];

/// `mcptrace/bpf/manifest.json`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`source_hash`] of what the objects were built from.
    pub sources: String,
    /// What built them.
    #[serde(flatten)]
    pub toolchain: Toolchain,
    /// SHA-256 of each object, by the name of its kernel program.
    pub objects: BTreeMap<String, String>,
}

/// All of a toolchain that can change the bytes of an object.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Toolchain {
    /// The architecture whose registers and structs the programs were compiled for, as in `bpf_target_arch`.
    pub arch: String,
    /// Version of rustc and of its LLVM.
    pub compiler: String,
    /// Version of bpf-linker and of its LLVM.
    pub linker: String,
}

impl Manifest {
    /// Reads the manifest in a folder of objects.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a manifest", path.display()))
    }

    /// Writes the manifest into a folder of objects.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn path(folder: &Path) -> PathBuf {
        folder.join("manifest.json")
    }
}

/// The folder of the committed objects.
pub fn objects_folder(root: &Path) -> PathBuf {
    root.join("mcptrace/bpf")
}

/// The names of all kernel programs: the files of `mcptrace-ebpf/src/bin`.
pub fn kernel_programs(root: &Path) -> Result<BTreeSet<String>> {
    stems(&root.join(PACKAGE).join("src/bin"), "rs")
}

/// The names of all objects in a folder.
pub fn objects(folder: &Path) -> Result<BTreeSet<String>> {
    stems(folder, "o")
}

/// The folders of the workspace's members.
pub fn members(root: &Path) -> Result<Vec<String>> {
    let workspace = read_toml(&root.join("Cargo.toml"))?;
    let members = at(&workspace, &["workspace", "members"]).context("Cargo.toml names no workspace members")?;
    members.clone().try_into().context("the workspace's members in Cargo.toml")
}

/// SHA-256 of bytes, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The hash of everything in the workspace that decides what the objects are: the kernel-side sources, their `Cargo.toml`,
/// the profile, the package's edition and version, and the resolved dependencies.
pub fn source_hash(root: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    for path in sources(root)? {
        let text = fs::read(root.join(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        add(&mut hasher, &path.to_string_lossy(), &text);
    }
    add(&mut hasher, "settings", settings(root)?.as_bytes());
    add(&mut hasher, "dependencies", dependencies(root)?.join("\n").as_bytes());
    Ok(hex(&hasher.finalize()))
}

/// Adds a named part. Lengths go in so that no two different sequences of parts are one sequence of bytes.
fn add(hasher: &mut Sha256, name: &str, content: &[u8]) {
    for part in [name.as_bytes(), content] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The kernel-side files, relative to the root, sorted.
fn sources(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let package = Path::new(PACKAGE);
    let packages = [package.to_owned(), package.join("wire")];
    let mut files: BTreeSet<_> = packages.iter().map(|package| package.join("Cargo.toml")).collect();
    let mut folders: Vec<_> = packages.iter().rev().map(|package| package.join("src")).collect();
    while let Some(folder) = folders.pop() {
        for path in entries(&root.join(&folder))? {
            let relative = path.strip_prefix(root).context("a path outside the workspace")?.to_owned();
            if path.is_dir() {
                folders.push(relative);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.insert(relative);
            }
        }
    }
    Ok(files)
}

/// What the workspace's `Cargo.toml` says about the build of the kernel programs.
fn settings(root: &Path) -> Result<String> {
    let workspace = read_toml(&root.join("Cargo.toml"))?;
    let package = read_toml(&root.join(PACKAGE).join("Cargo.toml"))?;
    let inherited = |name: &str| at(&workspace, &["workspace", "dependencies", name]);
    let direct = at(&package, &["dependencies"]).and_then(toml::Value::as_table);
    let mut settings: Vec<Option<&toml::Value>> =
        direct.into_iter().flat_map(|table| table.keys()).map(|name| inherited(name)).collect();
    for path in [["workspace", "package", "edition"].as_slice(), &["workspace", "package", "version"]] {
        settings.push(at(&workspace, path));
    }
    for profile in ["release", "bpf"] {
        settings.push(at(&workspace, &["profile", profile]));
    }
    Ok(format!("{settings:?}"))
}

/// The kernel-side packages of the lock file, as `name version checksum`, sorted.
fn dependencies(root: &Path) -> Result<Vec<String>> {
    let path = root.join("Cargo.lock");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lock: LockFile = toml::from_str(&text).with_context(|| format!("{} is not a lock file", path.display()))?;
    lock.kernel_side()
}

#[derive(Deserialize)]
struct LockFile {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

impl LockFile {
    fn kernel_side(&self) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        let mut open = vec![PACKAGE];
        while let Some(reference) = open.pop() {
            let package = self.find(reference)?;
            if found.insert(package.line()) && !BUILD_MACHINE_ONLY.contains(&package.name.as_str()) {
                open.extend(package.dependencies.iter().map(String::as_str));
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The package that a dependency line means: `name`, or `name version` where the name alone would be ambiguous.
    fn find(&self, reference: &str) -> Result<&Locked> {
        let mut words = reference.split(' ');
        let (name, version) = (words.next(), words.next());
        let matches = |package: &&Locked| {
            Some(package.name.as_str()) == name && version.is_none_or(|version| version == package.version)
        };
        let Some(package) = self.package.iter().find(matches) else { bail!("Cargo.lock has no package {reference}") };
        Ok(package)
    }
}

impl Locked {
    fn line(&self) -> String {
        let Self { name, version, checksum, dependencies: _ } = self;
        format!("{name} {version} {}", checksum.as_deref().unwrap_or("-"))
    }
}

fn read_toml(path: &Path) -> Result<toml::Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))
}

fn at<'value>(value: &'value toml::Value, path: &[&str]) -> Option<&'value toml::Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// The names, without extension, of the files of a folder that have this extension.
fn stems(folder: &Path, extension: &str) -> Result<BTreeSet<String>> {
    let has_extension = |path: &PathBuf| path.extension().is_some_and(|it| it == extension);
    let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(entries(folder)?.into_iter().filter(has_extension).filter_map(stem).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>();
    read().with_context(|| format!("cannot read the folder {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
        [[package]]
        name = "mcptrace-ebpf"
        version = "0.1.0"
        dependencies = ["aya-ebpf", "aya-build"]
        [[package]]
        name = "aya-ebpf"
        version = "0.2.1"
        checksum = "aa"
        [[package]]
        name = "aya-build"
        version = "0.2.0"
        dependencies = ["serde 1.0.0"]
        [[package]]
        name = "serde"
        version = "1.0.0"
    "#;

    fn workspace() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("Cargo.toml", "[workspace.package]\nversion = \"0.1.0\"\n[profile.bpf]\nopt-level = 3\n");
        write("Cargo.lock", LOCK);
        write("mcptrace-ebpf/Cargo.toml", "[dependencies]\naya-ebpf.workspace = true\n");
        write("mcptrace-ebpf/src/lib.rs", "// filters");
        write("mcptrace-ebpf/wire/Cargo.toml", "[dependencies]\n");
        write("mcptrace-ebpf/wire/src/lib.rs", "// records");
        write("mcptrace-ebpf/src/bin/opens.rs", "// program");
        folder
    }

    /// Whether replacing text in a file of a workspace changes its hash.
    fn changes(file: &str, from: &str, to: &str) -> bool {
        let folder = workspace();
        let before = source_hash(folder.path()).unwrap();
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).unwrap_or_default();
        assert!(text.contains(from), "{file} lacks {from}");
        fs::write(&path, text.replace(from, to)).unwrap();
        before != source_hash(folder.path()).unwrap()
    }

    #[test]
    fn what_decides_the_objects_changes_the_hash() {
        assert!(changes("mcptrace-ebpf/src/lib.rs", "filters", "others"));
        assert!(changes("mcptrace-ebpf/wire/src/lib.rs", "records", "others"));
        assert!(changes("mcptrace-ebpf/src/bin/opens.rs", "program", "others"));
        assert!(changes("mcptrace-ebpf/Cargo.toml", "true", "false"));
        assert!(changes("Cargo.toml", "opt-level = 3", "opt-level = 2"));
        assert!(changes("Cargo.toml", "0.1.0", "0.2.0"));
        assert!(changes("Cargo.lock", "\"aa\"", "\"bb\""));
        assert!(changes("Cargo.lock", "0.2.0", "0.2.1"));
    }

    #[test]
    fn what_does_not_decide_the_objects_leaves_the_hash() {
        assert!(!changes("Cargo.lock", "1.0.0", "1.0.1"));
        assert!(!changes("Cargo.toml", "[profile.bpf]", "[profile.dev]\nopt-level = 1\n[profile.bpf]"));
        assert!(!changes("mcptrace-ebpf/src/lib.rs~", "", "a backup of an editor"));
    }

    #[test]
    fn kernel_programs_are_the_files_of_the_folder() {
        let folder = workspace();
        assert_eq!(kernel_programs(folder.path()).unwrap(), BTreeSet::from(["opens".to_owned()]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", source_hash(folder.path()).unwrap_err());
        assert!(error.contains("mcptrace-ebpf/src"), "{error}");
        fs::create_dir_all(folder.path().join("mcptrace-ebpf/src")).unwrap();
        let error = format!("{:#}", source_hash(folder.path()).unwrap_err());
        assert!(error.contains("mcptrace-ebpf/wire/src"), "{error}");
        let error = format!("{:#}", Manifest::read(folder.path()).unwrap_err());
        assert!(error.contains("manifest.json"), "{error}");
    }
}
