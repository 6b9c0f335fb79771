//! The clients: where each keeps its servers, and how. Checked against their documentation in November 2026.

use std::path::{Path, PathBuf};

use super::{
    Failure,
    entry::{Entry, Fault},
    json::Json,
    person::Person,
    toml::Toml,
};

/// An MCP client.
#[derive(Debug)]
pub(super) struct Client {
    /// As in the command.
    pub(super) name: &'static str,
    /// As its makers call it.
    pub(super) title: &'static str,
    /// The file of a user.
    user: fn(&Person) -> PathBuf,
    /// The file of a project, below its folder.
    project: Option<&'static str>,
    /// How the file is written.
    pub(super) format: Format,
    /// What to do next.
    pub(super) next: &'static str,
}

/// All that there are.
pub(super) const CLIENTS: &[Client] = &[
    // https://code.claude.com/docs/en/mcp: scopes user and project. CLAUDE_CONFIG_DIR moves the file of the user.
    Client {
        name: "claude-code",
        title: "Claude Code",
        user: |person| person.folder("CLAUDE_CONFIG_DIR", "").join(".claude.json"),
        project: Some(".mcp.json"),
        format: Format::Json(Json { servers: "mcpServers", typed: true, comments: false }),
        next: "Claude Code takes it up when it starts, and /mcp shows it",
    },
    // https://modelcontextprotocol.io/docs/develop/connect-local-servers; on Linux Electron's folder of the user's configuration.
    Client {
        name: "claude-desktop",
        title: "Claude Desktop",
        user: |person| person.folder("XDG_CONFIG_HOME", ".config").join("Claude/claude_desktop_config.json"),
        project: None,
        format: Format::Json(Json { servers: "mcpServers", typed: false, comments: false }),
        next: "Quit Claude Desktop and start it again",
    },
    // https://cursor.com/docs/mcp
    Client {
        name: "cursor",
        title: "Cursor",
        user: |person| person.home.join(".cursor/mcp.json"),
        project: Some(".cursor/mcp.json"),
        format: Format::Json(Json { servers: "mcpServers", typed: true, comments: true }),
        next: "Cursor takes it up when it starts, and its settings show it",
    },
    // https://code.visualstudio.com/docs/agents/reference/mcp-configuration; the user's file is that of the default profile.
    Client {
        name: "vscode",
        title: "VS Code",
        user: |person| person.folder("XDG_CONFIG_HOME", ".config").join("Code/User/mcp.json"),
        project: Some(".vscode/mcp.json"),
        format: Format::Json(Json { servers: "servers", typed: true, comments: true }),
        next: "`MCP: List Servers` of VS Code shows and starts it",
    },
    // https://developers.openai.com/codex/mcp; the file of a project counts once the project is trusted.
    Client {
        name: "codex",
        title: "Codex",
        user: |person| person.folder("CODEX_HOME", ".codex").join("config.toml"),
        project: Some(".codex/config.toml"),
        format: Format::Toml(Toml { servers: "mcp_servers" }),
        next: "Codex takes it up when it starts, and /mcp shows it",
    },
];

impl Client {
    /// Its file; `here` is the folder of the project.
    pub(super) fn path(&self, scope: Scope, person: &Person, here: &Path) -> Result<PathBuf, Failure> {
        match (scope, self.project) {
            (Scope::User, _) => Ok((self.user)(person)),
            (Scope::Project, Some(file)) => Ok(here.join(file)),
            (Scope::Project, None) => {
                Err(Failure::usage(format!("{} has no configuration for a project; leave out --scope", self.title)))
            }
        }
    }
}

/// For which work a server is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything that a user does.
    User,
    /// The project in this folder, for all who work on it.
    Project,
}

impl Scope {
    pub(super) const ALL: &[Self] = &[Self::User, Self::Project];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Project => "project",
        }
    }

    pub(super) fn help(self) -> &'static str {
        match self {
            Self::User => "all that you do with the client",
            Self::Project => "the project in the present folder, for all who work on it",
        }
    }
}

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Format {
    /// JSON, with or without comments.
    Json(Json),
    /// TOML.
    Toml(Toml),
}

impl Format {
    /// The text with the entry; the same text if it has it already.
    pub(super) fn enter(self, text: &str, entry: &Entry) -> Result<String, Fault> {
        match self {
            Self::Json(json) => json.enter(text, entry),
            Self::Toml(toml) => toml.enter(text, entry),
        }
    }

    /// The text without the entry of a name; `None` if it has none.
    pub(super) fn remove(self, text: &str, name: &str) -> Result<Option<String>, Fault> {
        match self {
            Self::Json(json) => json.remove(text, name),
            Self::Toml(toml) => toml.remove(text, name),
        }
    }

    /// Whether a text says nothing at all.
    pub(super) fn is_empty(self, text: &str) -> bool {
        match self {
            Self::Json(_) => text.split_whitespace().collect::<String>() == "{}",
            Self::Toml(_) => text.trim().is_empty(),
        }
    }
}

/// A file and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) path: &'a Path,
    pub(super) person: &'a Person,
}

impl Place<'_> {
    /// As people write it.
    pub(super) fn shown(self) -> String {
        match self.path.strip_prefix(&self.person.home) {
            Ok(rest) if self.person.home.parent().is_some() => format!("~/{}", rest.display()),
            _ => self.path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_where_clients_look_for_them() {
        let person = Person::with_home("/home/kim", |_| None);
        let path = |name: &str, scope| {
            let client = CLIENTS.iter().find(|client| client.name == name).unwrap();
            client.path(scope, &person, Path::new("/src")).map(|path| path.display().to_string())
        };
        for (name, user, project) in [
            ("claude-code", "/home/kim/.claude.json", "/src/.mcp.json"),
            ("cursor", "/home/kim/.cursor/mcp.json", "/src/.cursor/mcp.json"),
            ("vscode", "/home/kim/.config/Code/User/mcp.json", "/src/.vscode/mcp.json"),
            ("codex", "/home/kim/.codex/config.toml", "/src/.codex/config.toml"),
        ] {
            assert_eq!(path(name, Scope::User).unwrap(), user);
            assert_eq!(path(name, Scope::Project).unwrap(), project);
        }
        assert_eq!(path("claude-desktop", Scope::User).unwrap(), "/home/kim/.config/Claude/claude_desktop_config.json");
        assert!(path("claude-desktop", Scope::Project).unwrap_err().message.contains("no configuration for a project"));
    }

    #[test]
    fn variables_of_the_clients_move_their_files() {
        let person = Person::with_home("/home/kim", |name| Some(format!("/moved/{name}").into()));
        let user = |name: &str| {
            let client = CLIENTS.iter().find(|client| client.name == name).unwrap();
            client.path(Scope::User, &person, Path::new("/")).unwrap().display().to_string()
        };
        assert_eq!(user("claude-code"), "/moved/CLAUDE_CONFIG_DIR/.claude.json");
        assert_eq!(user("codex"), "/moved/CODEX_HOME/config.toml");
        assert_eq!(user("vscode"), "/moved/XDG_CONFIG_HOME/Code/User/mcp.json");
        assert_eq!(user("cursor"), "/home/kim/.cursor/mcp.json");
    }

    #[test]
    fn a_home_is_written_as_people_write_it() {
        let person = Person::with_home("/home/kim", |_| None);
        let shown = |path: &str| Place { path: Path::new(path), person: &person }.shown();
        assert_eq!(shown("/home/kim/.claude.json"), "~/.claude.json");
        assert_eq!(shown("/src/.mcp.json"), "/src/.mcp.json");
    }
}
