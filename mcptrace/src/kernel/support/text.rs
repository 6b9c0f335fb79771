//! What a person wants to read of it: short, each missing thing with the way to get it.

use std::fmt::Write as _;

use super::{Check, Info, Part, Problem};
use crate::{bpftrace::policy::Level, kernel::privilege::Held};

/// Renders within so many bytes; says what was left out.
pub fn text(info: &Info, most_bytes: usize) -> String {
    let mut lines = head(info);
    lines.push(recorder(info));
    lines.extend(info.problems.iter().flat_map(problem));
    lines.push(String::new());
    lines.push("Native probes".to_owned());
    lines.extend(probes(info));
    lines.extend(section("Ways to attach", &info.attach_types));
    lines.extend(section("Maps", &info.map_types));
    lines.extend(section("Helpers", &info.helpers));
    lines.extend(bpftrace(info));
    lines.extend(capabilities(info));
    bounded(&lines, most_bytes)
}

fn probes(info: &Info) -> Vec<String> {
    let (run, fail): (Vec<_>, Vec<_>) = info.probes.iter().partition(|probe| probe.available);
    let mut lines: Vec<_> = run.iter().map(|one| format!("  yes  {:16} {}", one.name, one.hooks.join(", "))).collect();
    let check = |probe: &&super::ProbeSupport| Check {
        name: probe.name.clone(),
        reason: probe.reason.clone(),
        remedy: probe.remedy.clone(),
        ..Check::default()
    };
    let failing: Vec<_> = fail.iter().map(check).collect();
    lines.extend(reasons("no", failing.iter()));
    lines
}

fn head(info: &Info) -> Vec<String> {
    let verdict = match (info.native_works, info.probes.iter().filter(|probe| !probe.available).count()) {
        (true, 0) => "all native probes run here".to_owned(),
        (true, some) => format!("{} of {} native probes run here", info.probes.len() - some, info.probes.len()),
        (false, _) => "native probes do not run here".to_owned(),
    };
    let cpus = info.cpus;
    let btf = if info.btf.present { format!("{} KB", info.btf.size_bytes >> 10) } else { "missing".to_owned() };
    let place = |place: &super::Place| place.mounted_at.clone().unwrap_or_else(|| "not mounted".to_owned());
    vec![
        format!("mcptrace {}: {verdict}", info.mcptrace),
        format!("kernel {} {}, {} of {} CPUs, BTF {btf}", info.kernel, info.arch, cpus.online, cpus.possible),
        format!(
            "lockdown {}, tracefs {}, cgroup2 {}",
            info.security.lockdown,
            place(&info.tracefs),
            place(&info.cgroup2)
        ),
        format!("uid {}, capabilities: {}", info.process.uid, held(info)),
    ]
}

fn recorder(info: &Info) -> String {
    let Some(status) = &info.recorder else {
        return "recorder: not running (`mcptrace daemon` keeps a history of what the machine does)".to_owned();
    };
    let off = status.groups.iter().filter(|group| !matches!(&*group.state, "on" | "duty_cycle"));
    let off: Vec<_> = off.map(|group| format!("{} {}", group.name, group.state)).collect();
    let without = if off.is_empty() { String::new() } else { format!("; without {}", off.join(", ")) };
    let kept = status.error.as_ref().map_or_else(String::new, |error| format!(" (nothing is kept: {error})"));
    format!(
        "recorder: to {}{kept}, {} s, costs {:.2} of {} % of CPU time{without}",
        status.sink, status.ticks, status.cost_percent, status.budget_percent
    )
}

fn held(info: &Info) -> String {
    let names = |held: bool| {
        let rows = info.process.capabilities.iter().filter(|row| row.held == held);
        rows.map(|row| row.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    match (names(true), names(false)) {
        (held, lacking) if lacking.is_empty() => held,
        (held, lacking) if held.is_empty() => format!("none; lacks {lacking}"),
        (held, lacking) => format!("{held}; lacks {lacking}"),
    }
}

fn problem(problem: &Problem) -> [String; 2] {
    let mark = if problem.blocking { "!!" } else { " !" };
    [format!("{mark} {}", problem.what), format!("   -> {}", problem.remedy)]
}

fn section(title: &str, checks: &[Check]) -> Vec<String> {
    let names = |state| checks.iter().filter(move |check| check.works == state).map(|check| check.name.as_str());
    let mut lines = vec![String::new(), title.to_owned()];
    let works: Vec<_> = names(Some(true)).collect();
    if !works.is_empty() {
        lines.push(format!("  yes  {}", works.join(" ")));
    }
    for (mark, state) in [("no", Some(false)), ("?", None)] {
        lines.extend(reasons(mark, checks.iter().filter(|check| check.works == state)));
    }
    lines
}

/// One line for all that fail for the same reason, and one for what to do about it.
fn reasons<'a>(mark: &str, checks: impl Iterator<Item = &'a Check>) -> Vec<String> {
    let mut rows: Vec<(&Check, Vec<&str>)> = Vec::new();
    for check in checks {
        match rows.iter_mut().find(|row| (&row.0.reason, &row.0.remedy) == (&check.reason, &check.remedy)) {
            Some(row) => row.1.push(&check.name),
            None => rows.push((check, vec![&check.name])),
        }
    }
    let line = |(check, names): (&Check, Vec<&str>)| {
        let reason = check.reason.as_deref().unwrap_or_default();
        let remedy = check.remedy.as_ref().map(|remedy| format!("       -> {remedy}"));
        [Some(format!("  {mark:4} {}: {reason}", names.join(" "))), remedy]
    };
    rows.into_iter().flat_map(line).flatten().collect()
}

fn bpftrace(info: &Info) -> Vec<String> {
    let Some(bpftrace) = &info.bpftrace else { return Vec::new() };
    let version = bpftrace.version.as_deref().unwrap_or("not installed");
    let off: Vec<_> = bpftrace.features.iter().filter(|one| one.value == "no").map(|one| one.name.as_str()).collect();
    let mut line = format!("  {} {version}", bpftrace.command.join(" "));
    if !off.is_empty() {
        let _ = write!(line, ", says it lacks: {}", off.join(", "));
    }
    vec![String::new(), "bpftrace".to_owned(), line.trim_end().to_owned(), scripts(info)]
}

/// What is held, and what for: by what traces, and by what builds the box of scripts. Nothing does where no scripts are allowed.
fn capabilities(info: &Info) -> Vec<String> {
    let scripts = &info.scripts;
    let builder = match scripts.launcher {
        _ if scripts.policy.level == Level::Never => None,
        Some(launcher) => Some(format!("  of the launcher, process {launcher}, for the box of scripts")),
        None => Some("  of this process, for the box of scripts (a server starts a launcher for it)".to_owned()),
    };
    let mut lines = vec![String::new(), "Capabilities".to_owned(), "  of this process, for native probes".to_owned()];
    lines.extend(info.process.capabilities.iter().map(row));
    if let Some(builder) = builder {
        lines.push(builder);
        lines.extend(scripts.capabilities.iter().map(row));
    }
    lines
}

fn row(one: &Held) -> String {
    format!("    {:4} {:20} {}", if one.held { "yes" } else { "no" }, one.name, one.purpose)
}

fn scripts(info: &Info) -> String {
    let lacking: Vec<String> = info.scripts.parts.iter().filter(|part| !part.works).map(lack).collect();
    let lacking = if lacking.is_empty() { "complete".to_owned() } else { format!("lacks {}", lacking.join(", ")) };
    format!("  scripts allowed: {}; their box: {lacking}", info.scripts.policy.level)
}

fn lack(part: &Part) -> String {
    format!("{} ({})", part.name, part.reason.as_deref().unwrap_or_default())
}

/// Whole lines, as many as fit.
fn bounded(lines: &[String], most_bytes: usize) -> String {
    const NOTICE: usize = 40;
    let mut text = String::new();
    for (shown, line) in lines.iter().enumerate() {
        let rest: usize = lines[shown..].iter().map(|line| line.len() + 1).sum();
        if text.len() + rest > most_bytes && text.len() + line.len() + 1 + NOTICE > most_bytes {
            let _ = writeln!(text, "[{} more lines left out]", lines.len() - shown);
            break;
        }
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, works: Option<bool>, reason: &str) -> Check {
        let reason = works.is_none_or(|works| !works).then(|| reason.to_owned());
        Check { name: name.into(), works, reason, ..Check::default() }
    }

    #[test]
    fn what_fails_for_one_reason_is_one_line() {
        let checks = [
            check("a", Some(true), ""),
            check("b", Some(false), "no kprobes"),
            check("c", Some(false), "no kprobes"),
            check("d", None, "not tested"),
        ];
        let mut lines = section("Ways", &checks);
        assert_eq!(lines, ["", "Ways", "  yes  a", "  no   b c: no kprobes", "  ?    d: not tested"]);
        let with_remedy = Check { remedy: Some("do that".into()), ..check("e", Some(false), "no e") };
        lines = section("Ways", &[with_remedy]);
        assert_eq!(lines[2..], ["  no   e: no e", "       -> do that"]);
    }

    #[test]
    fn text_is_bounded_in_whole_lines_and_says_what_is_left_out() {
        let lines: Vec<String> = (0..50).map(|number| format!("line {number} of some length")).collect();
        let whole = bounded(&lines, 1 << 20);
        assert_eq!(whole.lines().count(), 50);
        assert_eq!(bounded(&lines, whole.len()), whole, "what fits exactly is not cut");
        for most in [60, 100, 333, 999] {
            let text = bounded(&lines, most);
            assert!(text.len() <= most, "{most}: {}", text.len());
            let left: usize = text.rsplit_once('[').unwrap().1.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(left + text.lines().count() - 1, 50);
        }
    }
}
