//! Calls functions that a test times, exactly so often as a line on its standard input says, and answers each line with `ok`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: it talks by stdout and ends on a failure"
)]

use std::{
    ffi::CString,
    hint::black_box,
    io::{BufRead as _, Write as _},
    ptr::{null, null_mut},
    thread,
    time::Duration,
};

unsafe extern "C" {
    fn gethostbyname(name: *const libc::c_char) -> *const libc::hostent;
}

fn main() {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        perform(&words);
        println!("ok");
        std::io::stdout().flush().unwrap();
    }
}

fn perform(words: &[&str]) {
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    match words[0] {
        "leaf" => times(number(1), || _ = mcptrace_leaf(number(2))),
        "recurse" => times(number(1), || _ = mcptrace_recurse(number(2))),
        "outer" => times(number(1), || mcptrace_outer(number(2))),
        "threads" => in_threads(number(1), number(2)),
        "lookup" => times(number(1), || _ = lookup(words[2], libc::AI_NUMERICHOST)),
        "lookup_in_threads" => {
            let name = words[2].to_owned();
            let threads: Vec<_> = (0..number(1))
                .map(|_| {
                    let name = name.clone();
                    thread::spawn(move || lookup(&name, 0))
                })
                .collect();
            for thread in threads {
                _ = thread.join().unwrap();
            }
        }
        "usdt" => times(number(1), || usdt(number(2))),
        "busy" => busy(number(1)),
        "by_name" => times(number(1), || by_name(words[2])),
        other => panic!("unknown command {other}"),
    }
}

fn times(count: u64, mut action: impl FnMut()) {
    (0..count).for_each(|_| action());
}

/// Takes so many milliseconds and gives them back.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mcptrace_leaf(milliseconds: u64) -> u64 {
    if milliseconds > 0 {
        thread::sleep(Duration::from_millis(milliseconds));
    }
    black_box(milliseconds)
}

/// Calls itself so many times and a last one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mcptrace_recurse(depth: u64) -> u64 {
    if depth == 0 {
        thread::sleep(Duration::from_millis(2));
        return black_box(0);
    }
    black_box(mcptrace_recurse(black_box(depth - 1)) + 1)
}

/// Calls another function three times.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mcptrace_outer(milliseconds: u64) {
    for _ in 0..3 {
        black_box(mcptrace_leaf(black_box(milliseconds)));
    }
}

fn in_threads(threads: u64, calls: u64) {
    let threads: Vec<_> = (0..threads).map(|_| thread::spawn(move || times(calls, || _ = mcptrace_leaf(0)))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// What getaddrinfo says of a name.
fn lookup(name: &str, flags: i32) -> i32 {
    let name = CString::new(name).unwrap();
    let mut found = null_mut();
    // SAFETY: all zeros are hints of nothing; the pointers are valid for the call, and what it gives is freed once.
    unsafe {
        let mut hints: libc::addrinfo = std::mem::zeroed();
        hints.ai_flags = flags;
        let result = libc::getaddrinfo(name.as_ptr(), null(), &raw const hints, &raw mut found);
        if result == 0 {
            libc::freeaddrinfo(found);
        }
        result
    }
}

/// The counter that a tracer raises to switch the probe on.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".probes")]
static mut MCPTRACE_SEMAPHORE: u16 = 0;

/// Passes the probe `mcptrace:tick` if it is switched on: its arguments are a 64-bit number in a register, a signed 32-bit one, one in
/// memory, a constant, and a pointer to text. The note is laid out as sys/sdt.h of systemtap does.
fn usdt(number: u64) {
    // SAFETY: only read, and a tracer's write is whole.
    if unsafe { (&raw const MCPTRACE_SEMAPHORE).read_volatile() } == 0 {
        return;
    }
    let memory = black_box(number.wrapping_mul(3));
    // SAFETY: a nop; the rest goes to a section that is not loaded.
    unsafe {
        std::arch::asm!(
            "990: nop",
            ".pushsection .note.stapsdt, \"\", \"note\"",
            ".balign 4",
            ".4byte 992f - 991f, 994f - 993f, 3",
            "991: .asciz \"stapsdt\"",
            "992: .balign 4",
            "993: .8byte 990b",
            ".8byte 0",
            ".8byte MCPTRACE_SEMAPHORE",
            ".asciz \"mcptrace\"",
            ".asciz \"tick\"",
            ".asciz \"8@{number} -4@{negative:e} 8@({at}) -4@$-7 8@{text}\"",
            "994: .balign 4",
            ".popsection",
            number = in(reg) number,
            negative = in(reg) (number as i64).wrapping_neg(),
            at = in(reg) &raw const memory,
            text = in(reg) c"hunter2".as_ptr(),
            options(att_syntax, nostack),
        );
    }
}

/// Whether the probe is switched on, as an exit: `ok` only if it is as often as expected.
fn busy(expected: u64) {
    // SAFETY: as in `usdt`.
    assert_eq!(u64::from(unsafe { (&raw const MCPTRACE_SEMAPHORE).read_volatile() }), expected);
}

fn by_name(name: &str) {
    let name = CString::new(name).unwrap();
    // SAFETY: only the main thread calls it, and what it gives is not kept.
    assert!(!unsafe { gethostbyname(name.as_ptr()) }.is_null());
}
