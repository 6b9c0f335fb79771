//! Who was killed for want of memory, and why.

use aya::maps::MapError;
use mcptrace_wire::OomKill;

use super::{
    Context, Found, OptionError, Probe, actor, options::EventOptions, options::Transport, parse, plain, plan_of, put,
};
use crate::{
    clock::Clock,
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::{Field, Row},
    text::comm,
};

/// Buffer for events: 450.
const EVENT_BYTES: u32 = 1 << 16;

/// The probe.
#[derive(Clone, Copy, Debug)]
pub struct OomKills {
    /// Whether this kernel tells more than the victim's id.
    detailed: bool,
}

impl Probe for OomKills {
    const NAME: &'static str = "oom_kills";
    const SUMMARY: &'static str = "Which processes does the kernel kill for want of memory, and on whose demand?";
    const CATEGORY: &'static str = "memory";
    const DETAILS: &'static str = "One event for each victim that the kernel marks: by the machine's shortage or by the limit of a memory control \
        group. The memory is what the victim had then: anonymous, of files, shared, in swap; virtual_bytes is its address space. \
        score_adjustment is its oom_score_adj, which made it a likelier (up to 1000) or less likely victim. trigger_* is the thread that \
        wanted memory and got none. group_bytes and group_limit_bytes are of the victim's control group or of one above it, the one with \
        the least room. constraint is concluded from them, since the kernel says it in its log only: group where less than 4 MB of room \
        were left, machine otherwise (or a cpuset or memory policy). Older kernels tell the victim's pid only; there filters look at the \
        trigger.";
    const NEXT: &'static [&'static str] = &[
        "who grows: page_faults; who stalls before it comes to this: memory_reclaim",
        "a limit of a control group: memory.events and memory.max (memory.limit_in_bytes) of the victim's group",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"oom_kills","seconds":30}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/oom_kills.o");
    const HOOKS: &'static [Attach] = &[Attach::tracepoint("victim", "mark_victim")];
    const NEEDS: &'static [&'static str] = &[
        "TASK_COMM",
        "TASK_TGID",
        "TASK_PID",
        "TASK_REAL_PARENT",
        "TASK_CRED",
        "CRED_UID",
        "TASK_MM",
        "TASK_SIGNAL",
        "SIGNAL_OOM_ADJ",
        "MM_TOTAL_VM",
        "MM_RSS",
        "MM_RSS_STRIDE",
    ];
    const COUNTS: &'static str = "victim";
    const COST_NS: f64 = 3_200.0;
    const HAS_DURATION: bool = false;
    type Options = EventOptions;

    fn plan(options: &EventOptions, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let mut plan = plan_of::<Self>(context);
        plan.event_bytes = EVENT_BYTES;
        plan.transport = Transport::resolve(options.transport, context.transport);
        Ok((Self { detailed: context.layout.global("VICTIM_IS_TASK") == Ok(1) }, plan))
    }

    fn report(&self, _maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let note = "this kernel tells only the pid of a victim; its kernel log (dmesg) has the rest";
        let notes = if self.detailed { Vec::new() } else { vec![note.to_owned()] };
        Ok(Found { notes, ..Found::default() })
    }

    fn fields() -> Vec<Field> {
        Self::event_fields()
    }

    fn event_fields() -> Vec<Field> {
        let mut fields = plain(&["time"]);
        fields.extend(plain(&actor::FIELDS));
        fields.extend(MEMORY.map(|(name, _)| Field::new(name, "bytes")));
        fields.extend(["virtual_bytes", "group_bytes", "group_limit_bytes"].map(|name| Field::new(name, "bytes")));
        fields.extend(plain(&["constraint"]));
        fields.extend(plain(&["score_adjustment", "trigger_pid", "trigger_comm", "trigger_container", "trigger_unit"]));
        fields
    }

    fn accepts(record: &[u8]) -> bool {
        parse::<OomKill>(record).is_some()
    }

    fn row(record: &[u8], clock: &Clock) -> Option<Row> {
        let (kill, _) = parse::<OomKill>(record)?;
        let mut row = Row::new();
        put(&mut row, "time", clock.utc(kill.time_ns));
        if kill.detailed == 0 {
            put(&mut row, "pid", kill.victim.pid);
        } else {
            insert_victim(&mut row, &kill);
        }
        insert_trigger(&mut row, &kill);
        Some(row)
    }
}

/// The counts of a `struct mm_struct` by name and place (`MM_FILEPAGES` and so on, include/linux/mm_types_task.h).
const MEMORY: [(&str, usize); 4] = [("anon_bytes", 1), ("file_bytes", 0), ("shmem_bytes", 3), ("swap_bytes", 2)];

fn insert_victim(row: &mut Row, kill: &OomKill) {
    let page = rustix::param::page_size() as u64;
    // A count that several CPUs keep may be a little below zero.
    let bytes = |pages: u64| ((pages as i64).max(0) as u64).saturating_mul(page);
    actor::insert(row, &kill.victim);
    for (name, place) in MEMORY {
        put(row, name, bytes(kill.pages[place]));
    }
    put(row, "virtual_bytes", bytes(kill.virtual_pages));
    if kill.group_limit != 0 {
        insert_group(row, kill, page);
    }
    put(row, "score_adjustment", kill.score_adjustment);
}

/// Room below the limit of a control group, in bytes, that counts as none: charges come in batches and huge pages.
const NO_ROOM: u64 = 4 << 20;

fn insert_group(row: &mut Row, kill: &OomKill, page: u64) {
    // `PAGE_COUNTER_MAX` is the longest address space in pages (include/linux/page_counter.h).
    let is_limited = kill.group_limit < i64::MAX as u64 / page;
    let room = kill.group_limit.saturating_sub(kill.group_pages).saturating_mul(page);
    put(row, "constraint", if is_limited && room < NO_ROOM { "group" } else { "machine" });
    if is_limited {
        put(row, "group_bytes", kill.group_pages.saturating_mul(page));
        put(row, "group_limit_bytes", kill.group_limit.saturating_mul(page));
    }
}

fn insert_trigger(row: &mut Row, kill: &OomKill) {
    put(row, "trigger_pid", kill.trigger.pid);
    put(row, "trigger_comm", comm(&kill.trigger.comm));
    actor::place(&kill.trigger).insert_as(row, "trigger_");
}
