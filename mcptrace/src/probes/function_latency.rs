//! How long functions of programs and libraries take.

use std::time::{Duration, Instant};

use aya::maps::MapError;
use mcptrace_wire::{Histogram as Kept, SlowCall};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Found, OptionError, Probe, functions, options::Transport, parse, places, plain, plan_of, put};
use crate::{
    clock::Clock,
    distribution::{Distribution, RELATIVE_ERROR},
    kernel::{
        attached::{Maps, Plan},
        discovery::binary::Binary,
        hook::{Attach, Function},
        symbols::{demangled, is_mangled},
    },
    report::{Field, Histogram, Report, Row},
    suggest::nearest,
    text::{self, comm, matches_glob},
};

/// Functions at once. Each costs two breakpoints, which kernels before 6.6 set and remove one by one.
const MOST_FUNCTIONS: usize = 100;
/// How long names may be demangled for.
const DEMANGLING: Duration = Duration::from_secs(1);
/// Functions that an error names when there are too many.
const NAMED: usize = 5;
/// Calls under way at once.
const MOST_CALLS: u32 = 65_536;
/// Buffer for slow calls: 16,384 records.
const EVENT_BYTES: u32 = 1 << 20;

/// The probe.
#[derive(Clone, Debug, Default)]
pub struct FunctionLatency {
    names: Vec<String>,
    /// What a reader must know of how they were found.
    notes: Vec<String>,
}

/// Options of the probe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Program or library, by path or name
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub binary: Option<String>,
    /// Functions by symbol or glob (SSL_*)
    pub function: String,
    /// Also list single events that took at least this long, in microseconds
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub slower_than_us: Option<u64>,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Options {
    fn binary(&self) -> &str {
        self.binary.as_deref().unwrap_or(functions::LIBC)
    }
}

impl Probe for FunctionLatency {
    const NAME: &'static str = "function_latency";
    const SUMMARY: &'static str = "How often is a function of a program or library called, and how long does it take?";
    const CATEGORY: &'static str = "applications";
    const DETAILS: &'static str = "Time from entry to return of functions that options.function names, a symbol or a glob over symbols of options.binary (libc, if \
        left out), at most 100 at once; names of C++ and Rust match in either form, mangled or as stacks show them \
        (*::Parser::next*, without Rust's hash), and are shown as symbols; with filter.pid in that process's own file, which may be a container's. Time includes what the \
        function calls and waits for; calls of itself count each on their own. Each call traps twice into the kernel, one to some \
        microseconds that are part of an outer function's time: not for functions called millions of times a second. A call under way \
        when tracing begins is not seen, one that never returns (longjmp, an exception through it, exit) neither; functions that the \
        compiler inlined have no symbol. result in events is the register of the result, of no meaning where there is none. Kernels \
        before 5.15 take one function at a time.";
    const NEXT: &'static [&'static str] = &[
        "which symbols there are: list_probes with filter = binary:/path:*part*",
        "a function is slow and does not compute: offcpu_stacks or syscall_latency with filter.pid",
    ];
    const EXAMPLE: &'static str =
        r#"{"probe":"function_latency","options":{"binary":"libssl","function":"SSL_do_handshake"},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/function_latency.o");
    const HOOKS: &'static [Attach] =
        &[Attach::functions("returns", "options.function"), Attach::functions("enter", "options.function")];
    const NEEDS: &'static [&'static str] = &["TASK_COMM"];
    const COUNTS: &'static str = "returns";
    const COST_NS: f64 = 11_000.0;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let file = functions::open(options.binary(), context)?;
        let Chosen { functions: chosen, notes } = choose(&functions::read(&file)?, options)?;
        let has_cookie = aya::features().bpf_cookie();
        check_number(&chosen, has_cookie)?;
        let mut plan = plan_of::<Self>(context);
        let places: Vec<Function> = chosen
            .iter()
            .zip(0..)
            .map(|((name, offset), index)| {
                let cookie = has_cookie.then_some(index);
                functions::place(name, file.path(), *offset, functions::scope(context), cookie)
            })
            .collect();
        plan.attach = places.iter().cloned().map(|place| Attach::function("returns", place)).collect();
        plan.attach.extend(places.into_iter().map(|place| Attach::function("enter", place)));
        plan.globals.extend(functions::register_globals());
        plan.globals.push(("HAS_COOKIE", u32::from(has_cookie).to_ne_bytes().to_vec()));
        plan.map_entries.extend([("STARTS", MOST_CALLS), ("HISTOGRAMS", chosen.len() as u32)]);
        if let Some(us) = options.slower_than_us {
            plan.globals.push(("SLOWER_THAN_NS", us.saturating_mul(1000).to_ne_bytes().to_vec()));
            plan.event_bytes = EVENT_BYTES;
        }
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self { names: chosen.into_iter().map(|(name, _)| name).collect(), notes }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let mut found = found(&self.names, &maps.array("HISTOGRAMS")?);
        found.notes.extend_from_slice(&self.notes);
        Ok(found)
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("latency", "ns")]
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "function"]);
        fields.push(Field::new("latency_ns", "ns"));
        fields.extend(plain(&["result", "pid", "tid", "comm"]));
        fields.extend(plain(&places::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<SlowCall>(record).is_some()
    }

    fn named_row(&self, record: &[u8], clock: &Clock) -> Option<Row> {
        let (slow, _) = parse::<SlowCall>(record)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(slow.time_ns));
        put(&mut row, "function", self.names.get(slow.function as usize).cloned().unwrap_or_default());
        put(&mut row, "latency_ns", slow.latency_ns);
        put(&mut row, "result", slow.result);
        put(&mut row, "pid", slow.pid);
        put(&mut row, "tid", slow.tid);
        put(&mut row, "comm", comm(&slow.comm));
        places::insert(&mut row, slow.cgroup, slow.pid);
        Some(row)
    }
}

/// Functions with their offsets in the file, and what is to be said of how they were found.
struct Chosen {
    functions: Vec<(String, u64)>,
    notes: Vec<String>,
}

/// The functions that the options name; names of one place are one function.
fn choose(binary: &Binary<'_>, options: &Options) -> Result<Chosen, OptionError> {
    let (file, wanted) = (options.binary(), &options.function);
    if wanted.is_empty() {
        return Err(OptionError::new("options.function is missing: a symbol of options.binary, or a glob (SSL_*)"));
    }
    let mut names = Wanted::new(wanted, DEMANGLING);
    let mut chosen: Vec<(String, u64)> = Vec::new();
    for function in &binary.functions {
        let name = function.name();
        let Some(offset) = binary.offset(function.address).filter(|_| names.has(&name)) else { continue };
        if !chosen.iter().any(|(_, known)| *known == offset) {
            chosen.push((name.into_owned(), offset));
        }
    }
    let notes: Vec<_> = names.note().into_iter().collect();
    if !chosen.is_empty() {
        return Ok(Chosen { functions: chosen, notes });
    }
    let names: Vec<_> = binary.functions.iter().map(crate::kernel::discovery::binary::Function::name).collect();
    let near = nearest(wanted, names.iter().map(AsRef::as_ref)).map(str::to_owned);
    let wanted = text::untrusted(wanted.as_bytes(), 100);
    let message = format!("options.function: `{file}` has no function `{wanted}` among its {} symbols", names.len());
    let message = [message].into_iter().chain(notes).collect::<Vec<_>>().join("; ");
    Err(OptionError { message, did_you_mean: near })
}

/// What names are compared with: a name, or a glob.
struct Wanted<'a> {
    pattern: &'a str,
    until: Instant,
    /// Symbols that were compared as they are only.
    left: u64,
}

impl<'a> Wanted<'a> {
    /// Whose names may be demangled for so long.
    fn new(pattern: &'a str, time: Duration) -> Self {
        Self { pattern, until: Instant::now() + time, left: 0 }
    }

    /// Whether it means a symbol: as it is in the file, or as its language writes it, which is how stacks show it.
    fn has(&mut self, symbol: &str) -> bool {
        if self.matches(symbol) {
            return true;
        }
        if !is_mangled(symbol) {
            return false;
        }
        if Instant::now() > self.until {
            self.left += 1;
            return false;
        }
        self.matches(&demangled(symbol))
    }

    fn matches(&self, name: &str) -> bool {
        if is_glob(self.pattern) { matches_glob(self.pattern, name) } else { name == self.pattern }
    }

    fn note(&self) -> Option<String> {
        (self.left > 0).then(|| {
            format!("{} symbols were compared in their mangled form only: there are too many to demangle", self.left)
        })
    }
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

fn check_number(chosen: &[(String, u64)], has_cookie: bool) -> Result<(), OptionError> {
    let most = if has_cookie { MOST_FUNCTIONS } else { 1 };
    if chosen.len() <= most {
        return Ok(());
    }
    let why = if has_cookie { "" } else { ", because this kernel cannot tell several apart (5.15 can)" };
    let some: Vec<_> = chosen.iter().take(NAMED).map(|(name, _)| text::untrusted(name.as_bytes(), 60)).collect();
    Err(OptionError::new(format!(
        "options.function matches {} functions; at most {most} can be timed at once{why}. Give more of the name, or one name: it matches {} …; \
         list_probes with filter = binary:FILE:GLOB lists all",
        chosen.len(),
        some.join(", "),
    )))
}

fn found(names: &[String], kept: &[Kept]) -> Found {
    let of = |(name, kept): (&String, &Kept)| {
        let mut all = Distribution::default();
        all.add(kept);
        (name.clone(), all)
    };
    let mut called: Vec<_> = names.iter().zip(kept).map(of).filter(|(_, all)| all.count() > 0).collect();
    called.sort_by_key(|(_, all)| std::cmp::Reverse(all.count()));
    let delivered = called.iter().map(|(_, all)| all.count()).sum();
    let key = |name: &String| Row::from_iter([("function".to_owned(), name.as_str().into())]);
    let series: Vec<_> = called.iter().map(|(name, all)| all.series(key(name))).collect();
    let histogram = Histogram {
        unit: "ns".into(),
        key: vec!["function".into()],
        relative_error: RELATIVE_ERROR,
        series_total: series.len() as u64,
        series,
        others: None,
    };
    let notes = vec![format!("{} of {} functions that were watched were called", called.len(), names.len())];
    Found { report: Some(Report::Histogram(histogram)), delivered, notes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_were_not_called_are_counted_and_not_listed() {
        let mut kept = vec![Kept::EMPTY; 3];
        kept[2].buckets[4] = 7;
        kept[0].buckets[4] = 2;
        let found = found(&["a".into(), "b".into(), "c".into()], &kept);
        assert_eq!((found.delivered, found.notes[0].as_str()), (9, "2 of 3 functions that were watched were called"));
        let Some(Report::Histogram(histogram)) = found.report else { panic!() };
        assert_eq!(histogram.series[0].key["function"], "c");
    }

    #[test]
    fn a_name_is_known_in_either_form_as_long_as_there_is_time() {
        let symbol = "_ZN8mcptrace4text9untrusted17h0123456789abcdefE";
        let has = |pattern: &str, time| Wanted::new(pattern, time).has(symbol);
        for pattern in
            ["mcptrace*text*untrusted*", "mcptrace::text::untrusted", "*::untrusted", "*4text9untrusted*", symbol]
        {
            assert!(has(pattern, DEMANGLING), "{pattern}");
        }
        assert!(!has("text::untrusted", DEMANGLING) && !has("*h0123456789abcdef", DEMANGLING));
        let mut wanted = Wanted::new("*::untrusted", Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
        assert!(!wanted.has(symbol) && !wanted.has("plain"));
        assert!(wanted.note().is_some_and(|note| note.starts_with("1 symbols")));
    }

    #[test]
    fn old_kernels_time_one_function_at_a_time() {
        let chosen: Vec<_> = (0..101).map(|index| (format!("f{index}"), index)).collect();
        assert!(check_number(&chosen[..100], true).is_ok() && check_number(&chosen[..1], false).is_ok());
        let text = check_number(&chosen, true).unwrap_err().message;
        assert!(text.contains("matches 101 functions; at most 100") && text.contains("f0, f1, f2, f3, f4 …"), "{text}");
        assert!(check_number(&chosen[..2], false).unwrap_err().message.contains("(5.15 can)"));
    }
}
