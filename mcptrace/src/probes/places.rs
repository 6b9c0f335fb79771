//! Where a process belongs: its container or unit.

use std::{collections::BTreeMap, fmt};

use aya::maps::MapError;
use mcptrace_wire::GroupPath;

use super::put;
use crate::{
    kernel::{
        attached::{Maps, Plan},
        cgroups::{self, version_1},
        hook::Attach,
        layout::Layout,
    },
    report::{Field, Row},
    text::untrusted,
};

/// Names of the fields that [`insert`] gives.
pub(super) const FIELDS: [&str; 2] = ["container", "unit"];

/// The program that keeps the names of control groups which are removed.
const GONE: Attach = Attach::tracepoint("group_gone", "cgroup_rmdir");
/// Groups whose names are kept, those that were removed last: some 450 bytes each.
const MOST_GONE: u32 = 512;
/// The longest name of a unit, in bytes.
const LONGEST_UNIT: usize = 128;

/// Where a process belongs: its container, else its unit; neither where its control group is of none or is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    container: Option<String>,
    unit: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.container, &self.unit) {
            (Some(container), _) => write!(formatter, "container {container}"),
            (None, Some(unit)) => formatter.write_str(unit),
            (None, None) => Ok(()),
        }
    }
}

impl Place {
    /// That of a control group.
    pub(super) fn of(cgroup: u64) -> Self {
        cgroups::path(cgroup).map_or_else(Self::default, |path| Self::of_path(&path))
    }

    /// That of a process: its control group's, or that of its groups of version 1, which the kernel side does not see. The parent is
    /// asked for who has ended; 0 if it is not known.
    pub(super) fn of_process(cgroup: u64, pid: u32, parent: u32) -> Self {
        let place = Self::of(cgroup);
        if place.container.is_some() {
            return place;
        }
        let other = version_1::path(pid, parent).map_or_else(Self::default, |path| Self::of_path(&path));
        if other.container.is_some() || place.unit.is_none() { other } else { place }
    }

    /// That of a control group, by its path.
    pub(super) fn of_path(path: &str) -> Self {
        let container = cgroups::container(path);
        let unit = if container.is_some() { None } else { cgroups::unit(path) };
        Self { container, unit: unit.map(|unit| untrusted(unit.as_bytes(), LONGEST_UNIT)) }
    }

    /// Puts what there is of it.
    pub(super) fn insert(&self, row: &mut Row) {
        self.insert_as(row, "");
    }

    /// The same with something before the names of the fields.
    pub(super) fn insert_as(&self, row: &mut Row, prefix: &str) {
        for (name, value) in FIELDS.into_iter().zip([&self.container, &self.unit]) {
            if let Some(value) = value {
                put(row, &format!("{prefix}{name}"), value.clone());
            }
        }
    }
}

/// Puts where a process belongs.
pub(super) fn insert(row: &mut Row, cgroup: u64, pid: u32) {
    Place::of_process(cgroup, pid, 0).insert(row);
}

/// Whether events say where their process belongs.
pub(super) fn are_in(fields: &[Field]) -> bool {
    fields.iter().any(|field| field.name.ends_with("container"))
}

/// Has the kernel side keep the names of control groups that are removed: those that are there are found by their ids. Without the hook,
/// a kernel has no control groups.
pub(super) fn watch(plan: &mut Plan, layout: &Layout) {
    if layout.has_tracepoint("cgroup_rmdir") {
        plan.map_entries.push(("GROUPS_GONE", MOST_GONE));
        plan.attach.insert(0, GONE);
    }
}

/// Takes in the names of those that were removed.
pub(crate) fn learn(maps: &Maps<'_>) -> Result<(), MapError> {
    let gone: BTreeMap<u64, GroupPath> = maps.hash("GROUPS_GONE")?;
    for (id, kept) in gone {
        let path = kept.path.split(|byte| *byte == 0).next().unwrap_or_default();
        cgroups::remember(id, String::from_utf8_lossy(path).into_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_container_is_in_no_unit_of_the_host() {
        let id = "4f2a99".repeat(10) + "abcd";
        let row = |path: &str| {
            let mut row = Row::new();
            Place::of_path(path).insert(&mut row);
            serde_json::Value::Object(row)
        };
        assert_eq!(row(&format!("/system.slice/docker-{id}.scope")), serde_json::json!({"container": "4f2a994f2a99"}));
        assert_eq!(row("/system.slice/ssh.service"), serde_json::json!({"unit": "ssh.service"}));
        assert_eq!(row("/"), serde_json::json!({}));
    }
}
