//! Which tests run on other kernels, and which cannot hold there: tests/kernels.toml.

use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// Test programs, in the order in which they run.
    programs: Vec<String>,
    /// Those of them that `--quick` runs.
    quick: Vec<String>,
    left_out: Vec<LeftOut>,
}

/// Tests that cannot hold in a guest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeftOut {
    program: String,
    /// All of the program when there are none.
    #[serde(default)]
    tests: Vec<String>,
    /// Where they cannot; everywhere when there are none.
    #[serde(default)]
    kernels: Vec<String>,
    reason: String,
}

impl Plan {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let read = || -> Result<Self> {
            let plan: Self = toml::from_str(&text)?;
            plan.ensure_consistent()?;
            Ok(plan)
        };
        read().with_context(|| path.display().to_string())
    }

    /// The test programs, or only the quick ones.
    pub(super) fn programs(&self, quick: bool) -> &[String] {
        if quick { &self.quick } else { &self.programs }
    }

    /// An error when a test program that it names elsewhere does not run.
    fn ensure_consistent(&self) -> Result<()> {
        let (whole, part): (Vec<_>, Vec<_>) = self.left_out.iter().partition(|left_out| left_out.tests.is_empty());
        let named = self.quick.iter().chain(part.into_iter().map(|left_out| &left_out.program));
        let unknown: Vec<_> = named.filter(|name| !self.programs.contains(name)).collect();
        ensure!(unknown.is_empty(), "not among its programs: {unknown:?}");
        let both: Vec<_> = whole.iter().filter(|left_out| self.programs.contains(&left_out.program)).collect();
        ensure!(both.is_empty(), "left out whole, and among its programs: {both:?}");
        Ok(())
    }

    /// What does not run on a kernel such as `6.12` or `6.12.117`.
    pub(super) fn left_out_on<'a>(&'a self, version: &'a str) -> impl Iterator<Item = &'a LeftOut> {
        self.left_out.iter().filter(move |left_out| left_out.is_on(version))
    }

    /// What does not run on at least one of some kernels.
    pub(super) fn left_out_on_any(&self, versions: &[String]) -> impl Iterator<Item = &LeftOut> {
        self.left_out.iter().filter(|left_out| versions.iter().any(|version| left_out.is_on(version)))
    }

    /// An error when it leaves out a test that a program does not have.
    pub(super) fn ensure_known(&self, program: &str, tests: &[String]) -> Result<()> {
        for left_out in self.left_out.iter().filter(|left_out| left_out.program == program) {
            let unknown: Vec<_> = left_out.tests.iter().filter(|test| !tests.contains(test)).collect();
            ensure!(
                unknown.is_empty(),
                "tests/kernels.toml leaves out tests that {program} does not have: {unknown:?}"
            );
        }
        Ok(())
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = if self.kernels.is_empty() { "all kernels".to_owned() } else { self.kernels.join(", ") };
        let tests = if self.tests.is_empty() { "all of it".to_owned() } else { self.tests.join(", ") };
        write!(formatter, "left out on {on}: {} ({tests}): {}", self.program, self.reason)
    }
}

impl LeftOut {
    pub(super) fn is(&self, program: &str, test: &str) -> bool {
        self.program == program && self.tests.iter().any(|name| name == test)
    }

    fn is_on(&self, version: &str) -> bool {
        let is = |kernel: &String| {
            version == kernel || version.strip_prefix(kernel).is_some_and(|rest| rest.starts_with('.'))
        };
        self.kernels.is_empty() || self.kernels.iter().any(is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let text = r#"
            programs = ["a"]
            quick = ["a"]
            [[left_out]]
            program = "a"
            tests = ["slow"]
            kernels = ["6.1"]
            reason = "it is slow"
        "#;
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_test_is_left_out_on_its_kernels_only() {
        let plan = plan();
        let left_out = |version: &str, test: &str| plan.left_out_on(version).any(|left_out| left_out.is("a", test));
        assert!(left_out("6.1", "slow") && left_out("6.1.0", "slow"));
        assert!(!left_out("6.12", "slow") && !left_out("6.1", "slow_too"));
        assert_eq!(plan.left_out[0].to_string(), "left out on 6.1: a (slow): it is slow");
    }

    #[test]
    fn the_file_names_only_programs_that_it_runs() {
        assert!(plan().ensure_consistent().is_ok());
        let wrong = Plan { quick: vec!["b".to_owned()], ..plan() };
        assert!(wrong.ensure_consistent().unwrap_err().to_string().contains('b'));
        let mut wrong = plan();
        wrong.left_out[0].tests.clear();
        assert!(wrong.ensure_consistent().is_err());
        Plan::read(&xtask::workspace_root().join("tests/kernels.toml")).unwrap();
    }

    #[test]
    fn a_test_that_is_no_more_is_named() {
        let error = plan().ensure_known("a", &["fast".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("slow"), "{error}");
    }
}
