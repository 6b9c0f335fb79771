//! A bounded soak: mixed use of a daemon at full tilt, after which nothing has grown and nothing is left. `cargo xtask soak` is the same
//! for an hour. Needs root.

use std::time::Duration;

use mcptrace_tests::{
    program::program,
    soak::{Plan, grown, soak, table},
};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_grows_under_mixed_use_and_nothing_is_left() {
    let plan = Plan { program: program().to_owned(), rounds: 6, work: Duration::from_secs(4) };
    let outcome = soak(&plan, |_| ()).await;
    let text = table(&outcome.rounds);
    println!("{text}");
    let sum = outcome.rounds.iter().fold([0; 5], |[a, b, c, d, e], round| {
        let done = round.done;
        [a + done.probes, b + done.stopped, c + done.refused, d + done.died, e + done.scripts]
    });
    assert!(sum.iter().all(|count| *count > 0), "something was never done: {sum:?}\n{text}");
    assert!(outcome.programs > 50, "hardly anything was attached: {}", outcome.programs);
    assert_eq!(grown(&outcome.rounds), [""; 0], "\n{text}");
    assert_eq!((outcome.exit, outcome.left, outcome.groups), (Some(0), vec![], vec![]), "\n{text}");
}
