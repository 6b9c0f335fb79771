//! How long look-ups of names take.

use aya::maps::MapError;
use mcptrace_wire::{Histogram as Kept, LOOKUPS, Lookup, PATH_UNREADABLE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Found, OptionError, Probe, functions, options::Transport, parse, places, plain, plan_of, put};
use crate::{
    clock::Clock,
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        attached::{Maps, Plan},
        hook::{Attach, Function},
    },
    report::{Field, Histogram, Report, Row},
    secrets::{Secret, masked_name},
    text::{comm, untrusted},
};

/// The functions by [`mcptrace_wire::LookupBy`]; programs of the same names.
const FUNCTIONS: [&str; LOOKUPS as usize] =
    ["getaddrinfo", "gethostbyname", "gethostbyname2", "gethostbyname_r", "gethostbyname2_r"];
/// Buffer for look-ups: 10,000 of 100 bytes.
const EVENT_BYTES: u32 = 1 << 20;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct DnsLatency;

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Program or library, by path or name
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub binary: Option<String>,
    /// Also list single events that took at least this long, in microseconds
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub slower_than_us: Option<u64>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Probe for DnsLatency {
    const NAME: &'static str = "dns_latency";
    const SUMMARY: &'static str = "How long do programs wait for names to be resolved, and which look-ups fail?";
    const CATEGORY: &'static str = "network";
    const DETAILS: &'static str = "Calls of getaddrinfo, gethostbyname and kin in the C library, from entry to return: cache, /etc/hosts, \
        DNS servers and their time-outs together. A histogram by function and outcome, and an event for each look-up, or with \
        slower_than_us for the slow ones. error is getaddrinfo's (EAI_NONAME: there is no such name; EAI_AGAIN: no answer). Names are \
        masked: their length and a mark by which the same name is known again, until the operator sets MCPTRACE_REVEAL=names. Not seen: \
        programs with a resolver of their own (Go, static ones, browsers, dig), look-ups of a name by address (getnameinfo, gethostbyaddr), and containers with a C library of their own unless \
        filter.pid or options.binary leads to it.";
    const NEXT: &'static [&'static str] = &[
        "all look-ups take whole seconds: a server that does not answer (/etc/resolv.conf); tcp_retransmits and packet_drops",
        "look-ups are fast and requests slow: tcp_connections with filter.pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"dns_latency","options":{"slower_than_us":100000},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/dns_latency.o");
    const HOOKS: &'static [Attach] = &[
        Attach::functions("returns", "libc:getaddrinfo, gethostbyname…"),
        Attach::functions("getaddrinfo", "libc:getaddrinfo"),
        Attach::functions("gethostbyname", "libc:gethostbyname"),
        Attach::functions("gethostbyname2", "libc:gethostbyname2"),
        Attach::functions("gethostbyname_r", "libc:gethostbyname_r"),
        Attach::functions("gethostbyname2_r", "libc:gethostbyname2_r"),
    ];
    const NEEDS: &'static [&'static str] = &["TASK_COMM"];
    const COUNTS: &'static str = "returns";
    const COST_NS: f64 = 2_200.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.attach = attach(options.binary.as_deref().unwrap_or(functions::LIBC), context)?;
        plan.globals.extend(functions::register_globals());
        let slower_than = options.slower_than_us.unwrap_or(0).saturating_mul(1000);
        plan.globals.push(("SLOWER_THAN_NS", slower_than.to_ne_bytes().to_vec()));
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let mut found = found(&maps.array("HISTOGRAMS")?);
        if !Secret::Names.is_revealed() {
            found.notes.push(Secret::Names.note());
        }
        Ok(found)
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("latency", "ns")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "name"]);
        fields.push(Field::new("latency_ns", "ns"));
        fields.extend(plain(&["function", "error", "pid", "tid", "comm"]));
        fields.extend(plain(&places::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse_lookup(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (lookup, name) = parse_lookup(record)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(lookup.time_ns));
        if let Some(name) = name {
            let revealed = Secret::Names.is_revealed();
            put(&mut row, "name", if revealed { untrusted(name, 256) } else { masked_name(name) });
        }
        put(&mut row, "latency_ns", lookup.latency_ns);
        put(&mut row, "function", function(lookup.function));
        if let Some(error) = error(lookup.function, lookup.result) {
            put(&mut row, "error", error);
        }
        put(&mut row, "pid", lookup.pid);
        put(&mut row, "tid", lookup.tid);
        put(&mut row, "comm", comm(&lookup.comm));
        places::insert(&mut row, lookup.cgroup, lookup.pid);
        Some(row)
    }
}

/// The returns first, so that no look-up is begun that cannot end. Not every C library has all functions.
fn attach(binary: &str, context: &Context<'_>) -> Result<Vec<Attach>, OptionError> {
    let pid = functions::scope(context);
    let file = functions::open(binary, context)?;
    let parsed = functions::read(&file)?;
    let find = |symbol: &'static str| -> Option<(&'static str, Function)> {
        let offset = parsed.offset(parsed.function(symbol)?.address)?;
        Some((symbol, functions::place(&format!("{binary}:{symbol}"), file.path(), offset, pid, None)))
    };
    let known: Vec<_> = FUNCTIONS.into_iter().filter_map(find).collect();
    if known.is_empty() {
        let message = format!("options.binary: `{binary}` has none of {}", FUNCTIONS.join(", "));
        return Err(OptionError::new(message));
    }
    let returns = known.iter().map(|(_, place)| Attach::function("returns", place.clone()));
    Ok(returns.chain(known.iter().map(|(symbol, place)| Attach::function(symbol, place.clone()))).collect())
}

/// A record and its name, if the name could be read and is as long as the record says.
fn parse_lookup(record: &[u8]) -> Option<(Lookup, Option<&[u8]>)> {
    let (lookup, name) = parse::<Lookup>(record)?;
    if lookup.name_len == PATH_UNREADABLE {
        return name.is_empty().then_some((lookup, None));
    }
    (name.len() == lookup.name_len as usize).then_some((lookup, Some(name)))
}

fn function(index: u32) -> &'static str {
    FUNCTIONS.get(index as usize).copied().unwrap_or("unknown")
}

/// Why a look-up found nothing. Only getaddrinfo says more than that (netdb.h of glibc).
fn error(function: u32, result: u64) -> Option<String> {
    let code = result as i32;
    match (function, code) {
        (0, 0) => None,
        (0, -2) => Some("EAI_NONAME".into()),
        (0, -3) => Some("EAI_AGAIN".into()),
        (0, -4) => Some("EAI_FAIL".into()),
        (0, -5) => Some("EAI_NODATA".into()),
        (0, -6) => Some("EAI_FAMILY".into()),
        (0, -8) => Some("EAI_SERVICE".into()),
        (0, -10) => Some("EAI_MEMORY".into()),
        (0, -11) => Some("EAI_SYSTEM".into()),
        (0, other) => Some(format!("EAI {other}")),
        (1 | 2, _) => (result == 0).then(|| "not found".into()),
        _ => (code != 0).then(|| crate::errno::name(code).clone()),
    }
}

fn found(kept: &[Kept]) -> Found {
    let of = |(index, kept): (usize, &Kept)| {
        let mut all = Distribution::default();
        all.add(kept);
        let outcome = if index < LOOKUPS as usize { "found" } else { "failed" };
        let name = function(index as u32 % LOOKUPS);
        let key = Row::from_iter([("function".to_owned(), name.into()), ("outcome".to_owned(), outcome.into())]);
        (all.count() > 0).then(|| all.series(key))
    };
    let mut series: Vec<_> = kept.iter().enumerate().filter_map(of).collect();
    series.sort_by_key(|one| std::cmp::Reverse(one.count));
    let delivered = series.iter().map(|one| one.count).sum();
    let histogram = Histogram {
        unit: "ns".into(),
        key: vec!["function".into(), "outcome".into()],
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    Found { report: Some(Report::Histogram(histogram)), delivered, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_each_function() {
        assert_eq!(error(0, -2_i64 as u64).unwrap(), "EAI_NONAME");
        assert_eq!(error(0, 0xffff_fffd).unwrap(), "EAI_AGAIN", "the upper half of the register means nothing");
        assert_eq!((error(0, 0), error(1, 0x7fff_1234), error(3, 0)), (None, None, None));
        assert_eq!(error(1, 0).unwrap(), "not found");
        assert_eq!(error(3, 34).unwrap(), "ERANGE");
    }

    #[test]
    fn what_was_found_and_what_failed_are_apart() {
        let mut kept = vec![Kept::EMPTY; 2 * LOOKUPS as usize];
        kept[0].buckets[7] = 5;
        kept[LOOKUPS as usize].buckets[9] = 2;
        let found = found(&kept);
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!(found.delivered, 7);
        let outcomes: Vec<_> = histogram.series.iter().map(|one| (&one.key["outcome"], one.count)).collect();
        assert_eq!(outcomes, [(&"found".into(), 5), (&"failed".into(), 2)]);
        assert!(histogram.series.iter().all(|one| one.key["function"] == "getaddrinfo"));
    }
}
