//! Which USDT probes a program passes, and with which arguments.

use std::os::unix::ffi::OsStrExt as _;

use aya::maps::MapError;
use mcptrace_wire::{USDT_ARGUMENTS, USDT_TEXT_MAX, USDT_TEXTS, Usdt, UsdtTexts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Context, Found, OptionError, Probe, functions, options::Transport, parse, places, plain, plan_of, put,
    syscall_counts::words,
};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Maps, Plan},
        discovery::{
            Argument,
            binary::{self, Binary, BinaryFile, UsdtProbe},
            usdt,
        },
        hook::{Attach, Function},
    },
    report::{Field, Row},
    secrets::{Secret, masked_name},
    suggest::nearest,
    text::{comm, matches_glob, untrusted},
};

/// Places at once. A probe may be in several.
const MOST_PLACES: usize = 200;
/// Buffer for events: 29,000.
const EVENT_BYTES: u32 = 4 << 20;

/// The probe.
#[derive(Clone, Debug, Default)]
pub struct UsdtEvents {
    places: Vec<Place>,
    texts: Vec<usize>,
    /// The file that they are in.
    file: String,
}

/// A place of a USDT probe in the code.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    offset: u64,
    semaphore: Option<u64>,
    arguments: Vec<Argument>,
}

/// Options of the probe.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Program or library, by path or name
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub binary: Option<String>,
    /// USDT probes, PROVIDER:NAME or a glob; without, all
    pub usdt: String,
    /// Arguments that point to text, from 0: "0,1"; at most 2
    #[serde(skip_serializing_if = "String::is_empty")]
    pub texts: String,
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

impl Default for Options {
    fn default() -> Self {
        Self { binary: None, usdt: "*".into(), texts: String::new(), transport: None }
    }
}

impl Probe for UsdtEvents {
    const NAME: &'static str = "usdt_events";
    const SUMMARY: &'static str = "Which static probes (USDT) does a program pass, and with which arguments?";
    const CATEGORY: &'static str = "applications";
    const DETAILS: &'static str = "One event each time that a thread passes a USDT probe of options.binary: points of interest that its authors \
        have marked (PostgreSQL, MySQL, Python, libstdc++ and others, if built with them); those with a semaphore are switched on \
        meanwhile. Without options.binary the program of filter.pid. arguments are numbers, cut to the size and sign that the program states; \
        pointers are addresses, but for those of options.texts: of these the text, at most 63 bytes, masked (its length and a mark by which \
        the same text is known again) until the operator sets MCPTRACE_REVEAL=texts. null stands for what cannot be read: a floating-point \
        number, one beside a symbol, memory that is not there. At most 200 places; before 5.15 one. Each event is a trap of one to some \
        microseconds.";
    const NEXT: &'static [&'static str] = &[
        "which probes there are: list_probes with filter = binary:/path; what one's arguments are: describe_probe usdt:/path:PROVIDER:NAME",
        "the time between two points of a function: function_latency",
        "what they count by more than one event: exec_program with usdt:/path:PROVIDER:NAME { @[arg0] = count(); }",
    ];
    const EXAMPLE: &'static str =
        r#"{"probe":"usdt_events","options":{"binary":"python3","usdt":"python:gc__*"},"seconds":10}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/usdt_events.o");
    const HOOKS: &'static [Attach] = &[Attach::functions("passed", "options.usdt")];
    const NEEDS: &'static [&'static str] = &["TASK_COMM"];
    const COUNTS: &'static str = "passed";
    const COST_NS: f64 = 1_300.0;
    const HAS_DURATION: bool = false;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let texts = texts(&options.texts)?;
        let file = open(options.binary.as_deref(), context)?;
        let places = choose(&functions::read(&file)?, options)?;
        let has_cookie = aya::features().bpf_cookie();
        check_number(places.len(), has_cookie)?;
        check_texts(&texts, &places)?;
        let mut plan = plan_of::<Self>(context);
        let place = |(place, index): (&Place, u64)| {
            let cookie = has_cookie.then_some(index);
            let found = functions::place(&place.name, file.path(), place.offset, functions::scope(context), cookie);
            Attach::function("passed", Function { semaphore: place.semaphore, ..found })
        };
        plan.attach = places.iter().zip(0..).map(place).collect();
        plan.globals.extend(functions::register_globals());
        plan.globals.push(("HAS_COOKIE", u32::from(has_cookie).to_ne_bytes().to_vec()));
        plan.globals.push(("TEXTS", words(&texts_global(&texts))));
        plan.map_entries.push(("PLACES", places.len() as u32));
        plan.values.push(("PLACES", places.iter().map(Place::described).collect()));
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        let file = untrusted(file.path().as_os_str().as_bytes(), 200);
        Ok((Self { places, texts, file }, plan))
    }

    fn report(&self, _maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let mut notes = vec![watched(self.places.len(), &self.file)];
        if !self.texts.is_empty() && !Secret::Texts.is_revealed() {
            notes.push(Secret::Texts.note());
        }
        Ok(Found { notes, ..Found::default() })
    }

    fn fields() -> Vec<Field> {
        Self::event_fields()
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time", "usdt", "arguments", "pid", "tid", "comm"]);
        fields.extend(plain(&places::FIELDS));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse_usdt(record).is_some()
    }

    fn named_row(&self, record: &[u8], clock: &Clock) -> Option<Row> {
        let (event, told) = parse_usdt(record)?;
        let place = self.places.get(event.place as usize)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(event.time_ns));
        put(&mut row, "usdt", place.name.clone());
        let mut arguments = place.values(&event);
        if let Some(told) = told {
            put_texts(&mut arguments, &told, &place.texts(&self.texts), Secret::Texts.is_revealed());
        }
        put(&mut row, "arguments", arguments);
        put(&mut row, "pid", event.pid);
        put(&mut row, "tid", event.tid);
        put(&mut row, "comm", comm(&event.comm));
        places::insert(&mut row, event.cgroup, event.pid);
        Some(row)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl UsdtEvents {
    /// One that knows two places and the texts of both arguments. For tests.
    pub(crate) fn sample() -> Self {
        let arguments = || usdt::arguments("-4@%edi 8@%rsi 8@$5");
        let place = |name: &str| Place { name: name.to_owned(), offset: 0, semaphore: None, arguments: arguments() };
        Self { places: vec![place("a:b"), place("a:c")], texts: vec![0, 1], file: "/bin/a".into() }
    }
}

impl Place {
    fn of(binary: &Binary<'_>, probe: &UsdtProbe) -> Option<Self> {
        Some(Self {
            name: whole(probe),
            offset: binary.offset(probe.address)?,
            semaphore: probe.semaphore.and_then(|semaphore| binary.offset(semaphore)),
            arguments: usdt::arguments(&probe.arguments),
        })
    }

    /// How the kernel side finds its arguments.
    fn described(&self) -> Vec<u8> {
        usdt::bytes(&usdt::place(&self.arguments))
    }

    /// Those of the arguments that are as wide as a pointer: a place may have numbers where another has texts.
    fn texts(&self, texts: &[usize]) -> [Option<usize>; USDT_TEXTS] {
        let is_pointer = |argument: &Argument| argument.size == Some(8) && !argument.type_name.starts_with("float");
        let pointer = |index: &usize| self.arguments.get(*index).is_some_and(is_pointer);
        std::array::from_fn(|slot| texts.get(slot).copied().filter(pointer))
    }

    fn values(&self, event: &Usdt) -> Vec<Value> {
        let value = |(index, argument): (usize, &Argument)| {
            let was_read = event.unread >> index & 1 == 0;
            let (size, signed) = (argument.size.unwrap_or(8), argument.signed.unwrap_or_default());
            was_read.then(|| usdt::cut(event.arguments[index], size, signed)).map_or(Value::Null, number)
        };
        self.arguments.iter().take(USDT_ARGUMENTS).enumerate().map(value).collect()
    }
}

/// A record and its texts, if it has them.
fn parse_usdt(record: &[u8]) -> Option<(Usdt, Option<UsdtTexts>)> {
    let (event, rest) = parse::<Usdt>(record)?;
    // SAFETY: numbers and bytes are valid for every bit pattern, and there are enough.
    let told = || unsafe { rest.as_ptr().cast::<UsdtTexts>().read_unaligned() };
    match rest.len() {
        0 => Some((event, None)),
        length if length == size_of::<UsdtTexts>() => Some((event, Some(told()))),
        _ => None,
    }
}

/// Puts texts in the place of the pointers to them.
fn put_texts(arguments: &mut [Value], told: &UsdtTexts, texts: &[Option<usize>; USDT_TEXTS], revealed: bool) {
    for ((index, length), bytes) in texts.iter().zip(told.lengths).zip(&told.bytes) {
        let slot = index.and_then(|index| arguments.get_mut(index));
        let Some(slot) = slot.filter(|slot| !slot.is_null()) else { continue };
        let text = (length as usize).checked_sub(1).and_then(|length| bytes.get(..length));
        let shown = |text| if revealed { untrusted(text, USDT_TEXT_MAX) } else { masked_name(text) };
        *slot = text.map_or(Value::Null, |text| shown(text).into());
    }
}

/// The indexes of `options.texts`.
fn texts(option: &str) -> Result<Vec<usize>, OptionError> {
    let wrong = || {
        let text = untrusted(option.as_bytes(), 100);
        OptionError::new(format!("options.texts: `{text}` is not up to 2 numbers from 0 to 11, separated by commas"))
    };
    let index = |word: &str| word.trim().parse().ok().filter(|index| *index < USDT_ARGUMENTS).ok_or_else(wrong);
    let indexes: Vec<usize> =
        option.split(',').filter(|word| !word.trim().is_empty()).map(index).collect::<Result<_, _>>()?;
    if indexes.len() > USDT_TEXTS { Err(wrong()) } else { Ok(indexes) }
}

fn texts_global(texts: &[usize]) -> [u32; USDT_TEXTS] {
    std::array::from_fn(|slot| texts.get(slot).map_or(USDT_ARGUMENTS, |index| *index) as u32)
}

/// Opens the file of `options.binary`; without, the program of the filtered process.
fn open(file: Option<&str>, context: &Context<'_>) -> Result<BinaryFile, OptionError> {
    if let Some(file) = file {
        return functions::open(file, context);
    }
    let missing =
        || OptionError::new("options.binary is missing: a program or library, unless filter.pid names a process");
    let pid = context.filter.pid.ok_or_else(missing)?;
    binary::open(&format!("/proc/{pid}/exe")).map_err(|error| OptionError::new(format!("filter.pid: {error}")))
}

fn number(value: i128) -> Value {
    u64::try_from(value).map_or_else(|_| Value::from(value as i64), Value::from)
}

fn whole(probe: &UsdtProbe) -> String {
    format!("{}:{}", probe.provider, probe.name)
}

fn choose(binary: &Binary<'_>, options: &Options) -> Result<Vec<Place>, OptionError> {
    let wanted = &options.usdt;
    let file = options.binary.as_deref().unwrap_or("the program of filter.pid");
    let is_wanted = |probe: &&UsdtProbe| {
        let name = whole(probe);
        if wanted.contains(['*', '?']) { matches_glob(wanted, &name) } else { name == *wanted }
    };
    let places: Vec<_> = binary.probes.iter().filter(is_wanted).filter_map(|probe| Place::of(binary, probe)).collect();
    if !places.is_empty() {
        return Ok(places);
    }
    if binary.probes.is_empty() {
        return Err(OptionError::new(format!("options.binary: `{file}` has no USDT probes")));
    }
    let names: Vec<_> = binary.probes.iter().map(whole).collect();
    let near = nearest(wanted, names.iter().map(String::as_str)).map(str::to_owned);
    let text = untrusted(wanted.as_bytes(), 100);
    let message = format!("options.usdt: `{file}` has no USDT probe `{text}` among its {} places", names.len());
    Err(OptionError { message, did_you_mean: near })
}

fn watched(places: usize, file: &str) -> String {
    let noun = if places == 1 { "place of a USDT probe was" } else { "places of USDT probes were" };
    format!("{places} {noun} watched in {file}")
}

/// That each argument which is said to be a text can be one somewhere.
fn check_texts(texts: &[usize], places: &[Place]) -> Result<(), OptionError> {
    let nowhere = |index: &&usize| !places.iter().any(|place| place.texts(&[**index])[0].is_some());
    texts.iter().find(nowhere).map_or(Ok(()), |index| {
        Err(OptionError::new(format!(
            "options.texts: argument {index} is no pointer in any of the probes: describe_probe usdt:/path:PROVIDER:NAME has their arguments"
        )))
    })
}

fn check_number(chosen: usize, has_cookie: bool) -> Result<(), OptionError> {
    let most = if has_cookie { MOST_PLACES } else { 1 };
    if chosen <= most {
        return Ok(());
    }
    let why = if has_cookie { "" } else { ", because this kernel cannot tell several apart (5.15 can)" };
    Err(OptionError::new(format!("options.usdt matches {chosen} places; at most {most} can be watched at once{why}")))
}

#[cfg(test)]
mod tests {
    use mcptrace_wire::{Header, Record as _, WIRE_VERSION};

    use super::*;

    #[test]
    fn arguments_are_cut_to_what_the_program_states() {
        let place = Place {
            name: "a:b".into(),
            offset: 0,
            semaphore: None,
            arguments: usdt::arguments("-4@%edi 1@%sil 8@x(%rip) 8@$7"),
        };
        let mut arguments = [0; USDT_ARGUMENTS];
        arguments[..4].copy_from_slice(&[0xffff_fffe, 0x1ff, 0, 7]);
        let event = Usdt {
            header: Header { size: size_of::<Usdt>() as u16, version: WIRE_VERSION, kind: Usdt::KIND },
            place: 0,
            time_ns: 1,
            cgroup: 0,
            pid: 2,
            tid: 3,
            comm: [0; 16],
            arguments,
            unread: 0b0100,
        };
        assert_eq!(place.values(&event), [Value::from(-2), Value::from(255), Value::Null, Value::from(7)]);
    }

    #[test]
    fn an_argument_that_is_no_pointer_stays_the_number_that_it_is() {
        let place = |arguments: &str| Place {
            name: "a:b".into(),
            offset: 0,
            semaphore: None,
            arguments: usdt::arguments(arguments),
        };
        let (number, pointer) = (place("-4@%edi 1@%sil"), place("8@%rdi 8f@%rsi"));
        assert_eq!((number.texts(&[0, 1]), pointer.texts(&[0, 1])), ([None; 2], [Some(0), None]));
        let places = [number, pointer];
        assert!(check_texts(&[0], &places).is_ok());
        for (texts, places) in [(&[7][..], &places[..]), (&[0, 1], &places[..1])] {
            let error = check_texts(texts, places).unwrap_err();
            assert!(error.message.contains("is no pointer in any"), "{}", error.message);
        }
    }

    #[test]
    fn texts_take_the_place_of_pointers_and_are_masked() {
        let mut bytes = [[0; USDT_TEXT_MAX]; USDT_TEXTS];
        bytes[0][..7].copy_from_slice(b"hunter2");
        let told = UsdtTexts { lengths: [8, 0], bytes };
        let shown = |revealed: bool| {
            let mut arguments = [Value::from(1), Value::from(0xffff_u64), Value::from(7)];
            put_texts(&mut arguments, &told, &[Some(1), Some(2)], revealed);
            arguments
        };
        assert_eq!(shown(true), [Value::from(1), Value::from("hunter2"), Value::Null]);
        assert!(shown(false)[1].as_str().is_some_and(|text| text.starts_with("<7 bytes #")), "{:?}", shown(false));
    }

    #[test]
    fn positions_of_texts_are_few_and_small() {
        assert_eq!((texts("").unwrap(), texts("0, 11").unwrap()), (vec![], vec![0, 11]));
        assert_eq!(texts_global(&[3]), [3, 12]);
        for wrong in ["12", "x", "-1", "0,1,2", "1;2"] {
            assert!(texts(wrong).unwrap_err().message.contains("up to 2 numbers"), "{wrong}");
        }
    }
}
