//! What rows are grouped by, and the names of processes in them.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{Comm, GroupBy, Process, cgroup_of_comm};

use super::{options::By, places::Place, put};
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    report::Row,
    text::comm,
};

/// The program that keeps the names that processes take.
const RENAMED: Attach = Attach::tracepoint("renamed", "task_rename");

/// Processes whose names are kept, those that took theirs last: some 100 bytes each.
const MOST_NAMES: u32 = 16_384;

/// Has the kernel side group by process, by the command name of the thread, by control group, or not at all.
pub(super) fn group(plan: &mut Plan, by: By) {
    let group = match by {
        By::Pid => GroupBy::Pid,
        By::Comm => GroupBy::Comm,
        By::Container => GroupBy::Container,
        By::Total | By::Cpu => GroupBy::All,
    };
    plan.globals.push(("GROUP_BY", (group as u32).to_ne_bytes().to_vec()));
    plan.places |= by == By::Container;
    if by == By::Pid {
        name_processes(plan);
    }
}

/// Has the kernel side keep the names that processes take, and where they are then.
pub(super) fn name_processes(plan: &mut Plan) {
    plan.places = true;
    plan.map_entries.push(("NAMES", MOST_NAMES));
    // First, so that no name is missed that a process takes after its first event.
    plan.attach.insert(0, RENAMED);
}

/// Whether groups have entries of their own in the kernel.
pub(super) fn is_grouped(by: By) -> bool {
    matches!(by, By::Pid | By::Comm | By::Container)
}

/// The fields that name a group.
pub(super) fn key_fields(by: By) -> Vec<String> {
    let fields: &[&str] = match by {
        By::Pid => &["pid", "comm", "container", "unit"],
        By::Comm => &["comm"],
        By::Container => &["container", "unit"],
        By::Cpu => &["cpu"],
        By::Total => &[],
    };
    fields.iter().map(|field| (*field).to_owned()).collect()
}

/// The process, command or container that a row is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    pid: Option<u32>,
    comm: Option<String>,
    place: Place,
}

impl Who {
    /// What a sentence calls it: by its number, since names that programs choose have no place in sentences.
    pub(super) fn in_words(&self) -> String {
        self.pid.map_or_else(|| "the row with most of it".to_owned(), |pid| format!("process {pid}"))
    }

    /// The fields of [`key_fields`].
    pub(super) fn row(&self) -> Row {
        let mut row = Row::new();
        self.insert(&mut row);
        row
    }

    /// Puts the fields of [`key_fields`] that it has.
    pub(super) fn insert(&self, row: &mut Row) {
        if let Some(pid) = self.pid {
            put(row, "pid", pid);
        }
        if let Some(comm) = &self.comm {
            put(row, "comm", comm.clone());
        }
        self.place.insert(row);
    }
}

/// The names that processes have taken since tracing began, and where they were then.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<u32, Process>);

impl Names {
    /// Reads them; none where rows are not of processes.
    pub(super) fn read(maps: &Maps<'_>) -> Result<Self, MapError> {
        maps.hash("NAMES").map(Self)
    }

    /// Who a group is, by the number and the name of its key, and the process that it began with.
    pub(super) fn group(&self, by: By, pid: u32, name: &Comm, first: &Process) -> Who {
        match by {
            By::Pid => self.process(pid, first),
            By::Comm => Who { comm: Some(comm(name)), ..Who::default() },
            By::Container => Who { place: Place::of(cgroup_of_comm(name)), ..Who::default() },
            By::Total | By::Cpu => Who::default(),
        }
    }

    /// A process as it was last: it may have had another name when its row was made.
    pub(super) fn process(&self, pid: u32, first: &Process) -> Who {
        let last = self.0.get(&pid).unwrap_or(first);
        Who { pid: Some(pid), comm: Some(comm(&last.comm)), place: Place::of_process(last.cgroup, pid, 0) }
    }
}

#[cfg(test)]
impl Names {
    /// These.
    pub(super) fn of(names: &[(u32, Comm)]) -> Self {
        Self(names.iter().map(|(pid, comm)| (*pid, Process { cgroup: 0, comm: *comm })).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Process = Process { cgroup: 0, comm: *b"bash\0\0\0\0\0\0\0\0\0\0\0\0" };

    #[test]
    fn a_process_has_the_name_that_it_took_last() {
        let names = Names::of(&[(7, *b"ls\0\0\0\0\0\0\0\0\0\0\0\0\0\0")]);
        let of = |pid| names.group(By::Pid, pid, &[0; 16], &SHELL).comm.unwrap();
        assert_eq!((of(7), of(8)), ("ls".to_owned(), "bash".to_owned()));
        assert_eq!(names.group(By::Comm, 0, &SHELL.comm, &SHELL).comm.as_deref(), Some("bash"));
    }
}
