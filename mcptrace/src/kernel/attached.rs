//! A probe at work in the kernel: its programs, what they count, their maps, and the events they send.

use std::{
    borrow::{BorrowMut, Cow},
    collections::BTreeMap,
    hash::Hash,
    os::fd::AsFd as _,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerfEventArray, RingBuf, perf::PerfEvent},
    util::{nr_cpus, online_cpus},
};
use aya_log::EbpfLogger;
use bytes::{Bytes, BytesMut};
use mcptrace_wire::Counter;

use super::{
    batch,
    hook::Attach,
    image::Image,
    loader::{AttachedProgram, Kernel, LoadError, chain},
};

/// `BPF_MAP_TYPE_ARRAY` (include/uapi/linux/bpf.h): what the ring becomes when the perf path is taken, so that kernels
/// without ring buffers (before 5.8) can load the object.
const ARRAY: u32 = 2;

/// How events reach user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// One ring buffer for all CPUs (5.8 and later).
    #[default]
    Ring,
    /// One perf buffer per CPU.
    Perf,
}

/// What is to be loaded and attached.
#[derive(Debug)]
pub struct Plan {
    /// The probe.
    pub probe: &'static str,
    /// Its eBPF object.
    pub object: &'static [u8],
    /// Programs and hooks, in the order of attachment.
    pub attach: Vec<Attach>,
    /// The program that counts [`Counter::Seen`]: what it misses was never seen.
    pub counts: &'static str,
    /// Read-only globals beside the layout's.
    pub globals: Vec<(&'static str, Vec<u8>)>,
    /// Sizes of maps, in entries.
    pub map_entries: Vec<(&'static str, u32)>,
    /// Values of arrays, from the first on, that programs find from their first event on.
    pub values: Vec<(&'static str, Vec<Vec<u8>>)>,
    /// Bytes of buffer for events, a power of two; 0 if there are none.
    pub event_bytes: u32,
    /// How events travel.
    pub transport: Transport,
    /// Processes to follow from the start.
    pub follow: Option<u32>,
    /// Whether rows say to which container or unit a process belongs.
    pub places: bool,
}

/// A loaded probe. Dropping it detaches everything.
pub struct Attached {
    programs: Vec<AttachedProgram>,
    counts: &'static str,
    events: Events,
    diagnostics: Option<Diagnostics>,
    ebpf: Ebpf,
}

/// Passes on what an object built with diagnostics has said.
type Diagnostics = Box<dyn FnMut() + Send>;

enum Events {
    None,
    Ring(RingBuf<MapData>),
    Perf(Vec<aya::maps::perf::PerfEventArrayBuffer<MapData>>),
}

impl Attached {
    /// Loads and attaches a plan.
    pub fn new(kernel: &Kernel, plan: &Plan) -> Result<Self, LoadError> {
        let image = image(kernel, plan)?;
        let (mut ebpf, programs) = kernel.attach_filled(plan.probe, &image, &plan.attach, &plan.values)?;
        if let Some(pid) = plan.follow {
            follow(&mut ebpf, pid)?;
        }
        let events = open_events(&mut ebpf, plan)?;
        let diagnostics = diagnostics(&mut ebpf);
        Ok(Self { programs, counts: plan.counts, events, diagnostics, ebpf })
    }

    /// The programs.
    pub fn programs(&self) -> &[AttachedProgram] {
        &self.programs
    }

    /// Detaches every program and waits until none of them runs any more, so that what is read afterwards is final.
    pub fn detach(&mut self) {
        for program in &mut self.programs {
            program.detach();
        }
        wait_for_running_programs();
    }

    /// Takes the events that are there, in one block of memory that all of them share.
    pub fn drain(&mut self, most_bytes: usize) -> Vec<Bytes> {
        if let Some(pass_on) = &mut self.diagnostics {
            pass_on();
        }
        let mut batch = Batch::default();
        match &mut self.events {
            Events::None => {}
            Events::Ring(ring) => {
                while batch.block.len() < most_bytes {
                    let Some(record) = ring.next() else { break };
                    batch.push(&[&record]);
                }
            }
            Events::Perf(buffers) => {
                for buffer in buffers {
                    buffer.for_each(|event| {
                        if let PerfEvent::Sample { head, tail } = event {
                            batch.push(&[head, tail]);
                        }
                    });
                }
                // Each CPU's buffer is in order; together they are not.
                let mut records = batch.records();
                records.sort_by_key(|record| mcptrace_wire::time_of(record));
                return records;
            }
        }
        batch.records()
    }

    /// What the programs counted, by [`Counter`], over all CPUs.
    pub fn counters(&self) -> Result<Counters, MapError> {
        let cpus = self.maps().per_cpu::<u64>("COUNTERS")?;
        Ok(Counters(cpus.into_iter().map(|values| values.into_iter().sum()).collect()))
    }

    /// How often the kernel skipped a program because it was already running on that CPU: of the program that counts what is
    /// seen, and of all others. `None` before 5.12, which does not tell.
    pub fn missed(&self) -> Option<(u64, u64)> {
        let mut missed = (0, 0);
        for program in &self.programs {
            let misses = super::cost::info(program.raw_fd())?.recursion_misses?;
            if program.name == self.counts { missed.0 += misses } else { missed.1 += misses }
        }
        Some(missed)
    }

    /// The maps.
    pub fn maps(&self) -> Maps<'_> {
        Maps { ebpf: &self.ebpf }
    }
}

/// What the programs counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(Vec<u64>);

impl Counters {
    /// One of them.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// What tests say was counted.
    #[cfg(test)]
    pub(crate) fn of(values: Vec<u64>) -> Self {
        Self(values)
    }
}

/// Reads maps.
pub struct Maps<'a> {
    ebpf: &'a Ebpf,
}

impl Maps<'_> {
    /// All values of an array.
    pub fn array<V: Pod>(&self, name: &str) -> Result<Vec<V>, MapError> {
        let map = self.map(name)?;
        let array = Array::<_, V>::try_from(map)?;
        if let Map::Array(data) = map
            && let Some(values) = batch::values(data.fd().as_fd(), array.len(), 1)
        {
            return Ok(values);
        }
        array.iter().collect()
    }

    /// All values of a per-CPU array: for each index the values of all CPUs.
    pub fn per_cpu<V: Pod>(&self, name: &str) -> Result<Vec<Vec<V>>, MapError> {
        let map = self.map(name)?;
        let array = PerCpuArray::<_, V>::try_from(map)?;
        let cpus = nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        if let Map::PerCpuArray(data) = map
            && let Some(values) = batch::values::<V>(data.fd().as_fd(), array.len(), cpus)
        {
            return Ok(values.chunks_exact(cpus).map(<[V]>::to_vec).collect());
        }
        array.iter().map(|values| values.map(|values| values.to_vec())).collect()
    }

    /// All entries of a hash map. Entries that come and go while it is read may be missed or found twice: the last one wins.
    pub fn hash<K: Pod + Eq + Hash + Ord, V: Pod>(&self, name: &str) -> Result<BTreeMap<K, V>, MapError> {
        HashMap::<_, K, V>::try_from(self.map(name)?)?.iter().collect()
    }

    fn map(&self, name: &str) -> Result<&Map, MapError> {
        self.ebpf.map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
    }
}

#[derive(Default)]
struct Batch {
    block: BytesMut,
    ends: Vec<usize>,
}

impl Batch {
    fn push(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.block.extend_from_slice(part);
        }
        self.ends.push(self.block.len());
    }

    fn records(self) -> Vec<Bytes> {
        let block = self.block.freeze();
        let mut start = 0;
        let slice = |end: usize| {
            let record = block.slice(start..end);
            start = end;
            record
        };
        self.ends.into_iter().map(slice).collect()
    }
}

/// Whether this kernel takes a plan's programs: loads them, with the smallest buffers, and attaches nothing.
pub fn check(kernel: &Kernel, plan: &Plan) -> Result<(), LoadError> {
    let mut image = image(kernel, plan)?;
    if image.has_map("EVENTS") && plan.transport == Transport::Ring {
        image.set_map_entries("EVENTS", rustix::param::page_size() as u32)?;
    }
    kernel.check(plan.probe, &image, &plan.attach)
}

/// A plan's object with all globals and sizes set.
pub fn image(kernel: &Kernel, plan: &Plan) -> Result<Image, LoadError> {
    let mut image = Image::new(&object(plan))?;
    for (name, value) in kernel.layout.globals() {
        image.set_global(name, &value.to_ne_bytes())?;
    }
    for (name, value) in &plan.globals {
        image.set_global(name, value)?;
    }
    for (name, entries) in &plan.map_entries {
        image.set_map_entries(name, *entries)?;
    }
    if image.has_map("EVENTS") {
        set_transport(&mut image, plan)?;
    }
    Ok(image)
}

/// The committed object, or one of the same name in the folder `MCPTRACE_OBJECTS`: those built with diagnostics. The variable is not
/// looked at where the program has more privilege than its caller (file capabilities).
fn object(plan: &Plan) -> Cow<'static, [u8]> {
    let Some(folder) = std::env::var_os("MCPTRACE_OBJECTS").filter(|_| !super::privilege::is_by_file()) else {
        return Cow::Borrowed(plan.object);
    };
    let path = std::path::Path::new(&folder).join(plan.probe).with_extension("o");
    match std::fs::read(&path) {
        Ok(object) => Cow::Owned(object),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the object; using the built-in one");
            Cow::Borrowed(plan.object)
        }
    }
}

/// What an object built with `cargo xtask build-ebpf --log` says goes to the log.
fn diagnostics(ebpf: &mut Ebpf) -> Option<Diagnostics> {
    ebpf.map("AYA_LOGS")?;
    match EbpfLogger::init(ebpf) {
        Ok(mut logger) => Some(Box::new(move || logger.flush())),
        Err(error) => {
            tracing::warn!(%error, "no diagnostics from the kernel side");
            None
        }
    }
}

fn set_transport(image: &mut Image, plan: &Plan) -> Result<(), LoadError> {
    match plan.transport {
        Transport::Ring => image.set_map_entries("EVENTS", plan.event_bytes.max(4096))?,
        Transport::Perf => {
            image.set_map_type("EVENTS", ARRAY)?;
            image.set_map_sizes("EVENTS", 4, 4)?;
            image.set_map_entries("EVENTS", 1)?;
            image.set_global("USE_PERF", &1_u32.to_ne_bytes())?;
        }
    }
    Ok(())
}

fn follow(ebpf: &mut Ebpf, pid: u32) -> Result<(), LoadError> {
    let what = "table of followed processes";
    let buffer = |error: MapError| LoadError::Buffer { what, reason: chain(&error) };
    let map =
        ebpf.map_mut("FOLLOWED").ok_or_else(|| LoadError::Buffer { what, reason: "no map FOLLOWED".to_owned() })?;
    let mut followed = HashMap::<_, u32, u8>::try_from(map).map_err(buffer)?;
    followed.insert(pid, 1, 0).map_err(buffer)
}

fn open_events(ebpf: &mut Ebpf, plan: &Plan) -> Result<Events, LoadError> {
    if plan.event_bytes == 0 {
        return Ok(Events::None);
    }
    match plan.transport {
        Transport::Ring => open_ring(ebpf),
        Transport::Perf => open_perf(ebpf, plan.event_bytes),
    }
}

fn open_ring(ebpf: &mut Ebpf) -> Result<Events, LoadError> {
    let what = "ring buffer";
    let map = ebpf.take_map("EVENTS").ok_or_else(|| LoadError::Buffer { what, reason: "no map EVENTS".to_owned() })?;
    let ring = RingBuf::try_from(map).map_err(|error| LoadError::Buffer { what, reason: chain(&error) })?;
    Ok(Events::Ring(ring))
}

/// Opens a buffer per CPU; together they have the bytes of the ring.
fn open_perf(ebpf: &mut Ebpf, bytes: u32) -> Result<Events, LoadError> {
    let what = "perf buffers";
    let failed = |reason: String| LoadError::Buffer { what, reason };
    let map = ebpf.take_map("EVENTS_PERF").ok_or_else(|| failed("no map EVENTS_PERF".to_owned()))?;
    let mut array = PerfEventArray::try_from(map).map_err(|error| failed(chain(&error)))?;
    let cpus = online_cpus().map_err(|(path, error)| failed(format!("{path}: {error}")))?;
    let pages = (bytes as usize / 4096 / cpus.len()).next_power_of_two().clamp(8, 1024);
    let open = |cpu: u32| array_open(&mut array, cpu, pages).map_err(failed);
    cpus.into_iter().map(open).collect::<Result<_, _>>().map(Events::Perf)
}

fn array_open<T: BorrowMut<MapData>>(
    array: &mut PerfEventArray<T>,
    cpu: u32,
    pages: usize,
) -> Result<aya::maps::perf::PerfEventArrayBuffer<T>, String> {
    array.open(cpu, Some(pages)).map_err(|error| chain(&error))
}

/// Waits for a grace period: programs that were running when they were detached have returned after it.
///
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu` (kernel/sched/membarrier.c); where it is refused, a few milliseconds do.
pub fn wait_for_running_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes numbers and touches no memory of ours.
    let outcome = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if outcome != 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// How many CPUs there may ever be: per-CPU maps have a value for each.
pub fn possible_cpus() -> u32 {
    nr_cpus().map_or(1, |cpus| cpus as u32)
}
