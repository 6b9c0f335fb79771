//! What a program allocates and does not free.

use std::collections::BTreeMap;

use aya::maps::MapError;
use mcptrace_wire::{StackKey, StackWeight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Context, Found, OptionError, Probe, WithStacks, functions,
    options::Side,
    plan_of,
    stacks::{self, MOST_STACKS, Unit},
    syscall_counts::words,
};
use crate::{
    kernel::{
        arch::ARCH,
        attached::{Maps, Plan},
        hook::{Attach, Function},
        stacks::Stacks,
    },
    report::Field,
};

/// Blocks that are kept account of: 64 bytes each.
const MOST_BLOCKS: u32 = 262_144;
/// Functions that allocate, and the program for each.
const ALLOCATORS: &[(&str, &str)] = &[
    ("malloc", "allocates_first"),
    ("valloc", "allocates_first"),
    ("pvalloc", "allocates_first"),
    ("calloc", "allocates_product"),
    ("aligned_alloc", "allocates_second"),
    ("memalign", "allocates_second"),
    ("posix_memalign", "allocates_into"),
    ("realloc", "reallocates"),
];

/// The probe.
#[derive(Debug)]
pub struct HeapGrowth {
    stacks: Stacks,
    sample: u32,
}

/// Options of the probe.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Program or library, by path or name
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub binary: Option<String>,
    /// Look at one in so many, and multiply
    #[schemars(range(min = 1))]
    pub sample: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { binary: None, sample: 1 }
    }
}

impl Probe for HeapGrowth {
    const NAME: &'static str = "heap_growth";
    const SUMMARY: &'static str = "Which code allocates memory that is not freed?";
    const CATEGORY: &'static str = "memory";
    const DETAILS: &'static str = "Bytes that the process in filter.pid asked malloc, calloc, realloc and kin for while this ran and had not \
        freed at its end, by the stack that asked. What is not freed yet need not be a leak: caches and buffers look the same; run it \
        longer, or twice, and see what grows. Allocators of a program's own (jemalloc, Go, a Java heap) are not seen, unless options.binary \
        names the file that has their malloc. Each call traps twice into the kernel, some microseconds: options.sample looks at one in so \
        many allocations and multiplies, but the traps remain. User stacks are found by frame pointers.";
    const NEXT: &'static [&'static str] = &[
        "the process grows and its heap does not: page_faults with filter.pid, for mappings of files and stacks",
        "where time goes meanwhile: cpu_profile with filter.pid",
    ];
    const EXAMPLE: &'static str = r#"{"probe":"heap_growth","filter":{"pid":1234},"seconds":30}"#;
    const OBJECT: &'static [u8] = aya::include_bytes_aligned!("../../bpf/heap_growth.o");
    const HOOKS: &'static [Attach] = &[
        Attach::functions("returns", "libc:malloc, calloc, realloc…"),
        Attach::functions("allocates_first", "libc:malloc"),
        Attach::functions("allocates_second", "libc:aligned_alloc"),
        Attach::functions("allocates_product", "libc:calloc"),
        Attach::functions("allocates_into", "libc:posix_memalign"),
        Attach::functions("reallocates", "libc:realloc"),
        Attach::functions("frees", "libc:free"),
    ];
    const NEEDS: &'static [&'static str] = &["TASK_COMM"];
    const COUNTS: &'static str = "returns";
    const HAS_DURATION: bool = false;
    const COST_NS: f64 = 12_000.0;
    const STACKS: WithStacks = WithStacks::Always;
    type Options = Options;

    fn plan(options: &Options, context: &Context<'_>) -> Result<(Self, Plan), OptionError> {
        let Options { binary, sample } = options;
        let binary = binary.as_deref().unwrap_or(functions::LIBC);
        let pid = context.filter.pid;
        if pid.is_none() && !binary.contains('/') {
            return Err(OptionError::new(format!(
                "heap_growth needs filter.pid, or the path of a program or library in options.binary: without, it would trap every \
                 allocation of every process that uses {binary}"
            )));
        }
        let mut plan = plan_of::<Self>(context);
        plan.attach = attach(binary, pid, context.filter.follow.is_some())?;
        stacks::prepare(&mut plan);
        plan.map_entries.extend([("BLOCKS", MOST_BLOCKS), ("FREED", MOST_STACKS)]);
        plan.globals.push(("REGS_FUNCTION", words(&ARCH.regs_function)));
        plan.globals.push(("SAMPLE", sample.to_ne_bytes().to_vec()));
        plan.globals.push(Side::User.global());
        Ok((Self { stacks: Stacks::new(context.filter.pid), sample: *sample }, plan))
    }

    fn report(&self, maps: &Maps<'_>, _seconds: f64) -> Result<Found, MapError> {
        let (allocated, freed) = (maps.hash("STACKS")?, maps.hash("FREED")?);
        let kept = kept(&allocated, &freed, self.sample);
        let mut found = stacks::found(&kept, self.stacks.named(), Unit::Bytes);
        found.delivered = allocated.values().map(|weight: &StackWeight| weight.count).sum();
        found.notes.insert(0, summary(&allocated, &kept, self.sample));
        Ok(found)
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("value", "bytes")]
    }

    fn take(&self, record: &[u8]) -> bool {
        self.stacks.take(record)
    }

    fn bytes(&self) -> usize {
        self.stacks.bytes()
    }
}

/// Where to attach: what frees first and the returns before the entries, so that nothing is taken for kept that was freed. The kernel
/// is asked to look at one process only where its children are not followed.
fn attach(binary: &str, pid: Option<u32>, follows: bool) -> Result<Vec<Attach>, OptionError> {
    let find = |symbol: &str| {
        let found = Function::find(binary, symbol, pid);
        let found = found.map_err(|error| OptionError::new(format!("options.binary: {error}")))?;
        Ok::<_, OptionError>(Function { pid: found.pid.filter(|_| !follows), ..found })
    };
    let mut hooks = vec![Attach::function("frees", find("free")?)];
    find("malloc")?;
    // An allocator need not have the others.
    let known: Vec<_> =
        ALLOCATORS.iter().filter_map(|(symbol, program)| Some((find(symbol).ok()?, *program))).collect();
    hooks.extend(known.iter().map(|(function, _)| Attach::function("returns", function.clone())));
    hooks.extend(known.into_iter().map(|(function, program)| Attach::function(program, function)));
    Ok(hooks)
}

/// What was allocated less what was freed.
fn kept(
    allocated: &BTreeMap<StackKey, StackWeight>,
    freed: &BTreeMap<StackKey, StackWeight>,
    sample: u32,
) -> BTreeMap<StackKey, StackWeight> {
    let left = |(key, weight): (&StackKey, &StackWeight)| {
        let freed = freed.get(key).copied().unwrap_or_default();
        let times = |all: u64, freed: u64| all.saturating_sub(freed) * u64::from(sample);
        (*key, StackWeight { count: times(weight.count, freed.count), sum: times(weight.sum, freed.sum) })
    };
    allocated.iter().map(left).collect()
}

fn summary(allocated: &BTreeMap<StackKey, StackWeight>, kept: &BTreeMap<StackKey, StackWeight>, sample: u32) -> String {
    let sum =
        |weights: &BTreeMap<StackKey, StackWeight>, of: fn(&StackWeight) -> u64| weights.values().map(of).sum::<u64>();
    let all = sum(allocated, |weight| weight.count) * u64::from(sample);
    let (blocks, bytes) = (sum(kept, |weight| weight.count), sum(kept, |weight| weight.sum));
    let about = if sample > 1 { "about " } else { "" };
    format!("of {about}{all} allocations {blocks} were not freed: {bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_was_allocated_less_what_was_freed_times_the_sample() {
        let key = |id| StackKey { id, pid: 1, zero: 0 };
        let weight = |count, sum| StackWeight { count, sum };
        let allocated = BTreeMap::from([(key(20), weight(5, 500)), (key(21), weight(2, 64))]);
        let freed = BTreeMap::from([(key(20), weight(3, 300)), (key(21), weight(2, 64))]);
        let kept = kept(&allocated, &freed, 10);
        assert_eq!(kept[&key(20)], weight(20, 2000));
        assert_eq!(kept[&key(21)], weight(0, 0));
        assert_eq!(summary(&allocated, &kept, 10), "of about 70 allocations 20 were not freed: 2000 bytes");
    }
}
