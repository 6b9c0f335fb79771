//! The stacks of an execution: takes in their frames as they come, and finds the names of their functions.
//!
//! A frame of user space is a place in a file, told by its build id, or an address in a process. Where files are is read when a
//! process is first seen, so that it is known when the process has ended.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blazesym::helper::read_elf_build_id;
use mcptrace_wire::{Comm, Executed, FRAME_ADDRESS, FRAME_IN_FILE, KERNEL_FRAMES, NewStack, StackKey, UserFrame};

use super::symbols::{self, Names, Question};
use crate::{probes::parse, text};

/// Memory for frames, in bytes: 40,000 stacks of usual depth.
const MOST_BYTES: usize = 24 << 20;
/// Processes whose files are remembered.
const MOST_PROCESSES: usize = 4096;
/// Mappings of a process that are remembered, and bytes of its list that are read.
const MOST_MAPPINGS: usize = 1024;
const MOST_MAPS_BYTES: u64 = 4 << 20;

/// Where the files are that a process has mapped, by their addresses.
const MAP_FILES: &str = "map_files";
/// The name of a frame of which only the place is known.
const UNKNOWN: &str = "[unknown]";
/// The name of a frame in a file that was not found when names were asked for.
const GONE: &str = "[gone]";

/// The stacks of an execution.
#[derive(Debug, Default)]
pub struct Stacks {
    state: Mutex<State>,
}

/// A stack with names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedStack {
    /// The command of its thread when it was first seen.
    pub comm: String,
    /// Its functions, outermost first, those of the kernel after those of user space.
    pub frames: Vec<Arc<str>>,
    /// How many of them are of the kernel: the last ones.
    pub kernel: usize,
    /// Whether its innermost function has no name; of all others it is asked who called.
    pub unknown: bool,
}

/// All stacks with names.
#[derive(Debug, Default)]
pub struct Named {
    /// By what the kernel side calls them.
    pub stacks: HashMap<StackKey, NamedStack>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    stacks: HashMap<StackKey, Frames>,
    processes: HashMap<u32, Process>,
    build_ids: Vec<[u8; 20]>,
    bytes: usize,
    /// Stacks whose frames were not kept.
    unkept: u64,
    kernel_names: HashMap<u64, Option<Arc<str>>>,
    user_names: HashMap<Place, Arc<str>>,
    /// Those without a name of a function.
    nameless: HashSet<Place>,
    /// Processes that run another program since they were looked at.
    changed: HashSet<u32>,
    /// Programs that processes have begun to run.
    programs: BTreeSet<PathBuf>,
    /// The build ids of files, by path.
    files: HashMap<PathBuf, Option<[u8; 20]>>,
}

#[derive(Debug)]
struct Frames {
    comm: Comm,
    /// Innermost first; see [`called_from`].
    kernel: Box<[u64]>,
    user: Box<[Place]>,
}

/// Where a frame of user space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place {
    /// In the file of a build id, by its index, at an offset.
    File(u32, u64),
    /// In a process, at an address.
    Address(u32, u64),
}

/// What a process has mapped to be executed.
#[derive(Debug, Default)]
struct Process {
    mappings: Vec<Mapping>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    path: PathBuf,
    /// Whether the file has no name any more: under its old one there may be another.
    deleted: bool,
}

impl Stacks {
    /// No stacks yet. What is known of a process to be looked at is read at once: it may end before its first stack arrives.
    pub fn new(pid: Option<u32>) -> Self {
        let stacks = Self::default();
        if let Some(pid) = pid {
            stacks.state().look_at(pid);
        }
        stacks
    }

    /// Takes in a record; false if it is malformed.
    pub fn take(&self, record: &[u8]) -> bool {
        if let Some((head, path)) = parse::<Executed>(record) {
            self.state().executes(head.pid, path);
            return true;
        }
        let Some((head, rest)) = parse::<NewStack>(record) else { return false };
        let Some(frames) = Raw::read(&head, rest) else { return false };
        let mut state = self.state();
        if head.user_frames > 0 {
            state.look_at(head.pid);
        }
        state.keep(&head, &frames);
        true
    }

    /// Finds all names. Slow the first time; what was found is kept.
    pub fn named(&self) -> Named {
        let mut state = self.state();
        let notes = state.find_names();
        let stacks = state.stacks.iter().map(|(key, frames)| (*key, state.named(frames))).collect();
        let mut named = Named { stacks, notes };
        if state.unkept > 0 {
            named.notes.push(format!(
                "the frames of {} stacks were not kept ({} MB of memory for an execution): they stand as {UNKNOWN}",
                state.unkept,
                MOST_BYTES >> 20
            ));
        }
        named
    }

    /// Memory that it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frames of a record.
struct Raw {
    kernel: Vec<u64>,
    user: Vec<UserFrame>,
}

impl Raw {
    fn read(head: &NewStack, rest: &[u8]) -> Option<Self> {
        const FRAME: usize = size_of::<UserFrame>();
        let (kernel, user) = rest.split_at_checked(KERNEL_FRAMES * 8)?;
        let (kernel_frames, user_frames) = (head.kernel_frames as usize, head.user_frames as usize);
        if kernel_frames > KERNEL_FRAMES || user.len() < user_frames * FRAME {
            return None;
        }
        let word = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_ne_bytes);
        let kernel = kernel.chunks_exact(8).take(kernel_frames).filter_map(word).collect();
        let user = user.chunks_exact(FRAME).take(user_frames).filter_map(user_frame).collect();
        Some(Self { kernel, user })
    }
}

fn user_frame(bytes: &[u8]) -> Option<UserFrame> {
    Some(UserFrame {
        status: i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?),
        build_id: bytes.get(4..24)?.try_into().ok()?,
        place: u64::from_ne_bytes(bytes.get(24..32)?.try_into().ok()?),
    })
}

impl State {
    fn keep(&mut self, head: &NewStack, raw: &Raw) {
        let key = StackKey { id: head.id, pid: head.pid, zero: 0 };
        let size =
            size_of::<Frames>() + size_of::<StackKey>() + raw.kernel.len() * 8 + raw.user.len() * size_of::<Place>();
        if self.bytes + size > MOST_BYTES {
            self.unkept += 1;
            return;
        }
        let user =
            raw.user.iter().enumerate().filter_map(|(depth, frame)| self.place(head.pid, depth, frame)).collect();
        let kernel = raw.kernel.iter().enumerate().map(|(depth, address)| called_from(depth, *address)).collect();
        let frames = Frames { comm: head.comm, kernel, user };
        // Two CPUs may have sent the same one.
        if self.stacks.insert(key, frames).is_none() {
            self.bytes += size;
        }
    }

    fn place(&mut self, pid: u32, depth: usize, frame: &UserFrame) -> Option<Place> {
        let place = called_from(depth, frame.place);
        match frame.status {
            FRAME_IN_FILE => Some(Place::File(self.build_id(frame.build_id), place)),
            FRAME_ADDRESS => Some(Place::Address(pid, place)),
            _ => None,
        }
    }

    fn build_id(&mut self, id: [u8; 20]) -> u32 {
        // There are few: the files that run.
        let known = self.build_ids.iter().position(|known| *known == id);
        known.unwrap_or_else(|| {
            self.build_ids.push(id);
            self.build_ids.len() - 1
        }) as u32
    }

    /// Remembers what a process has mapped.
    fn look_at(&mut self, pid: u32) {
        let is_new = !self.processes.contains_key(&pid) && self.processes.len() < MOST_PROCESSES;
        if self.changed.remove(&pid) || is_new {
            self.read_again(pid);
        }
    }

    /// Adds what a process has mapped now to what it had.
    fn read_again(&mut self, pid: u32) {
        let now = Process::read(pid);
        let known = self.processes.entry(pid).or_default();
        let before = known.mappings.len();
        for mapping in now.mappings {
            if known.mappings.len() < MOST_MAPPINGS && !known.mappings.contains(&mapping) {
                known.mappings.push(mapping);
            }
        }
        self.bytes += (known.mappings.len() - before) * size_of::<Mapping>();
    }

    /// A process runs another program from now on. A path that is not absolute is relative to a directory that only the process knows.
    fn executes(&mut self, pid: u32, path: &[u8]) {
        let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
        let given = PathBuf::from(OsStr::from_bytes(&path[..end]));
        let path = if given.is_absolute() { Some(given) } else { fs::read_link(format!("/proc/{pid}/exe")).ok() };
        if self.programs.len() < MOST_PROCESSES {
            self.programs.extend(path);
        }
        // What it has mapped changes in the next moments: that is looked at when its first stack comes.
        self.changed.insert(pid);
    }

    fn named(&self, frames: &Frames) -> NamedStack {
        let unknown_name: Arc<str> = UNKNOWN.into();
        let mut names = Vec::with_capacity(frames.user.len() + frames.kernel.len());
        for place in frames.user.iter().rev() {
            names.push(self.user_names.get(place).unwrap_or(&unknown_name).clone());
        }
        let kernel: Vec<_> =
            frames.kernel.iter().map(|address| self.kernel_names.get(address).and_then(Clone::clone)).collect();
        let own = of_tracing(&kernel);
        for name in kernel[own..].iter().rev() {
            names.push(name.clone().unwrap_or_else(|| unknown_name.clone()));
        }
        let unknown = match (kernel.get(own), frames.user.first()) {
            (Some(name), _) => name.is_none(),
            (None, Some(place)) => self.nameless.contains(place),
            (None, None) => false,
        };
        NamedStack { comm: text::comm(&frames.comm), frames: names, kernel: kernel.len() - own, unknown }
    }

    /// Asks for the names that are not known yet.
    fn find_names(&mut self) -> Vec<String> {
        let kernel = self.unnamed_kernel();
        let mut files: Vec<(PathBuf, Vec<(Place, u64)>)> = Vec::new();
        for (path, places) in self.unnamed_places() {
            match path {
                Ok(path) => files.push((path, places)),
                Err(otherwise) => self.name_places(&places, None, otherwise),
            }
        }
        let question = Question {
            kernel: kernel.clone(),
            files: files
                .iter()
                .map(|(path, places)| (path.clone(), places.iter().map(|(_, offset)| *offset).collect()))
                .collect(),
        };
        let Names { kernel: kernel_names, files: file_names, notes } =
            if kernel.is_empty() && files.is_empty() { Names::default() } else { symbols::ask(question) };
        for address in kernel {
            self.kernel_names.insert(address, kernel_names.get(&address).map(|name| Arc::from(name.as_str())));
        }
        for (index, (path, places)) in files.iter().enumerate() {
            self.name_places(places, file_names.get(index), &nameless(path));
        }
        notes
    }

    fn unnamed_kernel(&self) -> Vec<u64> {
        let all = self.stacks.values().flat_map(|frames| frames.kernel.iter().copied());
        all.filter(|address| !self.kernel_names.contains_key(address)).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn name_places(&mut self, places: &[(Place, u64)], names: Option<&HashMap<u64, String>>, otherwise: &str) {
        for (place, offset) in places {
            let name = names.and_then(|names| names.get(offset));
            if name.is_none() {
                self.nameless.insert(*place);
            }
            self.user_names.insert(*place, name.map_or(otherwise, String::as_str).into());
        }
    }

    /// Places without a name by file, with their offsets in it; those without a file by what they are called instead.
    fn unnamed_places(&mut self) -> HashMap<Result<PathBuf, &'static str>, Vec<(Place, u64)>> {
        let all = self.stacks.iter().flat_map(|(key, frames)| frames.user.iter().map(|place| (key.pid, *place)));
        let mut unnamed: Vec<_> = all.filter(|(_, place)| !self.user_names.contains_key(place)).collect();
        unnamed.sort_unstable();
        unnamed.dedup();
        self.look_again(&unnamed);
        let mut found: HashMap<Result<PathBuf, &'static str>, Vec<(Place, u64)>> = HashMap::new();
        let mut paths = HashMap::new();
        let mut done = HashSet::new();
        for (pid, place) in unnamed {
            if !done.insert(place) {
                continue;
            }
            let (path, offset) = match place {
                Place::File(id, offset) => {
                    let path = paths.entry(id).or_insert_with(|| self.file_of(pid, self.build_ids[id as usize]));
                    (path.clone().ok_or(GONE), offset)
                }
                Place::Address(pid, address) => self.file_at(pid, address),
            };
            found.entry(path).or_default().push((place, offset));
        }
        found
    }

    /// Libraries may have been loaded since a process was first seen.
    fn look_again(&mut self, places: &[(u32, Place)]) {
        let pids: BTreeSet<u32> = places.iter().map(|(pid, _)| *pid).collect();
        // This process has the libraries that nearly all have.
        for pid in pids.into_iter().chain([std::process::id()]) {
            if self.processes.len() < MOST_PROCESSES || self.processes.contains_key(&pid) {
                self.read_again(pid);
            }
        }
    }

    /// A file with a build id: one that the process has mapped, else one of any process.
    fn file_of(&mut self, pid: u32, build_id: [u8; 20]) -> Option<PathBuf> {
        let of = |state: &Self, pid: u32| -> Vec<PathBuf> {
            let process = state.processes.get(&pid);
            process
                .iter()
                .flat_map(|process| &process.mappings)
                // What has the name now may be the same file put back.
                .flat_map(|mapping| [mapping.file(pid), reachable(pid, &mapping.path)])
                .flatten()
                .collect()
        };
        let own = of(self, pid);
        let others = self.processes.keys().flat_map(|other| of(self, *other));
        let programs = self.programs.iter().filter_map(|path| reachable(pid, path));
        let candidates: Vec<_> = own.into_iter().chain(programs).chain(others).collect();
        candidates.into_iter().find(|path| self.build_id_of(path) == Some(build_id))
    }

    fn build_id_of(&mut self, path: &Path) -> Option<[u8; 20]> {
        // Another file can be mapped in the same place later.
        let lasts = !path.iter().any(|part| part == MAP_FILES);
        if let Some(known) = self.files.get(path).filter(|_| lasts) {
            return *known;
        }
        let id = read_elf_build_id(&path).ok().flatten().map(|id| {
            // Shorter ones are padded with zeros, as the kernel does (lib/buildid.c).
            let mut padded = [0; 20];
            let length = id.len().min(20);
            padded[..length].copy_from_slice(&id[..length]);
            padded
        });
        self.files.insert(path.to_owned(), id);
        id
    }

    fn file_at(&self, pid: u32, address: u64) -> (Result<PathBuf, &'static str>, u64) {
        let mut mappings = self.processes.get(&pid).into_iter().flat_map(|process| &process.mappings);
        match mappings.find(|mapping| (mapping.start..mapping.end).contains(&address)) {
            Some(mapping) => (mapping.file(pid).ok_or(GONE), address - mapping.start + mapping.offset),
            None => (Err(UNKNOWN), 0),
        }
    }
}

/// A place in the call by which a frame has the next inner one. All but the innermost are return addresses, and behind a call that does not
/// return stands the next function. What the kernel interrupted in itself is exact, but still the same function unless it was at its
/// first instruction.
fn called_from(depth: usize, address: u64) -> u64 {
    if depth == 0 { address } else { address.saturating_sub(1) }
}

/// A file without a symbol for the place.
fn nameless(path: &Path) -> String {
    // One that was deleted is a link in /proc to what it was called.
    let path = fs::read_link(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().map_or_else(String::new, |name| text::untrusted(name.as_encoded_bytes(), 64));
    format!("[{name}]")
}

/// How many of the innermost functions only capture the stack. The program itself has no name once it is detached.
fn of_tracing(kernel: &[Option<Arc<str>>]) -> usize {
    let is_own = |name: &Option<Arc<str>>| name.as_deref().is_none_or(is_of_tracing);
    let inner = &kernel[..kernel.iter().take_while(|name| is_own(name)).count()];
    inner.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
}

/// Functions by which a stack comes to be captured: they are not what the thread does.
fn is_of_tracing(name: &str) -> bool {
    const STARTS: &[&str] = &["bpf_", "__bpf_", "__traceiter_", "___bpf_prog_run", "perf_trace_", "__do_trace_"];
    STARTS.iter().any(|start| name.starts_with(start))
}

/// A path of a process as this one reaches it: in the root of the process, where that is another file. Only regular files.
fn reachable(pid: u32, path: &Path) -> Option<PathBuf> {
    let id = |path: &Path| fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|file| (file.dev(), file.ino()));
    let there = PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path));
    match (id(path), id(&there)) {
        (here, Some(inside)) if here != Some(inside) => Some(there),
        (Some(_), _) => Some(path.to_owned()),
        _ => None,
    }
}

impl Process {
    /// What a process has mapped now; nothing if it has ended.
    fn read(pid: u32) -> Self {
        let mut text = String::new();
        let file = File::open(format!("/proc/{pid}/maps"));
        let read = file.and_then(|file| file.take(MOST_MAPS_BYTES).read_to_string(&mut text));
        let mappings =
            read.map_or_else(|_| Vec::new(), |_| text.lines().filter_map(mapping).take(MOST_MAPPINGS).collect());
        Self { mappings }
    }
}

impl Mapping {
    /// Its file as this process reaches it. One that is deleted, as a program is that was replaced while it runs, can be opened through its
    /// process for as long as that lives.
    fn file(&self, pid: u32) -> Option<PathBuf> {
        if !self.deleted {
            return reachable(pid, &self.path);
        }
        let mapped = PathBuf::from(format!("/proc/{pid}/{MAP_FILES}/{:x}-{:x}", self.start, self.end));
        fs::metadata(&mapped).is_ok_and(|file| file.is_file()).then_some(mapped)
    }
}

/// A line of `/proc/PID/maps`: `start-end perms offset device inode path`; only what can be executed and is in a file.
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let may = fields.next()?;
    let offset = fields.next()?;
    let path = &line[line.find('/').filter(|_| may.contains('x'))?..];
    let [start, end, offset] = [start, end, offset].map(|number| u64::from_str_radix(number, 16).ok());
    let named = path.strip_suffix(" (deleted)");
    let (path, deleted) = (PathBuf::from(named.unwrap_or(path)), named.is_some());
    Some(Mapping { start: start?, end: end?, offset: offset?, path, deleted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_that_is_executed_and_has_a_file_is_remembered() {
        let line = "55d0c0100000-55d0c0200000 r-xp 00042000 fe:00 1234                       /usr/bin/with space";
        let expected = Mapping {
            start: 0x55d0_c010_0000,
            end: 0x55d0_c020_0000,
            offset: 0x42000,
            path: "/usr/bin/with space".into(),
            deleted: false,
        };
        assert_eq!(mapping(&format!("{line} (deleted)")), Some(Mapping { deleted: true, ..expected.clone() }));
        assert_eq!(mapping(line), Some(expected));
        assert_eq!(mapping("1000-2000 rw-p 0 fe:00 1 /usr/lib/libc.so.6"), None);
        assert_eq!(mapping("7ffd1000-7ffd2000 r-xp 0 00:00 0 [vdso]"), None);
        assert_eq!(mapping(""), None);
    }

    #[test]
    fn frames_by_which_a_stack_is_captured_are_not_shown() {
        let mut state = State::default();
        let names = ["bpf_prog_1234_switch", "__traceiter_sched_switch", "__schedule", "bpf_user", "schedule"];
        for (address, name) in names.iter().enumerate() {
            state.kernel_names.insert(address as u64, Some((*name).into()));
        }
        let frames = Frames {
            comm: *b"worker\0\0\0\0\0\0\0\0\0\0",
            kernel: [0, 1, 2, 3, 4, 5].into(),
            user: [Place::Address(1, 7)].into(),
        };
        let named = state.named(&frames);
        assert_eq!(
            named.frames.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            ["[unknown]", "[unknown]", "schedule", "bpf_user", "__schedule"]
        );
        assert_eq!((named.comm.as_str(), named.kernel, named.unknown), ("worker", 4, false));
        let frames = Frames { kernel: [9, 1, 2].into(), ..frames };
        assert_eq!(state.named(&frames).kernel, 1, "a program that is gone has no name");
        let frames = Frames { kernel: [1, 9, 2].into(), ..frames };
        assert!(state.named(&frames).unknown, "the innermost that is shown has no name");
        let mut frames = Frames { kernel: [].into(), ..frames };
        assert!(!state.named(&frames).unknown);
        state.name_places(&[(Place::Address(1, 7), 0)], None, "[stripped]");
        assert!(state.named(&frames).unknown, "a file without symbols says nothing of the function");
        frames.user = [].into();
        assert!(!state.named(&frames).unknown);
    }

    #[test]
    fn callers_are_named_by_the_call_and_not_by_what_stands_behind_it() {
        let mut state = State::default();
        let in_file = |place| UserFrame { status: FRAME_IN_FILE, build_id: [7; 20], place };
        let raw = Raw {
            kernel: vec![100, 200],
            user: vec![in_file(10), in_file(10), UserFrame { status: FRAME_ADDRESS, build_id: [0; 20], place: 30 }],
        };
        state.keep(&head(2, 3), &raw);
        let frames = state.stacks.values().next().unwrap();
        assert_eq!(*frames.kernel, [100, 199]);
        assert_eq!(*frames.user, [Place::File(0, 10), Place::File(0, 9), Place::Address(1, 29)]);
    }

    fn head(kernel_frames: u32, user_frames: u32) -> NewStack {
        NewStack {
            header: mcptrace_wire::Header { size: 0, version: 0, kind: 0 },
            pid: 1,
            time_ns: 0,
            id: 2,
            comm: [0; 16],
            kernel_frames,
            user_frames,
        }
    }

    #[test]
    fn a_record_that_promises_more_than_it_has_is_malformed() {
        let head = head(3, 2);
        let rest = vec![0; KERNEL_FRAMES * 8 + 2 * size_of::<UserFrame>()];
        let raw = Raw::read(&head, &rest).unwrap();
        assert_eq!((raw.kernel.len(), raw.user.len()), (3, 2));
        assert!(Raw::read(&head, &rest[1..]).is_none());
        assert!(Raw::read(&NewStack { kernel_frames: 65, ..head }, &rest).is_none());
    }
}
