//! Who did something, as fields of a row.

use mcptrace_wire::Actor;

use super::{places::Place, put};
use crate::{report::Row, text::comm};

/// Names of the fields that [`insert`] gives.
pub(super) const FIELDS: [&str; 7] = ["pid", "tid", "comm", "uid", "ppid", "container", "unit"];

/// Puts all that is known of the one who did it. `container` and `unit` only where the control group names one.
pub(super) fn insert(row: &mut Row, actor: &Actor) {
    put(row, "pid", actor.pid);
    put(row, "tid", actor.tid);
    put(row, "comm", comm(&actor.comm));
    put(row, "uid", actor.uid);
    put(row, "ppid", actor.ppid);
    place(actor).insert(row);
}

/// Where it belongs.
pub(super) fn place(actor: &Actor) -> Place {
    Place::of_process(actor.cgroup, actor.pid, actor.ppid)
}
