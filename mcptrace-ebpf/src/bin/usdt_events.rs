//! Sends an event for each USDT probe that a program passes, with its arguments.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    EbpfContext, Global,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_attach_cookie, bpf_probe_read_user, bpf_probe_read_user_str},
    },
    macros::{map, uprobe},
    maps::{Array, PerfEventByteArray, RingBuf},
    programs::ProbeContext,
};
use mcptrace_ebpf::{
    Counter, Header, Record, USDT_ARGUMENTS, USDT_TEXT_MAX, USDT_TEXTS, Usdt, UsdtPlace, UsdtTexts, WIRE_VERSION,
    function::register,
    kernel::{count_shared, current_cgroup, current_comm, current_passes, now, send},
};

/// Whether programs know by a cookie which place they are at (5.15 and later). Without, there is one place.
#[unsafe(no_mangle)]
static HAS_COOKIE: Global<u32> = Global::new(0);
/// Arguments that point to texts; [`USDT_ARGUMENTS`] for none.
#[unsafe(no_mangle)]
static TEXTS: Global<[u32; USDT_TEXTS]> = Global::new([USDT_ARGUMENTS as u32; USDT_TEXTS]);

/// An event and its texts.
#[repr(C)]
struct Told {
    usdt: Usdt,
    texts: UsdtTexts,
}

/// How each place holds its arguments.
#[map]
static PLACES: Array<UsdtPlace> = Array::with_max_entries(1, 0);
/// The events.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// The events, on the perf path.
#[map]
static EVENTS_PERF: PerfEventByteArray = PerfEventByteArray::new(0);

#[uprobe]
fn passed(ctx: ProbeContext) -> u32 {
    if !current_passes() {
        return 0;
    }
    count_shared(Counter::Seen);
    let index = place(&ctx);
    let Some(place) = PLACES.get_ptr(index) else { return 0 };
    let pid_tgid = bpf_get_current_pid_tgid();
    let mut told = MaybeUninit::<Told>::uninit();
    // SAFETY: nothing is read of the texts until they are written.
    let told = unsafe { &mut *told.as_mut_ptr() };
    told.usdt = Usdt {
        header: Header { size: size_of::<Usdt>() as u16, version: WIRE_VERSION, kind: Usdt::KIND },
        place: index,
        time_ns: now(),
        cgroup: current_cgroup(),
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        comm: current_comm(),
        arguments: [0; USDT_ARGUMENTS],
        unread: 0,
    };
    let usdt = &mut told.usdt;
    // SAFETY: a pointer into the map's value, and indexes below the length of its array.
    unsafe {
        read_argument(&ctx, place, 0, usdt);
        read_argument(&ctx, place, 1, usdt);
        read_argument(&ctx, place, 2, usdt);
        read_argument(&ctx, place, 3, usdt);
        read_argument(&ctx, place, 4, usdt);
        read_argument(&ctx, place, 5, usdt);
        read_argument(&ctx, place, 6, usdt);
        read_argument(&ctx, place, 7, usdt);
        read_argument(&ctx, place, 8, usdt);
        read_argument(&ctx, place, 9, usdt);
        read_argument(&ctx, place, 10, usdt);
        read_argument(&ctx, place, 11, usdt);
    }
    let size = if TEXTS.load()[0] < USDT_ARGUMENTS as u32 { with_texts(told) } else { size_of::<Usdt>() };
    // SAFETY: so much of the record was written.
    let sent = unsafe { send(&ctx, &EVENTS, &EVENTS_PERF, ptr::from_ref(told).cast(), size as u32) };
    if !sent {
        count_shared(Counter::BufferFull);
    }
    0
}

mcptrace_ebpf::follows_forks!();
mcptrace_ebpf::names_groups!();

#[inline(always)]
fn place<C: EbpfContext>(ctx: &C) -> u32 {
    if HAS_COOKIE.load() == 0 {
        return 0;
    }
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) as u32 }
}

/// Written out for each index by the caller: kernels before 5.12 want to know where on the stack is written. With one branch that both
/// sides of leave the same state, so that the verifier need not follow each combination of twelve arguments.
#[inline(always)]
unsafe fn read_argument(ctx: &ProbeContext, place: *const UsdtPlace, index: usize, usdt: &mut Usdt) {
    // SAFETY: the caller passes a pointer into a map's value, and an index below the length of the array.
    let argument = unsafe { &(*place).arguments[index] };
    let base = register(ctx, u32::from(argument.register)) & argument.base_mask;
    let offset = (register(ctx, u32::from(argument.index)) & argument.index_mask) << (argument.shift & 3);
    let value = base.wrapping_add(offset).wrapping_add(argument.number as u64);
    if argument.in_memory == 0 {
        usdt.arguments[index] = value;
        usdt.unread |= u64::from(argument.unknown & 1) << index;
        return;
    }
    let size = u32::from(argument.size.wrapping_sub(1) & 7) + 1;
    let slot = (&raw mut usdt.arguments[index]).cast();
    // SAFETY: the helper checks the address, and eight bytes are there for at most eight.
    let failed = unsafe { bpf_probe_read_user(slot, size, value as *const _) };
    usdt.unread |= ((failed as u64) >> 63) << index;
}

/// The size of the record with its texts.
#[inline(always)]
fn with_texts(told: &mut Told) -> usize {
    clear(&mut told.texts);
    told.usdt.header.size = size_of::<Told>() as u16;
    let [first, second] = TEXTS.load();
    told.texts.lengths[0] = read_text(&told.usdt, first, &mut told.texts.bytes[0]);
    told.texts.lengths[1] = read_text(&told.usdt, second, &mut told.texts.bytes[1]);
    size_of::<Told>()
}

/// Zeros, word by word: `memset` would be a loop over bytes, which the verifier follows for each way that leads here.
#[inline(always)]
fn clear(texts: &mut UsdtTexts) {
    let words = ptr::from_mut(texts).cast::<u64>();
    for index in 0..size_of::<UsdtTexts>() / size_of::<u64>() {
        // SAFETY: within the structure, which is made of whole words.
        unsafe { words.add(index).write_volatile(0) };
    }
}

/// The length with the zero at the end; 0 if it is not there.
#[inline(always)]
fn read_text(usdt: &Usdt, argument: u32, text: &mut [u8; USDT_TEXT_MAX]) -> u64 {
    let Some(address) = usdt.arguments.get(argument as usize) else { return 0 };
    // SAFETY: the helper checks the address, and writes no more than there is room for.
    let read = unsafe { bpf_probe_read_user_str(text.as_mut_ptr().cast(), USDT_TEXT_MAX as u32, *address as *const _) };
    read.max(0) as u64
}

mcptrace_ebpf::object!();
