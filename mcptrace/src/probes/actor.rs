//! Who did something, as fields of a row.

use mcptrace_wire::Actor;

use super::put;
use crate::{
    kernel::cgroups::{self, version_1},
    report::Row,
    text::comm,
    text::untrusted,
};

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
    let path = cgroups::path(actor.cgroup);
    let by_version_2 = path.as_deref().and_then(cgroups::container);
    if let Some(container) = by_version_2.or_else(|| version_1::container(actor.pid, actor.ppid)) {
        put(row, "container", container);
    } else if let Some(unit) = path.as_deref().and_then(cgroups::unit) {
        put(row, "unit", untrusted(unit.as_bytes(), 128));
    }
}
