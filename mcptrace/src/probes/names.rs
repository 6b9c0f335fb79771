//! What rows are grouped by, and the names of processes in them.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{Comm, GroupBy};

use super::options::By;
use crate::{
    kernel::{
        attached::{Maps, Plan},
        hook::Attach,
    },
    text::comm,
};

/// The program that keeps the names that processes take.
const RENAMED: Attach = Attach::tracepoint("renamed", "task_rename");

/// Processes whose names are kept, those that took theirs last: some 100 bytes each.
const MOST_NAMES: u32 = 16_384;

/// Has the kernel side group by process, by the command name of the thread, or not at all.
pub(super) fn group(plan: &mut Plan, by: By) {
    let group = match by {
        By::Pid => GroupBy::Pid,
        By::Comm => GroupBy::Comm,
        By::Total | By::Cpu => GroupBy::All,
    };
    plan.globals.push(("GROUP_BY", (group as u32).to_ne_bytes().to_vec()));
    if by == By::Pid {
        name_processes(plan);
    }
}

/// Has the kernel side keep the names that processes take.
pub(super) fn name_processes(plan: &mut Plan) {
    plan.map_entries.push(("NAMES", MOST_NAMES));
    // First, so that no name is missed that a process takes after its first event.
    plan.attach.insert(0, RENAMED);
}

/// The names that processes have taken since tracing began.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<u32, Comm>);

impl Names {
    /// Reads them; none where rows are not of processes.
    pub(super) fn read(maps: &Maps<'_>) -> Result<Self, MapError> {
        maps.hash("NAMES").map(Self)
    }

    /// The last name of a process that had another one when its row was made.
    pub(super) fn last(&self, pid: u32, first: &Comm) -> String {
        comm(self.0.get(&pid).unwrap_or(first))
    }
}

#[cfg(test)]
impl Names {
    /// These.
    pub(super) fn of(names: &[(u32, Comm)]) -> Self {
        Self(names.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Comm = *b"bash\0\0\0\0\0\0\0\0\0\0\0\0";

    #[test]
    fn a_process_has_the_name_that_it_took_last() {
        let names = Names::of(&[(7, *b"ls\0\0\0\0\0\0\0\0\0\0\0\0\0\0")]);
        assert_eq!((names.last(7, &SHELL), names.last(8, &SHELL)), ("ls".to_owned(), "bash".to_owned()));
    }
}
