//! Every key of the configuration: the documentation, the check of names and the environment all come from this table.

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and name: `scripts.allow`.
    pub name: &'static str,
    /// The variable of the environment that overrides it; empty if none does.
    pub variable: &'static str,
    /// What it sets.
    pub what: &'static str,
    /// Why its default is what it is.
    pub why: &'static str,
}

const fn key(name: &'static str, variable: &'static str, what: &'static str, why: &'static str) -> Key {
    Key { name, variable, what, why }
}

/// All of them, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key(
        "scripts.allow",
        "MCPTRACE_ALLOW_SCRIPTS",
        "Which bpftrace scripts may run: `never`, those that the `policy` admits, or `any`.",
        "A script that the grammar and the rules have read does no more than look; `any` leaves bpftrace's own safe mode as the only fence.",
    ),
    key(
        "scripts.programs",
        "MCPTRACE_ALLOW_SCRIPT_PROGRAMS",
        "Whether scripts may attach to functions of programs (uprobe, uretprobe, usdt).",
        "Their arguments are what users type: passwords too.",
    ),
    key(
        "bpftrace.command",
        "",
        "The command of bpftrace, such as `sudo -n bpftrace`; empty: `bpftrace` on the PATH. Through sudo or doas there is no box, and a script \
         ends itself when its time is up; each result says so. Words are separated by blanks.",
        "In its box bpftrace is started by the server's launcher, which needs no sudo.",
    ),
    key(
        "limits.running",
        "",
        "Executions that run at once.",
        "Each costs a thread and some MB, and every event that is traced costs its program time.",
    ),
    key(
        "limits.running_each",
        "",
        "Executions of one principal that run at once: of a user on the socket, root too, or of a token; 0: three quarters of `running`. Whoever \
         starts a server on stdio is alone there and has all of `running`.",
        "None takes all places: an assistant that starts one after the other leaves some to others. Root can stop what others run.",
    ),
    key(
        "limits.kept",
        "",
        "Executions that have ended and can still be read.",
        "An assistant asks again within minutes, not days.",
    ),
    key("limits.keep_seconds", "", "How long they can be read, in seconds.", "As above; an hour."),
    key(
        "limits.events_mb",
        "",
        "Memory of the events of all executions, in MB.",
        "Eight executions of 8 MB, which is some 60,000 events each.",
    ),
    key(
        "limits.longest_seconds",
        "",
        "The longest run, in seconds.",
        "What runs longer than a day is what the recorder is for.",
    ),
    key(
        "limits.execution_percent",
        "MCPTRACE_EXECUTION_BUDGET",
        "What an execution of a client may cost before it is detached, in percent of one CPU; 0: no bound.",
        "Five percent of one CPU is not missed; a hotter hook deserves a filter.",
    ),
    key(
        "secrets.reveal",
        "MCPTRACE_REVEAL",
        "Kinds of strings that are shown as they are: `arguments` of programs, `names` that are looked up, `texts` of functions and USDT probes, `memory` that scripts \
         read in other ways, or `all`.",
        "Secrets hide in them, and what is shown to a model may be kept by others. What would show them is masked by probes and refused to scripts.",
    ),
    key(
        "audit.to",
        "",
        "Where it is recorded who did what: `auto`, `off`, `stderr`, `journal` or the path of a file.",
        "`auto` is stderr for what serves others (the daemon, HTTP), which the journal takes in under systemd, and off for stdio and commands.",
    ),
    key(
        "audit.file_mb",
        "",
        "How large the file gets before it is put aside as FILE.1, in MB.",
        "Some 30,000 executions.",
    ),
    key("audit.files", "", "How many files that are full are kept.", "With the one that is written 144 MB at most."),
    key(
        "audit.group_reads",
        "",
        "Whether the group of the file may read it (0640 instead of 0600).",
        "Who may trace need not see what others traced.",
    ),
    key(
        "audit.required",
        "",
        "Whether what cannot be recorded is refused.",
        "A log that misses what happened when its disk was full proves nothing.",
    ),
    key(
        "socket.path",
        "MCPTRACE_SOCKET",
        "Where the daemon is reached, and where `mcptrace serve` looks for it.",
        "What a service makes at its start belongs under /run.",
    ),
    key(
        "socket.group",
        "",
        "The group that owns the socket and may connect; empty or unknown: root and `users` only.",
        "Members of a group of their own, not everybody: who may trace sees what all programs do.",
    ),
    key("socket.users", "", "Ids of users that may connect beside root and the group.", "Nobody who was not named."),
    key("socket.connections", "", "Connections at once.", "Each may hold 16 MB while it sends a message that long."),
    key(
        "socket.connections_each",
        "",
        "Connections of one user at once, root's apart.",
        "A quarter of all, so that one user cannot keep others out.",
    ),
    key(
        "http.listen",
        "",
        "Whether `mcptrace daemon` serves over HTTP beside its socket (`mcptrace serve` does when it is told to by `--http`).",
        "What can be reached over the network is asked for, never there by itself.",
    ),
    key("http.address", "", "Where HTTP is served.", "Loopback: anything else needs `certificate` and `key`."),
    key(
        "http.tokens",
        "",
        "The file of tokens, `NAME SECRET [EXPIRY]` a line.",
        "The operator makes them. Without one, without MCPTRACE_HTTP_TOKEN and without `issuer` it does not start.",
    ),
    key("http.certificate", "", "The certificate with its chain, PEM.", "On loopback none is needed."),
    key("http.key", "", "Its private key, PEM, which others must not read.", "As above."),
    key(
        "http.url",
        "",
        "The server's own URL as clients write it, https://host.example/mcp; empty: as it listens.",
        "A request under another name is a rebound one, and a token for another audience is not for this server.",
    ),
    key("http.origins", "", "Origins of web pages that may call, such as https://app.example.", "None need to."),
    key(
        "http.issuer",
        "",
        "An identity provider whose tokens (JWT) let clients in; needs `jwks`.",
        "Most have none for this.",
    ),
    key("http.jwks", "", "The file of the provider's public keys, a JSON Web Key Set.", "Nothing is fetched."),
    key(
        "recorder.state",
        "MCPTRACE_STATE",
        "The folder of the history; empty: systemd's, or /var/lib/mcptrace.",
        "Where a service keeps what outlives it.",
    ),
    key(
        "recorder.size_mb",
        "",
        "How large the history may get, in MB; the oldest goes first.",
        "An hour of seconds, a day of ten seconds and a month of minutes fit.",
    ),
    key(
        "recorder.budget_percent",
        "",
        "What recording may cost, in percent of the time of all CPUs.",
        "One percent is not felt; above it the recorder leaves out what is dearest.",
    ),
    key(
        "recorder.syscalls",
        "",
        "Whether it looks at system calls for a part of the time.",
        "They tell most about what programs do, and cost most.",
    ),
    key(
        "recorder.results",
        "",
        "Whether results of executions are kept in the history, where there is one, so that they outlast the process.",
        "An id stays good after a restart; 256 results and 32 MB at most.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// All keys of a table, with their values.
    fn flat(value: &toml::Table) -> Vec<String> {
        let rows = value.iter().flat_map(|(section, rows)| {
            rows.as_table().into_iter().flatten().map(move |(name, _)| format!("{section}.{name}"))
        });
        let mut names: Vec<String> = rows.collect();
        names.sort();
        names
    }

    #[test]
    fn the_table_and_the_settings_have_the_same_keys() {
        let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        let settings = toml::Table::try_from(crate::config::Config::default()).unwrap();
        assert_eq!(names, flat(&settings));
    }

    #[test]
    fn every_key_says_what_and_why() {
        for key in KEYS {
            assert!(key.what.ends_with('.') && key.why.ends_with('.'), "{}", key.name);
        }
    }
}
