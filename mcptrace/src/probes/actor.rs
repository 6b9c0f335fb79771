//! Who did something, as fields of a row.

use mcptrace_wire::Actor;

use super::put;
use crate::{kernel::cgroups, report::Row, text::comm, text::untrusted};

/// Names of the fields that [`insert`] gives.
pub(super) const FIELDS: [&str; 7] = ["pid", "tid", "comm", "uid", "ppid", "container", "unit"];

/// Puts all that is known of the one who did it. `container` and `unit` only where the control group names one.
pub(super) fn insert(row: &mut Row, actor: &Actor) {
    put(row, "pid", actor.pid);
    put(row, "tid", actor.tid);
    put(row, "comm", comm(&actor.comm));
    put(row, "uid", actor.uid);
    put(row, "ppid", actor.ppid);
    insert_place(row, actor);
}

/// Puts where it belongs: its container, else its unit.
pub(super) fn insert_place(row: &mut Row, actor: &Actor) {
    let Some(path) = cgroups::path(actor.cgroup) else { return };
    if let Some(container) = cgroups::container(&path) {
        put(row, "container", container);
    } else if let Some(unit) = cgroups::unit(&path) {
        put(row, "unit", untrusted(unit.as_bytes(), 128));
    }
}
