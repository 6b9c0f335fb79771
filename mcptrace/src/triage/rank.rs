//! Puts causes before what follows from them. Pure.

use super::finding::{Finding, Severity};

/// Findings in order, with their ranks: what somebody notices before what is only worth knowing; of each what no other finding
/// explains first, then by impact.
pub fn ranked(mut found: Vec<Finding>) -> Vec<Finding> {
    // What is only worth knowing explains nothing that somebody notices.
    let causes: Vec<_> = found.iter().map(|one| (one.kind, one.severity)).collect();
    for finding in &mut found {
        let explains = |&(kind, severity): &(super::finding::Kind, Severity)| {
            let counts = severity > Severity::Low || finding.severity == Severity::Low;
            (counts && kind != finding.kind && kind.symptoms().contains(&finding.kind)).then_some(kind)
        };
        finding.because_of = causes.iter().filter_map(explains).collect();
    }
    found.sort_by(|a, b| {
        let group = |one: &Finding| (one.severity == Severity::Low, !one.because_of.is_empty());
        group(a).cmp(&group(b)).then(weight(b).total_cmp(&weight(a)))
    });
    for (rank, finding) in found.iter_mut().enumerate() {
        finding.rank = rank as u32 + 1;
    }
    found
}

fn weight(finding: &Finding) -> f64 {
    finding.impact * finding.confidence
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::triage::finding::{Judged, Kind, Next};

    fn finding(kind: Kind, impact: f64) -> Finding {
        let next = Next::probe("runq_latency", json!({}), json!({}));
        Finding::new(
            kind,
            Judged { impact, confidence: 0.9, summary: String::new(), evidence: Vec::new(), who: Vec::new(), next },
        )
    }

    #[test]
    fn causes_come_before_worse_symptoms() {
        let found = vec![
            finding(Kind::CpuSaturation, 1.0),
            finding(Kind::ExecStorm, 0.5),
            finding(Kind::RunqDelay, 0.9),
            finding(Kind::DnsSlow, 0.2),
        ];
        let ranked = ranked(found);
        let order: Vec<_> = ranked.iter().map(|one| (one.rank, one.kind)).collect();
        let expected = [Kind::ExecStorm, Kind::CpuSaturation, Kind::RunqDelay, Kind::DnsSlow];
        assert_eq!(order, expected.iter().enumerate().map(|(rank, kind)| (rank as u32 + 1, *kind)).collect::<Vec<_>>());
        assert_eq!(ranked[1].because_of, [Kind::ExecStorm]);
    }

    #[test]
    fn what_is_only_worth_knowing_explains_nothing_bad() {
        let ranked = ranked(vec![finding(Kind::ExecStorm, 0.1), finding(Kind::CpuSaturation, 0.9)]);
        assert_eq!(ranked[0].kind, Kind::CpuSaturation);
        assert!(ranked[0].because_of.is_empty());
    }

    #[test]
    fn nothing_explains_what_explains_it() {
        use Kind::*;
        let all = [
            CpuSaturation,
            RunqDelay,
            RunawayProcess,
            CpuSteal,
            DiskLatency,
            DiskSaturation,
            FsyncStorm,
            MemoryReclaim,
            MemoryLimit,
            Oom,
            UserLockContention,
            KernelLockContention,
            TcpRetransmits,
            PacketDrops,
            ConnectionRefused,
            DnsSlow,
            SyscallFailures,
            ExecStorm,
            SignalStorm,
            IrqLoad,
            CgroupThrottling,
        ];
        for cause in all {
            for symptom in cause.symptoms() {
                assert!(!symptom.symptoms().contains(&cause), "{cause:?} and {symptom:?}");
            }
        }
    }
}
