//! throwaway
#![allow(clippy::all, clippy::pedantic, missing_docs, reason = "throwaway")]
use mcptrace::executions::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let options = args.get(3).map(|o| serde_json::from_str(o).unwrap()).unwrap_or_default();
    let filter = args.get(4).map(|o| serde_json::from_str(o).unwrap()).unwrap_or_default();
    let all = Executions::new(Limits::default());
    let request =
        ProbeRequest { probe: args[1].clone(), options, filter, seconds: args[2].parse().unwrap(), owner: "me".into() };
    for _ in 0..3 {
        let t = std::time::Instant::now();
        let e = match all.start_probe(&request) {
            Ok(e) => e,
            Err(e) => {
                println!("{} {e}", e.category());
                return;
            }
        };
        println!("attached in {:?}", t.elapsed());
        e.wait(std::time::Duration::from_secs(100));
        println!("{}", serde_json::to_string(&e.envelope(&Default::default())).unwrap());
        println!(
            "{}",
            std::fs::read_to_string("/proc/self/status")
                .unwrap()
                .lines()
                .filter(|l| l.contains("RSS") || l.contains("HWM"))
                .collect::<Vec<_>>()
                .join(" ")
        );
    }
}
