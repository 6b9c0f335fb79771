//! `mcptrace describe`: all about one probe, native or the kernel's.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Failure, config, output, probe_help};
use crate::{
    executions,
    kernel::discovery::{self, Access, Argument, KernelProbe, Place},
    report::text::units::plain,
};

const AFTER_HELP: &str = "\
Examples:
  mcptrace describe file_opens
  mcptrace describe tracepoint:sched:sched_switch
  mcptrace describe kfunc:vfs_read";

/// Longest name or type that is shown, in characters.
const LONGEST: usize = 512;

pub(super) fn define() -> Command {
    Command::new("describe")
        .about("Describe a probe: options, fields with units, hooks, cost, example")
        .arg(
            Arg::new("probe")
                .value_name("PROBE")
                .required(true)
                .help("A native probe, or a kernel probe as `list` names it"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
        .after_help(AFTER_HELP)
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    // It needs no setting; one that is wrong is an error as everywhere.
    config::load(matches)?;
    let name = matches.get_one::<String>("probe").map_or("", String::as_str);
    let json = matches.get_flag("json");
    if name.contains(':') {
        let access = Access { allow_mount: true, fentry_works: None };
        let probe = discovery::describe(name, access)?;
        return if json { output::json(&probe) } else { output::text(&kernel_text(&probe)) };
    }
    let entry = executions::find(&name.replace('-', "_")).map_err(|refusal| unknown(name, refusal.did_you_mean()))?;
    if json { output::json(&probe_help::json(entry)) } else { output::text(&(probe_help::text(entry) + "\n")) }
}

fn unknown(name: &str, near: Option<&str>) -> Failure {
    let near = near.map(|near| format!("\n\n  did you mean `{near}`?")).unwrap_or_default();
    let name = name.escape_debug();
    Failure::usage(format!(
        "there is no probe `{name}`{near}\n\nmcptrace list shows the native probes, mcptrace list '*{name}*' kernel probes"
    ))
}

fn kernel_text(probe: &KernelProbe) -> String {
    let mut lines = vec![format!("{} ({})", plain(&probe.name, LONGEST), probe.kind)];
    if !probe.arguments.is_empty() {
        lines.push("Arguments:".into());
        lines.extend(probe.arguments.iter().map(argument));
    }
    lines.extend(probe.returns.iter().map(|returns| format!("Returns: {}", plain(returns, LONGEST))));
    lines.extend(probe.format.iter().map(|format| format!("Printed as: {}", plain(format, 2000))));
    lines.extend(probe.places.iter().map(place));
    lines.extend(probe.notes.iter().map(|note| format!("note: {}", plain(note, LONGEST))));
    lines.join("\n") + "\n"
}

fn argument(argument: &Argument) -> String {
    let at = argument.offset.zip(argument.size).map(|(offset, size)| format!("  {size} bytes at {offset}"));
    let held = argument.operand.as_ref().map(|operand| format!("  in {}", plain(operand, 64)));
    let (name, type_name) = (plain(&argument.name, LONGEST), plain(&argument.type_name, LONGEST));
    format!("  {name:<24} {type_name:<24}{}{}", at.unwrap_or_default(), held.unwrap_or_default()).trim_end().to_owned()
}

fn place(place: &Place) -> String {
    let offset = place.offset.map(|offset| format!(", file offset {offset:#x}")).unwrap_or_default();
    let size = place.size.map(|size| format!(", {size} bytes")).unwrap_or_default();
    let semaphore = place.semaphore_offset.map(|at| format!(", semaphore at {at:#x}")).unwrap_or_default();
    format!("At address {:#x}{offset}{size}{semaphore}", place.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracepoint_shows_its_arguments_and_where_they_are() {
        let size = Argument {
            name: "prev_pid".into(),
            type_name: "pid_t".into(),
            offset: Some(24),
            size: Some(4),
            ..Argument::default()
        };
        let probe = KernelProbe {
            name: "tracepoint:a:b".into(),
            kind: "tracepoint".into(),
            arguments: vec![size],
            ..KernelProbe::default()
        };
        let expected = format!(
            "tracepoint:a:b (tracepoint)\nArguments:\n  prev_pid{}pid_t{}4 bytes at 24\n",
            " ".repeat(17),
            " ".repeat(21)
        );
        assert_eq!(kernel_text(&probe), expected);
    }
}
