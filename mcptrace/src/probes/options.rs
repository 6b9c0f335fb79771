//! Options that several probes share: one name, one type, one meaning.

use mcptrace_wire::{KERNEL_SIDE, USER_SIDE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::OptionError;
use crate::{
    kernel::{arch, attached},
    range,
    suggest::nearest,
    text::quoted,
};

/// What results are grouped by
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum By {
    /// Nothing beyond what the probe always tells apart.
    #[default]
    Total,
    /// Process.
    Pid,
    /// Command name.
    Comm,
    /// CPU.
    Cpu,
    /// Container, else systemd unit.
    Container,
}

impl By {
    /// The word used in options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Pid => "pid",
            Self::Comm => "comm",
            Self::Cpu => "cpu",
            Self::Container => "container",
        }
    }
}

/// Refuses a group that a probe does not make.
pub fn check_group(probe: &str, groups: &[By], given: &Map<String, Value>) -> Result<(), OptionError> {
    let Some(by) = given.get("by").and_then(Value::as_str).filter(|_| !groups.is_empty()) else { return Ok(()) };
    let names: Vec<_> = groups.iter().map(|group| group.as_str()).collect();
    if names.contains(&by) {
        return Ok(());
    }
    Err(OptionError {
        message: format!("options.by: {probe} does not group by `{}`; it takes {}", quoted(by), names.join(", ")),
        did_you_mean: nearest(by, names.iter().copied()).map(str::to_owned),
    })
}

/// Refuses a number outside of what the schemas of the options allow.
pub fn check_numbers(schemas: Option<&Value>, given: &Map<String, Value>) -> Result<(), OptionError> {
    let fault = |(name, value): (&String, &Value)| {
        let fault = range::fault(schemas?.get(name)?, value)?;
        Some(OptionError::new(format!("options.{name}: {fault}")))
    };
    given.iter().find_map(fault).map_or(Ok(()), Err)
}

/// Options that say how what is seen is shown.
const OF_SHAPE: [&str; 10] =
    ["by", "events", "hertz", "histogram", "sample", "side", "slower_than_us", "stacks", "texts", "transport"];

/// Whether options, with their defaults filled in, leave out what the probe would see without them.
pub fn narrow(options: &Map<String, Value>) -> bool {
    let leaves_out = |value: &Value| *value != false && *value != "any" && *value != "*";
    options.iter().any(|(name, value)| !OF_SHAPE.contains(&name.as_str()) && leaves_out(value))
}

/// Which part of a stack is kept
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Side {
    /// Kernel and user space.
    #[default]
    Both,
    /// Kernel only.
    Kernel,
    /// User space only.
    User,
}

impl Side {
    /// The global of the kernel side that says so.
    pub fn global(self) -> (&'static str, Vec<u8>) {
        let sides = match self {
            Self::Both => KERNEL_SIDE | USER_SIDE,
            Self::Kernel => KERNEL_SIDE,
            Self::User => USER_SIDE,
        };
        ("STACK_SIDES", sides.to_ne_bytes().to_vec())
    }
}

/// How events reach user space; the kernel decides if not set
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Transport {
    /// Ring buffer, 5.8 and later.
    Ring,
    /// Perf buffer per CPU.
    Perf,
}

impl Transport {
    /// The kernel side's word for it.
    pub fn resolve(chosen: Option<Self>, default: attached::Transport) -> attached::Transport {
        match chosen {
            None => default,
            Some(Self::Ring) => attached::Transport::Ring,
            Some(Self::Perf) => attached::Transport::Perf,
        }
    }
}

/// Options of probes that only send events
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventOptions {
    /// How events reach user space; left out, the kernel's best
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub transport: Option<Transport>,
}

/// The index of a system call that an option names.
pub fn syscall(name: &str) -> Result<u32, OptionError> {
    arch::syscall_by_name(name).ok_or_else(|| OptionError {
        message: format!("options.syscall: there is no system call `{}` on this architecture", quoted(name)),
        did_you_mean: nearest(name, arch::syscall_names()).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_leaves_something_out_narrows() {
        let narrows = |options: Value| narrow(options.as_object().unwrap());
        assert!(!narrows(
            json!({"by": "pid", "slower_than_us": 0, "events": true, "transport": "ring", "failed_only": false})
        ));
        assert!(!narrows(json!({"state": "any", "side": "user", "usdt": "*"})));
        for options in [json!({"failed_only": true}), json!({"port": 443}), json!({"state": "interruptible"})] {
            assert!(narrows(options.clone()), "{options}");
        }
        let known: Vec<_> = crate::probes::PROBES.iter().flat_map(crate::probes::Entry::option_names).collect();
        assert!(OF_SHAPE.iter().all(|name| known.iter().any(|option| option == name)), "{known:?}");
    }
}
