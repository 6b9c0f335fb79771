//! `mcptrace setup`: the built program enters itself into the files of each client and takes itself out again. The test of sudo needs root.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use mcptrace_tests::program::program;
use serde_json::Value;
use tempfile::TempDir;

/// Client, its file below the home, its file below a project, and what stands in such files before.
const CLIENTS: &[(&str, &str, Option<&str>, &str)] = &[
    ("claude-code", ".claude.json", Some(".mcp.json"), PLAIN),
    ("claude-desktop", ".config/Claude/claude_desktop_config.json", None, PLAIN),
    ("cursor", ".cursor/mcp.json", Some(".cursor/mcp.json"), WITH_COMMENTS),
    ("vscode", ".config/Code/User/mcp.json", Some(".vscode/mcp.json"), WITH_COMMENTS),
    ("codex", ".codex/config.toml", Some(".codex/config.toml"), TOML),
];

const PLAIN: &str =
    "{\n  \"zoom\": 1,\n  \"mcpServers\": {\n    \"other\": {\n      \"command\": \"x\"\n    }\n  },\n  \"a\": []\n}\n";
const WITH_COMMENTS: &str = "{\n  // ours\n  \"mcpServers\": {\n    \"other\": { \"command\": \"x\" }, // theirs\n  },\n  \"servers\": {},\n}\n";
const TOML: &str = "model = \"m\" # the big one\n\n[mcp_servers.other]\ncommand = \"x\"\n";

/// A home and a project.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["home", "project"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn home(&self, file: &str) -> PathBuf {
        self.folder.path().join("home").join(file)
    }

    fn project(&self, file: &str) -> PathBuf {
        self.folder.path().join("project").join(file)
    }

    fn setup(&self, words: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.arg("setup").args(words).current_dir(self.project(""));
        command.env_clear().env("HOME", self.home("")).env("PATH", "/usr/bin:/bin");
        command.output().unwrap()
    }

    fn succeeds(&self, words: &[&str]) -> String {
        let output = self.setup(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, words: &[&str], status: i32) -> String {
        let output = self.setup(words);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn backup(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.before-mcptrace", path.display()))
}

/// The command that a client would start, as it reads its file.
fn command(client: &str, text: &str) -> String {
    let found = if client == "codex" {
        let value: toml::Table = text.parse().unwrap();
        serde_json::to_value(&value["mcp_servers"]["mcptrace"]).unwrap()
    } else {
        let plain: String = text.lines().map(|line| line.split(" //").next().unwrap().to_owned() + "\n").collect();
        let plain = plain.lines().filter(|line| !line.trim().starts_with("//")).collect::<String>();
        let plain: String = plain.split_whitespace().collect::<String>().replace(",}", "}");
        let value: Value = serde_json::from_str(&plain).unwrap_or_else(|error| panic!("{error}: {text}"));
        value[if client == "vscode" { "servers" } else { "mcpServers" }]["mcptrace"].clone()
    };
    let typed = found["type"].as_str();
    assert_eq!(typed, (!["codex", "claude-desktop"].contains(&client)).then_some("stdio"), "{text}");
    found["command"].as_str().unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn each_client_is_entered_merged_and_undone() {
    let machine = Machine::new();
    for (client, user, project, before) in CLIENTS {
        let scopes = [("user", Some(machine.home(user))), ("project", project.map(|file| machine.project(file)))];
        for (scope, path) in scopes {
            let Some(path) = path else {
                let said = machine.fails(&[client, "--scope", scope], 2);
                assert!(said.contains("no configuration for a project"), "{said}");
                continue;
            };
            // Where there was no file.
            let said = machine.succeeds(&[client, "--scope", scope]);
            assert!(said.contains("entered `mcptrace`") && said.contains("--remove"), "{said}");
            assert_eq!(command(client, &read(&path)), program().to_str().unwrap());
            machine.succeeds(&[client, "--scope", scope, "--remove"]);
            assert!(!path.exists() && !backup(&path).exists(), "{client} {scope}: something is left");
            // Where there was one.
            write(&path, before);
            machine.succeeds(&[client, "--scope", scope]);
            let with = read(&path);
            assert_eq!(command(client, &with), program().to_str().unwrap());
            assert_eq!(read(&backup(&path)), *before);
            for line in before.lines().filter(|line| line.contains("//") || line.contains('#')) {
                assert!(with.contains(line), "{client}: {line:?} is lost: {with}");
            }
            let said = machine.succeeds(&[client, "--scope", scope]);
            assert!(said.contains("nothing was changed"), "{said}");
            assert_eq!((read(&path), read(&backup(&path))), (with.clone(), (*before).to_owned()), "a second time");
            machine.succeeds(&[client, "--scope", scope, "--remove"]);
            let emptied = before.replace("\n  \"servers\": {},", "");
            let after = read(&path);
            assert!(after == *before || after == emptied, "{client} {scope}: {after}");
            assert!(machine.succeeds(&[client, "--scope", scope, "--remove"]).contains("nothing was changed"));
        }
    }
}

#[test]
fn printing_changes_nothing() {
    let machine = Machine::new();
    for (client, ..) in CLIENTS {
        let output = machine.setup(&[client, "--print"]);
        let (text, place) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(command(client, &text), program().to_str().unwrap());
        assert!(place.contains("reads it from ~/"), "{place}");
    }
    assert_eq!(fs::read_dir(machine.home("")).unwrap().count(), 0);
}

#[test]
fn options_and_names_are_those_that_were_asked_for() {
    let machine = Machine::new();
    let text = machine.succeeds(&["cursor", "--print", "--name", "kernel", "--", "--allow-scripts", "never"]);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["mcpServers"]["kernel"]["args"], serde_json::json!(["serve", "--allow-scripts", "never"]));
    let said = machine.fails(&["cursor", "--print", "--", "--allow-scripts", "maybe"], 2);
    assert!(said.contains("`mcptrace serve` does not start so"), "{said}");
    machine.fails(&["cursor", "--name", "a b"], 2);
    machine.fails(&["notepad"], 2);
}

#[test]
fn broken_files_are_left_alone_with_the_place_of_the_fault() {
    let machine = Machine::new();
    for (client, file, broken, place) in [
        ("claude-code", ".claude.json", "{\n  \"a\": 1,\n}\n", ":3:1: "),
        ("claude-code", ".claude.json", "{\n  // mine\n}\n", ":2:3: this client takes no comments"),
        ("vscode", ".config/Code/User/mcp.json", "{\n  // mine\n  \"a\": }\n", ":3:"),
        ("codex", ".codex/config.toml", "a = 1\nb = = 2\n", ":2:5: "),
    ] {
        let path = machine.home(file);
        write(&path, broken);
        for more in [vec![client], vec![client, "--remove"]] {
            let said = machine.fails(&more, 1);
            assert!(said.contains(&format!("{}{place}", path.display())), "{said}");
            assert!(said.contains("nothing was changed"), "{said}");
        }
        assert_eq!(read(&path), broken);
        assert!(!backup(&path).exists());
    }
}

/// Behind sudo it is root, in a mount namespace of its own where there is an account.
#[test]
fn behind_sudo_it_is_the_callers_file_and_stays_theirs() {
    const USER: u32 = 70_021;
    let machine = Machine::new();
    let home = machine.home("");
    chown(&home, Some(USER), Some(USER)).expect("this test needs root");
    let accounts = machine.folder.path().join("passwd");
    fs::write(&accounts, format!("root:x:0:0::/root:/bin/sh\nkim:x:{USER}:{USER}::{}:/bin/sh\n", home.display()))
        .unwrap();
    let copy = machine.folder.path().join("mcptrace");
    fs::copy(program(), &copy).unwrap();
    let run = |words: &str| {
        let script =
            format!("mount --bind {} /etc/passwd && exec {} setup {words}", accounts.display(), copy.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).current_dir("/");
        command
            .env_clear()
            .env("HOME", "/root")
            .env("SUDO_UID", USER.to_string())
            .env("PATH", "/usr/sbin:/usr/bin:/bin");
        command.output().unwrap()
    };
    let output = run("codex");
    assert!(output.status.success(), "{output:?}");
    let path = machine.home(".codex/config.toml");
    assert!(read(&path).contains(copy.to_str().unwrap()));
    for path in [&path, path.parent().unwrap()] {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (USER, USER), "{}", path.display());
    }
    // A link of theirs to what they may not write is followed with no more rights than they have.
    let roots = machine.folder.path().join("of-root.toml");
    fs::write(&roots, "").unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&roots, &path).unwrap();
    let output = run("codex");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(read(&roots), "");
}
