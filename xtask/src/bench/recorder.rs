//! `cargo xtask bench recorder`: what the always-on recorder costs programs: each in turn with and without it.
//!
//! Without against without is the noise; only what stands out of it is the recorder's.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::packages;
use crate::process;

/// How long the recorder runs before anything is measured: what it costs to start is not what it costs.
const SETTLE: Duration = Duration::from_secs(3);
/// Files of the build, and how often each is compiled.
const FILES: usize = 24;
const TIMES: usize = 10;

/// One run of a load, which lasts longer than the ten seconds in which the recorder looks at system calls once.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    /// What was done in a second.
    per_second: f64,
    /// 99th percentile of how long one took, in milliseconds.
    p99_ms: f64,
}

/// A load, by the program that makes it.
struct Load {
    /// What it is chosen by.
    key: &'static str,
    name: &'static str,
    /// What serves it, if something does: one for all runs, so that they do not differ by where it happened to lie.
    serve: Option<fn(&Path) -> Result<Server>>,
    run: fn(&Path) -> Result<Run>,
}

const LOADS: &[Load] = &[
    Load { key: "redis", name: "redis-benchmark, SET and GET, 50 clients", serve: Some(redis_server), run: redis },
    Load { key: "cpu", name: "sysbench cpu, 4 threads", serve: None, run: |_| sysbench(&["cpu", "--threads=4"]) },
    // More switches a second than the budget allows: the governor has to act, and what it costs until then is in this.
    Load {
        key: "threads",
        name: "sysbench threads, 8 threads, 4 locks",
        serve: None,
        run: |_| sysbench(&["threads", "--threads=8", "--thread-locks=4"]),
    },
    Load { key: "build", name: "build: a C compiler started again and again", serve: None, run: compile },
];

/// Those that are named; all if none is.
fn chosen(keys: &[String]) -> Result<Vec<&'static Load>> {
    if let Some(unknown) = keys.iter().find(|key| LOADS.iter().all(|load| load.key != **key)) {
        let known: Vec<_> = LOADS.iter().map(|load| load.key).collect();
        bail!("the recorder is not measured with `{unknown}`; there is {}", known.join(", "));
    }
    Ok(LOADS.iter().filter(|load| keys.is_empty() || keys.iter().any(|key| key == load.key)).collect())
}

/// Measures with the loads that are named, or with all, and prints a table in Markdown.
pub(super) fn run(build: impl FnOnce() -> Result<PathBuf>, keys: &[String], rounds: u32) -> Result<()> {
    let loads = chosen(keys)?;
    let programs = &build()?;
    packages::become_able("recording needs root")?;
    let folder = tempfile::tempdir().context("cannot make a folder for the history")?;
    prepare(folder.path())?;
    println!("{HEAD}");
    for load in loads {
        let server = load.serve.map(|serve| serve(folder.path())).transpose()?;
        let runs = measure(load, programs, folder.path(), rounds)?;
        drop(server);
        println!("{}", row(load.name, &runs));
    }
    Ok(())
}

const HEAD: &str = "\
| load | without | with, throughput | noise, throughput | with, p99 | noise, p99 |
|---|---:|---:|---:|---:|---:|";

/// Runs in the order they were made: each with the recorder lies between two without.
struct Runs {
    with: Vec<Run>,
    /// One more.
    without: Vec<Run>,
}

fn measure(load: &Load, programs: &Path, folder: &Path, rounds: u32) -> Result<Runs> {
    let without = || {
        sleep(SETTLE);
        (load.run)(folder)
    };
    let mut runs = Runs { with: Vec::new(), without: vec![without()?] };
    for round in 1..=rounds {
        eprintln!("xtask: {}: round {round} of {rounds}", load.name);
        let recorder = Recorder::start(programs, folder)?;
        sleep(SETTLE);
        runs.with.push((load.run)(folder)?);
        recorder.stop()?;
        runs.without.push(without()?);
    }
    Ok(runs)
}

/// Each run is compared with the mean of its two neighbours without the recorder, so that what drifts slowly is in neither column.
fn row(name: &str, runs: &Runs) -> String {
    let change = |run: &Run, [before, after]: [&Run; 2], of: fn(&Run) -> f64| 2.0 * of(run) / (of(before) + of(after));
    let with = |of| {
        let pairs = runs.with.iter().zip(runs.without.windows(2));
        changes(pairs.map(|(run, off)| change(run, [&off[0], &off[1]], of)))
    };
    let noise = |of| changes(runs.without.windows(3).map(|off| change(&off[1], [&off[0], &off[2]], of)));
    let throughput = |run: &Run| run.per_second;
    let p99 = |run: &Run| run.p99_ms;
    let base = middle(runs.without.iter().map(throughput).collect());
    let columns = [with(throughput), noise(throughput), with(p99), noise(p99)];
    format!("| {name} | {base:.0}/s | {} |", columns.join(" | "))
}

/// The middle change in percent, and between which the true one lies with 95 % (order statistics of the binomial distribution).
fn changes(ratios: impl Iterator<Item = f64>) -> String {
    let mut percent: Vec<f64> = ratios.map(|ratio| (ratio - 1.0) * 100.0).collect();
    percent.sort_by(f64::total_cmp);
    let count = percent.len() as f64;
    let rank = ((count / 2.0 - 0.98 * count.sqrt()).round() as usize).max(1);
    let Some([low, .., high]) = percent.get(rank - 1..percent.len() - (rank - 1)) else { return "-".to_owned() };
    format!("{:+.1} % ({low:+.1} to {high:+.1})", middle(percent.clone()))
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { values[half - 1].midpoint(values[half]) } else { values[half] }
}

/// The daemon at work; killed when dropped.
struct Recorder(Child);

impl Recorder {
    fn start(programs: &Path, folder: &Path) -> Result<Self> {
        let mut command = packages::as_root(&programs.join("mcptrace").to_string_lossy());
        command.arg("daemon").arg("--state").arg(folder.join("state")).arg("--socket").arg(folder.join("socket"));
        let mut child =
            command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("the daemon does not start")?;
        let lines = BufReader::new(child.stderr.take().context("its words are lost")?);
        let recorder = Self(child);
        for line in lines.lines() {
            if line?.contains("recorded: ") {
                return Ok(recorder);
            }
        }
        bail!("the recorder does not begin")
    }

    fn stop(mut self) -> Result<()> {
        let pid = self.0.id().to_string();
        process::run(packages::as_root("kill").args(["-TERM", &pid]))?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the loads need, once.
fn prepare(folder: &Path) -> Result<()> {
    for program in ["redis-server", "redis-benchmark", "sysbench", "cc"] {
        ensure!(
            !process::all_in_path(program).is_empty(),
            "{program} is missing (Debian, Ubuntu: apt-get install redis-server redis-tools sysbench gcc libc6-dev)"
        );
    }
    for number in 0..FILES {
        let code = format!(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
             int of_{number}(const char *text) {{ char copy[64]; snprintf(copy, sizeof copy, \"%s\", text); \
             return atoi(copy) + (int)strlen(copy); }}\n"
        );
        fs::write(source(folder, number), code)?;
    }
    Ok(())
}

fn source(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("file_{number}.c"))
}

fn redis_server(folder: &Path) -> Result<Server> {
    let socket = folder.join("redis");
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
    let server = Server(server.stdout(Stdio::null()).spawn().context("redis-server does not start")?);
    let begun = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        ensure!(begun.elapsed() < Duration::from_secs(20), "redis-server does not serve");
        sleep(Duration::from_millis(20));
    }
    Ok(server)
}

fn redis(folder: &Path) -> Result<Run> {
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.arg("-s").arg(folder.join("redis")).args(["-t", "set,get", "-n", "750000", "-c", "50", "--csv"]);
    let said = process::output(&mut benchmark)?;
    of_redis(&said).with_context(|| format!("redis-benchmark said: {said}"))
}

/// Lines of `"test","rps","avg_latency_ms","min_latency_ms","p50","p95","p99","max"`.
fn of_redis(said: &str) -> Option<Run> {
    let rows: Vec<Vec<f64>> = said
        .lines()
        .filter(|line| line.starts_with("\"SET\"") || line.starts_with("\"GET\""))
        .map(|line| line.split(',').skip(1).filter_map(|word| word.trim_matches('"').parse().ok()).collect())
        .collect();
    let mean = |at: usize| Some(rows.iter().map(|row| row.get(at).copied()).sum::<Option<f64>>()? / rows.len() as f64);
    (rows.len() == 2).then(|| Some(Run { per_second: mean(0)?, p99_ms: mean(5)? }))?
}

/// A process that is killed when this is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sysbench(test: &[&str]) -> Result<Run> {
    let mut command = Command::new("sysbench");
    command.args(test).args(["--time=12", "--percentile=99", "run"]);
    let said = process::output(&mut command)?;
    of_sysbench(&said).with_context(|| format!("sysbench said: {said}"))
}

fn of_sysbench(said: &str) -> Option<Run> {
    let number = |name: &str| -> Option<f64> {
        let line = said.lines().find(|line| line.trim_start().starts_with(name))?;
        line.rsplit(':').next()?.trim().trim_end_matches('s').parse().ok()
    };
    Some(Run {
        per_second: number("total number of events")? / number("total time")?,
        p99_ms: number("99th percentile")?,
    })
}

/// Compiles each file some times: hundreds of processes, and little but the kernel's work for each.
fn compile(folder: &Path) -> Result<Run> {
    let begun = Instant::now();
    let mut took = Vec::new();
    for number in (0..FILES).cycle().take(TIMES * FILES) {
        let one = Instant::now();
        process::run(Command::new("cc").arg("-c").arg(source(folder, number)).arg("-o").arg(folder.join("file.o")))?;
        took.push(one.elapsed().as_secs_f64() * 1e3);
    }
    let per_second = took.len() as f64 / begun.elapsed().as_secs_f64();
    took.sort_by(f64::total_cmp);
    Ok(Run { per_second, p99_ms: took[took.len() * 99 / 100] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_print_is_read() {
        let redis = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
            \"SET\",\"100.0\",\"0.2\",\"0.1\",\"0.2\",\"0.3\",\"0.4\",\"9\"\n\"GET\",\"300.0\",\"0.2\",\"0.1\",\"0.2\",\"0.3\",\"0.6\",\"9\"\n";
        let run = of_redis(redis).unwrap();
        assert!((run.per_second - 200.0).abs() < 1e-9 && (run.p99_ms - 0.5).abs() < 1e-9);
        assert_eq!(of_redis("nonsense"), None);
        let sysbench = "General statistics:\n    total time:                          2.0000s\n    total number of events:              5000\n\n\
            Latency (ms):\n         99th percentile:                        3.50\n";
        let run = of_sysbench(sysbench).unwrap();
        assert!((run.per_second - 2500.0).abs() < 1e-9 && (run.p99_ms - 3.5).abs() < 1e-9);
    }

    #[test]
    fn changes_are_of_the_middle() {
        assert_eq!(changes([1.0, 0.99, 1.5].into_iter()), "+0.0 % (-1.0 to +50.0)");
        // Of 12, the third and the third last.
        assert_eq!(changes((1..=12).map(|n| 1.0 + f64::from(n) / 100.0)), "+6.5 % (+3.0 to +10.0)");
        assert_eq!(changes([1.0].into_iter()), "-");
    }

    #[test]
    fn what_drifts_is_in_no_column() {
        let run = |n: i32| Run { per_second: 100.0 + f64::from(n), p99_ms: 10.0 + f64::from(n) };
        let drifting = Runs { with: vec![run(1), run(3)], without: vec![run(0), run(2), run(4)] };
        let none = "+0.0 % (+0.0 to +0.0)";
        assert_eq!(row("x", &drifting), format!("| x | 102/s | {none} | - | {none} | - |"));
    }

    #[test]
    fn loads_are_chosen_by_their_names() {
        let keys = |names: &[&str]| -> Result<Vec<&str>> {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            Ok(chosen(&names)?.iter().map(|load| load.key).collect())
        };
        assert_eq!(keys(&[]).unwrap().len(), LOADS.len());
        assert_eq!(keys(&["threads", "redis"]).unwrap(), ["redis", "threads"]);
        assert!(keys(&["redis", "postgres"]).unwrap_err().to_string().contains("`postgres`; there is redis, cpu"));
    }
}
