//! How to install bpftrace on this distribution: pure but for one read.

/// The command that installs bpftrace here, or where to read about it.
pub(crate) fn remedy() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    match command(&release) {
        Some(command) => format!("install it with: {command}"),
        None => "install the package bpftrace of your distribution".into(),
    }
}

/// By `ID` and `ID_LIKE` of os-release(5).
fn command(release: &str) -> Option<&'static str> {
    const COMMANDS: &[(&[&str], &str)] = &[
        (&["debian", "ubuntu"], "apt-get install bpftrace"),
        (&["fedora", "rhel", "centos", "amzn"], "dnf install bpftrace"),
        (&["arch"], "pacman -S bpftrace"),
        (&["alpine"], "apk add bpftrace"),
        (&["suse", "opensuse"], "zypper install bpftrace"),
        (&["nixos"], "nix-env -iA nixos.bpftrace"),
    ];
    let ids: Vec<&str> = ["ID=", "ID_LIKE="].iter().flat_map(|name| field(release, name)).collect();
    COMMANDS.iter().find(|(names, _)| ids.iter().any(|id| names.contains(id))).map(|(_, command)| *command)
}

fn field<'a>(release: &'a str, name: &str) -> Vec<&'a str> {
    let value = release.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    value.trim_matches(['"', '\'']).split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_command() {
        let check = |release, expected| assert_eq!(command(release), expected, "{release}");
        check("NAME=\"Debian\"\nID=debian\n", Some("apt-get install bpftrace"));
        check("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Some("apt-get install bpftrace"));
        check("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"", Some("dnf install bpftrace"));
        check("ID=arch", Some("pacman -S bpftrace"));
        check("ID=alpine", Some("apk add bpftrace"));
        check("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"", Some("zypper install bpftrace"));
        check("ID=unknown", None);
        check("", None);
    }
}
