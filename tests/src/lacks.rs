//! What kernels lack for probes: the one table that tests hold what probes say against, and that docs/kernels.md is written from.

use crate::probing::kernel_version;

/// What the kernel that runs lacks for a probe.
pub fn lacks(probe: &str) -> Vec<&'static Lack> {
    let version = kernel_version();
    LACKS.iter().filter(|lack| lack.probe == probe && version < lack.since).collect()
}

/// What kernels lack for a probe. What a probe says and is not here is a fault, and so is what is here and the probe does not say.
#[derive(Debug)]
pub struct Lack {
    /// Its name.
    pub probe: &'static str,
    /// The first version that lacks it no more.
    pub since: (u32, u32),
    /// What is left.
    pub how: How,
    /// Words of what the probe says.
    pub says: &'static str,
    /// For docs/kernels.md.
    pub note: &'static str,
}

/// How a probe does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It cannot run at all.
    NotAtAll,
    /// It runs, and a note says what it does not tell.
    InPart,
    /// It runs, and a way to run it is refused.
    NotEveryWay,
    /// It runs by another hook.
    Elsewhere,
}

const LACKS: &[Lack] = &[
    Lack {
        probe: "kernel_locks",
        since: (5, 19),
        how: How::NotAtAll,
        says: "it has no BTF tracepoint `contention_end`",
        note: "No tracepoints `contention_begin` and `contention_end`; they came with 5.19.",
    },
    Lack {
        probe: "packet_drops",
        since: (5, 17),
        how: How::InPart,
        says: "does not tell why it drops (before 5.17)",
        note: "Where packets are dropped, not why: the kernel gives reasons from 5.17 on. A note says so.",
    },
    Lack {
        probe: "net_traffic",
        since: (6, 4),
        how: How::NotAtAll,
        says: "it has no BTF tracepoint `sock_send_length`",
        note: "No tracepoints `sock_send_length` and `sock_recv_length`; they came with 6.4. The functions that send are inlined in places, so \
               attaching to them would miss traffic.",
    },
    Lack {
        probe: "page_cache",
        since: (6, 10),
        how: How::InPart,
        says: "has no tracepoint mm_filemap_get_pages",
        note: PAGE_CACHE,
    },
    Lack {
        probe: "page_cache",
        since: (6, 10),
        how: How::InPart,
        says: "has no tracepoint mm_filemap_fault",
        note: PAGE_CACHE,
    },
    Lack {
        probe: "oom_kills",
        since: (6, 10),
        how: How::InPart,
        says: "tells only the pid of a victim",
        note: "Who was killed, not how much memory it had: before 6.10 the tracepoint gives the process's number alone. A note says so.",
    },
    Lack {
        probe: "capability_checks",
        since: (6, 14),
        how: How::Elsewhere,
        says: "fexit/cap_capable",
        note: "Through the return of the function `cap_capable`; the tracepoint of that name came with 6.14.",
    },
    Lack {
        probe: "function_latency",
        since: (5, 15),
        how: How::NotEveryWay,
        says: "this kernel cannot tell several apart (5.15 can)",
        note: ONE_PLACE,
    },
    Lack {
        probe: "usdt_events",
        since: (5, 15),
        how: How::NotEveryWay,
        says: "this kernel cannot tell several apart (5.15 can)",
        note: ONE_PLACE,
    },
];

const PAGE_CACHE: &str = "Pages that come in and become dirty, but neither hits nor faults: `mm_filemap_get_pages` and `mm_filemap_fault` came \
                          with 6.10. Notes say so.";
const ONE_PLACE: &str = "One place at a time: before 5.15 a program at several places cannot tell them apart. A call for more is refused and says so.";
