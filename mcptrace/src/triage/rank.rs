//! Puts causes before what follows from them. Pure.

use super::finding::{Finding, Kind, Severity};

/// Findings in order, with their ranks: what goes on before what is over, what somebody notices before what is only worth knowing; of each
/// what no other finding explains first, then by impact.
pub fn ranked(mut found: Vec<Finding>) -> Vec<Finding> {
    let causes: Vec<Vec<Kind>> = found
        .iter()
        .map(|symptom| found.iter().filter(|cause| explains(cause, symptom)).map(|cause| cause.kind).collect())
        .collect();
    for (finding, causes) in found.iter_mut().zip(causes) {
        finding.because_of = causes;
    }
    found.sort_by(|a, b| {
        let group = |one: &Finding| (one.over, one.severity == Severity::Low, !one.because_of.is_empty());
        group(a).cmp(&group(b)).then(weight(b).total_cmp(&weight(a)))
    });
    let mut found = causes_first(found);
    for (rank, finding) in found.iter_mut().enumerate() {
        finding.rank = rank as u32 + 1;
    }
    found
}

/// The same order, but that nothing stands before what explains it: what follows from one thing may be the cause of another.
fn causes_first(mut left: Vec<Finding>) -> Vec<Finding> {
    let mut placed = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waits = |one: &Finding| left.iter().any(|other| one.because_of.contains(&other.kind));
        let next = left.iter().position(|one| !waits(one)).unwrap_or(0);
        placed.push(left.remove(next));
    }
    placed
}

/// What is only worth knowing explains nothing that somebody notices, what is over nothing that goes on, and what one process does to
/// itself explains only what that process is part of.
fn explains(cause: &Finding, symptom: &Finding) -> bool {
    let counts = (cause.severity > Severity::Low || symptom.severity == Severity::Low) && (!cause.over || symptom.over);
    let together = !cause.kind.is_of_process() || share_process(cause, symptom);
    counts && together && cause.kind.symptoms().contains(&symptom.kind)
}

/// Whether one process has much to do with both. Nobody is known to share nothing.
fn share_process(one: &Finding, other: &Finding) -> bool {
    let others = main_processes(other);
    main_processes(one).iter().any(|pid| others.contains(pid))
}

/// Those whose part is at least so much of the largest: who makes 300 of 100,000 calls is named beside the one that makes the others, and
/// nothing that it does explains them.
const MAIN: f64 = 0.25;

fn main_processes(finding: &Finding) -> Vec<u32> {
    let parts = || finding.who.iter().filter_map(|who| Some((who.pid?, who.value)));
    let most = parts().map(|(_, part)| part).fold(0.0, f64::max);
    parts().filter(|(_, part)| *part >= MAIN * most).map(|(pid, _)| pid).collect()
}

fn weight(finding: &Finding) -> f64 {
    finding.impact * finding.confidence
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::triage::{
        finding::{Judged, Next, Who},
        rules::RULES,
    };

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
            finding(Kind::IrqLoad, 0.5),
            finding(Kind::RunqDelay, 0.9),
            finding(Kind::DnsSlow, 0.2),
        ];
        let ranked = ranked(found);
        let order: Vec<_> = ranked.iter().map(|one| (one.rank, one.kind)).collect();
        let expected = [Kind::IrqLoad, Kind::CpuSaturation, Kind::RunqDelay, Kind::DnsSlow];
        assert_eq!(order, expected.iter().enumerate().map(|(rank, kind)| (rank as u32 + 1, *kind)).collect::<Vec<_>>());
        assert_eq!(ranked[1].because_of, [Kind::IrqLoad]);
    }

    #[test]
    fn what_is_over_comes_last_and_explains_nothing_that_goes_on() {
        let old = Finding { over: true, ..finding(Kind::IrqLoad, 1.0) };
        let ranked = ranked(vec![old, finding(Kind::CpuSaturation, 0.9), finding(Kind::DnsSlow, 0.21)]);
        let order: Vec<_> = ranked.iter().map(|one| one.kind).collect();
        assert_eq!(order, [Kind::CpuSaturation, Kind::DnsSlow, Kind::IrqLoad]);
        assert!(ranked.iter().all(|one| one.because_of.is_empty()), "{ranked:?}");
    }

    #[test]
    fn what_is_only_worth_knowing_explains_nothing_bad() {
        let ranked = ranked(vec![finding(Kind::ExecStorm, 0.1), finding(Kind::CpuSaturation, 0.9)]);
        assert_eq!(ranked[0].kind, Kind::CpuSaturation);
        assert!(ranked[0].because_of.is_empty());
    }

    #[test]
    fn one_process_does_not_explain_what_another_does() {
        let with = |kind, pid| Finding { who: vec![Who { pid: Some(pid), ..Who::default() }], ..finding(kind, 0.9) };
        for cause in [Kind::SyscallFailures, Kind::ExecStorm, Kind::ConnectionRefused] {
            let nobody = |kind| finding(kind, 0.9);
            for apart in [
                vec![with(cause, 7), with(Kind::CpuSaturation, 8)],
                vec![with(cause, 7), nobody(Kind::CpuSaturation)],
                vec![nobody(cause), with(Kind::CpuSaturation, 8)],
                vec![nobody(cause), nobody(Kind::CpuSaturation)],
            ] {
                let apart = ranked(apart);
                assert!(apart.iter().all(|one| one.because_of.is_empty()), "{apart:?}");
            }
        }
        let same = ranked(vec![with(Kind::CpuSaturation, 7), with(Kind::SyscallFailures, 7)]);
        assert_eq!((same[0].kind, &*same[1].because_of), (Kind::SyscallFailures, &[Kind::SyscallFailures][..]));
    }

    #[test]
    fn a_process_that_has_little_to_do_with_it_explains_nothing() {
        let who = |pid, value| Who { pid: Some(pid), value, ..Who::default() };
        let failures = Finding { who: vec![who(7, 100_000.0), who(8, 300.0)], ..finding(Kind::SyscallFailures, 0.9) };
        let storm = Finding { who: vec![who(8, 30.0)], ..finding(Kind::ExecStorm, 0.5) };
        let ranked = ranked(vec![storm, failures]);
        assert_eq!((ranked[0].kind, &*ranked[0].because_of), (Kind::SyscallFailures, &[][..]), "{ranked:?}");
    }

    #[test]
    fn what_is_a_symptom_and_a_cause_stands_between_them() {
        let with =
            |kind, impact| Finding { who: vec![Who { pid: Some(7), ..Who::default() }], ..finding(kind, impact) };
        let found = vec![
            with(Kind::CpuSaturation, 1.0),
            with(Kind::SyscallFailures, 0.6),
            with(Kind::ExecStorm, 0.5),
            finding(Kind::DnsSlow, 0.4),
            finding(Kind::RunqDelay, 0.9),
        ];
        let order: Vec<_> = ranked(found).iter().map(|one| one.kind).collect();
        let chain = [Kind::ExecStorm, Kind::SyscallFailures, Kind::CpuSaturation, Kind::RunqDelay, Kind::DnsSlow];
        assert_eq!(order, [chain[0], chain[4], chain[1], chain[2], chain[3]]);
    }

    #[test]
    fn nothing_explains_what_explains_it() {
        for cause in RULES.iter().map(|rule| rule.kind) {
            for symptom in cause.symptoms() {
                assert!(!symptom.symptoms().contains(&cause), "{cause:?} and {symptom:?}");
            }
        }
    }
}
