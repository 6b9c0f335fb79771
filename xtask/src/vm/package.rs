//! Kernels of Debian, by the names of their packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::workspace_root;

use crate::process;

/// The keys that Debian's archives are signed with; the package debian-archive-keyring brings them.
pub(crate) const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where packages are when apt has no mirror of Debian configured.
const MIRROR: &str = "http://deb.debian.org/debian";

/// The suites of each archive, which hold kernels from 5.10 to the newest.
const SUITES: [(&str, &[&str]); 2] = [
    ("debian", &["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports"]),
    ("debian-security", &["bullseye-security", "bookworm-security", "trixie-security"]),
];

/// Newer kernels come in several packages. Not all of these are there for each.
const PARTS: [&str; 4] = ["image", "base", "binary", "modules"];

/// How many releases of a version are tried: the newest may be in the lists of packages and gone from the mirror.
const TRIED: usize = 3;

/// A kernel, unpacked below `target/vm`.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` tells it there: `6.12.117+deb13-amd64`.
    pub(crate) release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The newest release whose name begins with a version such as `6.12` or `6.12.117`: one that is kept already, else from the mirror.
    pub(crate) fn find(version: &str) -> Result<Self> {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        ensure!(
            version.split('.').count() >= 2 && version.split('.').all(digits),
            "--kernel takes the beginning of a release such as 6.12 or 6.12.117, not {version:?}"
        );
        let cache = cache();
        fs::create_dir_all(&cache)?;
        if let Some(release) = newest(version, kept(&cache)?).into_iter().next() {
            return Ok(Self { folder: cache.join(&release), release });
        }
        fetch_newest(version, &cache)
    }

    /// What a boot loader starts.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// Its options, as in `/boot`.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// Its modules, with `modules.dep`.
    pub(crate) fn modules(&self) -> PathBuf {
        modules(&self.folder, &self.release)
    }
}

/// Kernels are kept here, 200 to 600 MB each.
fn cache() -> PathBuf {
    workspace_root().join("target/vm")
}

fn modules(folder: &Path, release: &str) -> PathBuf {
    folder.join("lib/modules").join(release)
}

fn kept(cache: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(cache)?.filter_map(Result::ok).filter(|entry| entry.path().join("vmlinuz").exists());
    Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The releases of a version, the newest first.
fn newest(version: &str, releases: impl IntoIterator<Item = String>) -> Vec<String> {
    let is = |release: &String| {
        let rest = release.strip_prefix(version);
        is_general(release) && rest.is_some_and(|rest| !rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let mut found: Vec<_> = releases.into_iter().filter(is).collect();
    found.sort_by_key(|release| std::cmp::Reverse(numbers(release)));
    found
}

/// Whether it is a release, and not of a kernel for clouds (without 9p) or for real-time, or the name of whatever is newest.
fn is_general(release: &str) -> bool {
    numbers(release.split('-').next().unwrap_or_default()).len() >= 3
        && release.ends_with("-amd64")
        && !["-rt-", "-cloud-"].iter().any(|flavour| release.contains(flavour))
}

fn numbers(release: &str) -> Vec<u64> {
    release.split(|one: char| !one.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn fetch_newest(version: &str, cache: &Path) -> Result<Kernel> {
    let apt = Apt::new(cache)?;
    let mut releases = if apt.has_lists() { newest(version, apt.releases()?) } else { Vec::new() };
    if releases.is_empty() {
        apt.update()?;
        releases = newest(version, apt.releases()?);
    }
    for release in releases.iter().take(TRIED) {
        match fetch(&apt, release, cache) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => eprintln!("xtask: {release} could not be had: {error:#}"),
        }
    }
    bail!(
        "no package of a kernel {version} could be had from {}; these are there: {}; name one of them with --kernel",
        apt.mirror,
        versions(&apt.releases()?).join(", ")
    )
}

/// `6.12` and so on, each once, in order.
fn versions(releases: &[String]) -> Vec<String> {
    let mut versions: Vec<_> = releases.iter().map(|release| numbers(release)).filter(|all| all.len() >= 3).collect();
    for numbers in &mut versions {
        numbers.truncate(2);
    }
    versions.sort();
    versions.dedup();
    versions.iter().map(|numbers| format!("{}.{}", numbers[0], numbers[1])).collect()
}

/// Downloads and unpacks a kernel; it appears under its name when all of it is there.
fn fetch(apt: &Apt, release: &str, cache: &Path) -> Result<Kernel> {
    eprintln!("xtask: fetching the kernel {release} from {}", apt.mirror);
    let work = tempfile::tempdir_in(cache)?;
    let (debs, root) = (work.path().join("debs"), work.path().join("root"));
    fs::create_dir(&debs)?;
    apt.download(&apt.packages(release)?, &debs)?;
    for deb in fs::read_dir(&debs)? {
        process::run(Command::new("dpkg-deb").arg("--extract").arg(deb?.path()).arg(&root))?;
    }
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    let modules = modules(&root, release);
    for name in ["config", "vmlinuz"] {
        let places = [root.join(format!("boot/{name}-{release}")), modules.join(name)];
        let place = places.iter().find(|place| place.exists());
        fs::rename(place.with_context(|| format!("its packages have no {name}"))?, root.join(name))?;
    }
    process::output(Command::new(program("depmod")?).arg("--basedir").arg(&root).arg(release))?;
    let folder = cache.join(release);
    fs::rename(&root, &folder)?;
    Ok(Kernel { release: release.to_owned(), folder })
}

fn program(name: &str) -> Result<PathBuf> {
    process::all_in_path(name).into_iter().next().with_context(|| format!("{name} is missing"))
}

/// apt with lists of its own, so that neither the system's sources nor its lists change and no privilege is needed.
struct Apt {
    folder: PathBuf,
    mirror: String,
}

impl Apt {
    fn new(cache: &Path) -> Result<Self> {
        let folder = cache.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let mirror = configured_mirror().unwrap_or_else(|| MIRROR.to_owned());
        fs::write(folder.join("sources.list"), sources(&mirror))?;
        fs::write(folder.join("status"), "")?;
        Ok(Self { folder, mirror })
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            "Dir::Etc::SourceParts=-".into(),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::State::Status={folder}/status"),
            format!("Dir::Cache={folder}"),
            // Images of containers turn these off, and every command would read all lists anew.
            "Dir::Cache::pkgcache=pkgcache.bin".into(),
            "Dir::Cache::srcpkgcache=srcpkgcache.bin".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "APT::Architecture=amd64".into(),
            "APT::Sandbox::User=".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    fn has_lists(&self) -> bool {
        let names = fs::read_dir(self.folder.join("lists")).into_iter().flatten().filter_map(Result::ok);
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with("_Packages"))
    }

    /// A suite that has left the mirror is said and takes nothing from the others.
    fn update(&self) -> Result<()> {
        eprintln!("xtask: reading the lists of packages of {}", self.mirror);
        let updated = process::run(self.command("apt-get").args(["update", "-qq"]));
        match updated {
            Err(error) if self.has_lists() => eprintln!("xtask: going on with the lists that came: {error:#}"),
            other => other?,
        }
        Ok(())
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn releases(&self) -> Result<Vec<String>> {
        let names = self.names("linux-image-")?;
        let releases = names.iter().filter_map(|name| name.strip_prefix("linux-image-"));
        Ok(releases.filter(|release| is_general(release)).map(str::to_owned).collect())
    }

    fn packages(&self, release: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for part in PARTS {
            let name = format!("linux-{part}-{release}");
            if self.names(&name)?.contains(&name) {
                found.push(name);
            }
        }
        Ok(found)
    }

    fn download(&self, packages: &[String], into: &Path) -> Result<()> {
        process::run(self.command("apt-get").args(["download", "-qq"]).args(packages).current_dir(into))
    }
}

/// The mirror of Debian that the system's apt uses.
fn configured_mirror() -> Option<String> {
    let format = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let addresses = process::output(Command::new("apt-get").args(format)).ok()?;
    addresses
        .lines()
        .map(|address| address.trim_end_matches('/'))
        .find(|one| one.ends_with("/debian"))
        .map(str::to_owned)
}

/// Lines of a sources.list. The security archive lies beside the main one.
fn sources(mirror: &str) -> String {
    let beside = mirror.trim_end_matches("/debian");
    let line = |(archive, suites): &(&str, &[&str])| {
        let lines = suites.iter().map(|suite| format!("deb [signed-by={KEYS}] {beside}/{archive} {suite} main\n"));
        lines.collect::<String>()
    };
    SUITES.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest_of(version: &str, releases: &[&str]) -> Vec<String> {
        newest(version, releases.iter().map(|release| (*release).to_owned()))
    }

    #[test]
    fn the_newest_of_a_version_comes_first_and_other_flavours_not_at_all() {
        let releases = [
            "6.1.0-9-amd64",
            "6.12.9+deb13-amd64",
            "6.1.0-56-amd64",
            "6.12-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-56-rt-amd64",
            "6.12.117+deb13-amd64",
            "6.12.117+deb13-amd64-unsigned",
        ];
        assert_eq!(newest_of("6.1", &releases), ["6.1.0-56-amd64", "6.1.0-9-amd64"]);
        assert_eq!(newest_of("6.12", &releases), ["6.12.117+deb13-amd64", "6.12.9+deb13-amd64"]);
        assert_eq!(newest_of("6.12.9", &releases), ["6.12.9+deb13-amd64"]);
        assert_eq!(newest_of("6.13", &releases), [] as [&str; 0]);
    }

    #[test]
    fn versions_stand_once_and_in_order() {
        let releases = ["7.3.4+deb13-amd64", "5.10.0-46-amd64", "5.10.0-9-amd64", "6.12.9+deb13-amd64"];
        assert_eq!(versions(&releases.map(str::to_owned)), ["5.10", "6.12", "7.3"]);
    }

    #[test]
    fn what_is_no_version_is_refused_before_anything_is_fetched() {
        for wrong in ["6", "", "6.x", "6.12-amd64", "../x.1"] {
            let error = Kernel::find(wrong).unwrap_err().to_string();
            assert!(error.contains("6.12.117"), "{error}");
        }
    }

    #[test]
    fn security_updates_come_from_beside_the_mirror() {
        let text = sources("http://mirror.example/debian");
        assert!(text.contains("] http://mirror.example/debian bullseye main\n"), "{text}");
        assert!(text.contains("] http://mirror.example/debian-security trixie-security main\n"), "{text}");
    }
}
