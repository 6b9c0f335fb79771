//! Who did something, as fields of a row.

use mcptrace_wire::Actor;

use super::{places, put};
use crate::{kernel::cgroups::version_1, report::Row, text::comm};

/// Names of the fields that [`insert`] gives.
pub(super) const FIELDS: [&str; 7] = ["pid", "tid", "comm", "uid", "ppid", "container", "unit"];

/// Puts all that is known of the one who did it. `container` and `unit` only where the control group names one.
pub(super) fn insert(row: &mut Row, actor: &Actor) {
    put(row, "pid", actor.pid);
    put(row, "tid", actor.tid);
    put(row, "comm", comm(&actor.comm));
    put(row, "uid", actor.uid);
    put(row, "ppid", actor.ppid);
    places::insert(row, actor.cgroup);
    // Containers of version 1 are in a group of version 2 that is not their own.
    if !row.contains_key("container")
        && let Some(container) = version_1::container(actor.pid, actor.ppid)
    {
        row.remove("unit");
        put(row, "container", container);
    }
}
