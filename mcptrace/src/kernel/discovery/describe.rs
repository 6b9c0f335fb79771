//! All about one kernel probe.

use std::fs;

use super::binary::{self, Binary, UsdtProbe};
use super::sources::{FENTRY_REFUSED, Sources};
use super::suggest::nearest;
use super::{Access, Argument, DiscoveryError, Family, KernelProbe, MAX_FILTER, Place};
use super::{format, split_path, usdt};
use crate::kernel::btf::{BtfError, Parameter};
use crate::kernel::tracefs;

/// The longest `print fmt` line that is passed on, in bytes.
const MAX_FORMAT: usize = 2000;

/// Describes a probe by its name: arguments with types and places, and what to know before using it.
pub fn describe(name: &str, access: Access) -> Result<KernelProbe, DiscoveryError> {
    if name.len() > MAX_FILTER {
        return Err(DiscoveryError::TooLong(name.len()));
    }
    let (first, rest) = name.split_once(':').ok_or_else(|| DiscoveryError::Unnamed(name.escape_debug().to_string()))?;
    // A name without a probe type is a tracepoint's: `sched:sched_switch`.
    let (family, rest) = Family::of(first).map_or((Family::Tracepoint, name), |family| (family, rest));
    let sources = Sources::new(access);
    let mut probe = match family {
        Family::Tracepoint => tracepoint(rest, &sources)?,
        Family::Rawtracepoint => raw_tracepoint(rest, &sources)?,
        Family::Kfunc => function(rest, &sources)?,
        Family::Kprobe => kprobe(rest, &sources)?,
        Family::Uprobe => uprobe(rest)?,
        Family::Usdt => usdt_probe(rest)?,
        Family::Software | Family::Hardware | Family::Profile | Family::Interval => counter(family, rest, &sources)?,
    };
    family.name().clone_into(&mut probe.kind);
    Ok(probe)
}

fn tracepoint(rest: &str, sources: &Sources) -> Result<KernelProbe, DiscoveryError> {
    let unknown = || unknown(Family::Tracepoint, rest, sources);
    let (category, event) = rest.split_once(':').ok_or_else(unknown)?;
    // The two become part of a path.
    if [category, event].iter().any(|part| part.is_empty() || part.contains(['/', '\0']) || part.starts_with('.')) {
        return Err(unknown());
    }
    let at = tracefs::ensure(sources.access.allow_mount)?;
    let text = fs::read_to_string(at.join("events").join(category).join(event).join("format"));
    let (arguments, print) = format::parse(&text.map_err(|_| unknown())?);
    Ok(KernelProbe {
        name: format!("tracepoint:{rest}"),
        arguments,
        format: print.map(|print| bounded(&print)),
        ..KernelProbe::default()
    })
}

fn raw_tracepoint(rest: &str, sources: &Sources) -> Result<KernelProbe, DiscoveryError> {
    let parameters = sources.btf()?.tracepoint(rest).map_err(|error| match error {
        BtfError::NoTracepoint(_) => unknown(Family::Rawtracepoint, rest, sources),
        other => other.into(),
    })?;
    Ok(KernelProbe {
        name: format!("rawtracepoint:{rest}"),
        arguments: arguments(parameters),
        notes: vec!["arguments as tp_btf and raw_tp programs receive them, in this order".into()],
        ..KernelProbe::default()
    })
}

fn function(rest: &str, sources: &Sources) -> Result<KernelProbe, DiscoveryError> {
    let function = rest.strip_prefix("vmlinux:").unwrap_or(rest);
    let prototype = sources.btf()?.function(function).map_err(|error| match error {
        BtfError::NoFunction(_) => unknown(Family::Kfunc, rest, sources),
        other => other.into(),
    })?;
    let refused = sources.access.fentry_works == Some(false);
    Ok(KernelProbe {
        name: format!("kfunc:vmlinux:{function}"),
        arguments: arguments(prototype.parameters),
        returns: Some(prototype.returns),
        notes: refused.then(|| FENTRY_REFUSED.to_owned()).into_iter().collect(),
        ..KernelProbe::default()
    })
}

fn kprobe(rest: &str, sources: &Sources) -> Result<KernelProbe, DiscoveryError> {
    let mut known = false;
    let listed = sources.each(Family::Kprobe, &mut |name| known |= name == rest);
    let prototype = sources.btf().and_then(|btf| btf.function(rest));
    if !known && (listed.is_ok() || prototype.is_err()) {
        return Err(unknown(Family::Kprobe, rest, sources));
    }
    let mut notes: Vec<String> = listed.err().map(|reason| format!("kprobes: {reason}")).into_iter().collect();
    notes.extend(prototype.as_ref().err().map(ToString::to_string));
    let prototype = prototype.ok();
    Ok(KernelProbe {
        name: format!("kprobe:{rest}"),
        returns: prototype.as_ref().map(|prototype| prototype.returns.clone()),
        arguments: prototype.map(|prototype| arguments(prototype.parameters)).unwrap_or_default(),
        notes,
        ..KernelProbe::default()
    })
}

fn uprobe(rest: &str) -> Result<KernelProbe, DiscoveryError> {
    let (path, symbol) = split_path(rest);
    let file = binary::open(path)?;
    let binary = Binary::parse(&file)?;
    let function = binary.function(symbol).ok_or_else(|| {
        let names: Vec<_> = binary.functions.iter().map(binary::Function::name).collect();
        let near = nearest(symbol, names.iter().map(AsRef::as_ref));
        unknown_in_binary(rest, near.into_iter().map(|name| format!("uprobe:{path}:{name}")).collect())
    })?;
    let offset = binary.offset(function.address);
    let place = Place { address: function.address, offset, size: Some(function.size), semaphore_offset: None };
    Ok(KernelProbe {
        name: format!("uprobe:{}:{symbol}", file.path().display()),
        places: vec![place],
        notes: vec![
            "a symbol table records no arguments: they follow the calling convention of the architecture".into(),
        ],
        ..KernelProbe::default()
    })
}

fn usdt_probe(rest: &str) -> Result<KernelProbe, DiscoveryError> {
    let (path, wanted) = split_path(rest);
    let file = binary::open(path)?;
    let binary = Binary::parse(&file)?;
    let whole = |probe: &UsdtProbe| format!("{}:{}", probe.provider, probe.name);
    let found: Vec<&UsdtProbe> = binary.probes.iter().filter(|probe| whole(probe) == wanted).collect();
    let Some(first) = found.first() else {
        let names: Vec<String> = binary.probes.iter().map(whole).collect();
        let near = nearest(wanted, names.iter().map(String::as_str));
        return Err(unknown_in_binary(rest, near.into_iter().map(|name| format!("usdt:{path}:{name}")).collect()));
    };
    Ok(KernelProbe {
        name: format!("usdt:{}:{wanted}", file.path().display()),
        arguments: usdt::arguments(&first.arguments),
        format: Some(first.arguments.clone()),
        places: found.iter().map(|probe| usdt_place(&binary, probe)).collect(),
        notes: usdt_notes(&found),
        ..KernelProbe::default()
    })
}

fn usdt_place(binary: &Binary<'_>, probe: &UsdtProbe) -> Place {
    Place {
        address: probe.address,
        offset: binary.offset(probe.address),
        size: None,
        semaphore_offset: probe.semaphore.and_then(|semaphore| binary.offset(semaphore)),
    }
}

fn usdt_notes(places: &[&UsdtProbe]) -> Vec<String> {
    let semaphore = places.iter().any(|place| place.semaphore.is_some());
    let differ = places.iter().any(|place| place.arguments != places[0].arguments);
    let semaphore = if semaphore {
        "it has a semaphore: the probe is off until a tracer increments it"
    } else {
        "it has no semaphore: the probe is always on"
    };
    let differ = differ.then_some("its places hold their arguments differently; those of the first are shown");
    [Some(semaphore), differ].into_iter().flatten().map(str::to_owned).collect()
}

fn counter(family: Family, rest: &str, sources: &Sources) -> Result<KernelProbe, DiscoveryError> {
    let event = rest.split(':').next().unwrap_or_default();
    let mut known = false;
    let listed = sources.each(family, &mut |name| known |= name.trim_end_matches(':') == event);
    if !known && listed.is_ok() {
        return Err(unknown(family, rest, sources));
    }
    let use_of_number = match family {
        Family::Profile => "fires on every CPU; the number behind the unit is the rate (hz) or the period",
        Family::Interval => "fires on one CPU; the number behind the unit is the rate (hz) or the period",
        _ => "the number behind the name is how many events make it fire",
    };
    let reason = listed.err().map(|reason| format!("{}: {reason}", family.name()));
    Ok(KernelProbe {
        name: format!("{}:{rest}", family.name()),
        notes: [Some(use_of_number.to_owned()), reason].into_iter().flatten().collect(),
        ..KernelProbe::default()
    })
}

fn arguments(parameters: Vec<Parameter>) -> Vec<Argument> {
    let one = |Parameter { name, type_name }| Argument { name, type_name, ..Argument::default() };
    parameters.into_iter().map(one).collect()
}

fn unknown(family: Family, rest: &str, sources: &Sources) -> DiscoveryError {
    DiscoveryError::Unknown {
        name: format!("{}:{rest}", family.name()).escape_debug().to_string(),
        did_you_mean: sources.near(family, rest),
    }
}

fn unknown_in_binary(name: &str, did_you_mean: Vec<String>) -> DiscoveryError {
    DiscoveryError::Unknown { name: name.escape_debug().to_string(), did_you_mean }
}

fn bounded(text: &str) -> String {
    if text.len() <= MAX_FORMAT {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_FORMAT)])
}
