//! Sends an event for each USDT probe that a program passes, with its arguments.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    EbpfContext, Global,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_attach_cookie, bpf_probe_read_user, bpf_probe_read_user_str},
    },
    macros::{map, uprobe},
    maps::{Array, PerfEventByteArray, RingBuf},
    programs::ProbeContext,
};
use mcptrace_ebpf::{
    Counter, Header, Record, USDT_ARGUMENTS, USDT_TEXT_MAX, USDT_TEXTS, Usdt, UsdtArgument, UsdtPlace, UsdtPlaceOf,
    UsdtTexts, WIRE_VERSION,
    function::register,
    kernel::{count_shared, current_passes, now, send},
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
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
        arguments: [0; USDT_ARGUMENTS],
        read: 0,
    };
    let usdt = &mut told.usdt;
    // SAFETY: a pointer into the map's value. The loop is as long as an array, so every index is known when it is compiled.
    unsafe {
        let count = (*place).count;
        read_argument(&ctx, place, 0, count, usdt);
        read_argument(&ctx, place, 1, count, usdt);
        read_argument(&ctx, place, 2, count, usdt);
        read_argument(&ctx, place, 3, count, usdt);
        read_argument(&ctx, place, 4, count, usdt);
        read_argument(&ctx, place, 5, count, usdt);
        read_argument(&ctx, place, 6, count, usdt);
        read_argument(&ctx, place, 7, count, usdt);
        read_argument(&ctx, place, 8, count, usdt);
        read_argument(&ctx, place, 9, count, usdt);
        read_argument(&ctx, place, 10, count, usdt);
        read_argument(&ctx, place, 11, count, usdt);
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

#[inline(always)]
fn place<C: EbpfContext>(ctx: &C) -> u32 {
    if HAS_COOKIE.load() == 0 {
        return 0;
    }
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) as u32 }
}

/// Written out for each index by the caller: kernels before 5.12 want to know where on the stack is written.
#[inline(always)]
unsafe fn read_argument(ctx: &ProbeContext, place: *const UsdtPlace, index: usize, count: u64, usdt: &mut Usdt) {
    if index as u64 >= count {
        return;
    }
    // SAFETY: the caller passes a pointer into a map's value, and an index below the length of the arrays.
    let argument = unsafe { ptr::read_volatile(&raw const (*place).arguments[index]) };
    if let Some(value) = value(ctx, &argument) {
        usdt.arguments[index] = value;
        usdt.read |= 1 << index;
    }
}

#[inline(always)]
fn value(ctx: &ProbeContext, argument: &UsdtArgument) -> Option<u64> {
    if argument.kind == UsdtPlaceOf::Constant as u8 {
        return Some(argument.number as u64);
    }
    if argument.kind == UsdtPlaceOf::Unknown as u8 {
        return None;
    }
    let base = register(ctx, u32::from(argument.register));
    if argument.kind == UsdtPlaceOf::Register as u8 {
        return Some(base);
    }
    let mut address = base.wrapping_add(argument.number as u64);
    if argument.has_index != 0 {
        let index = register(ctx, u32::from(argument.index));
        address = address.wrapping_add(index << (argument.shift & 3));
    }
    let mut value = 0_u64;
    // SAFETY: the helper checks the address. Eight bytes are read whatever the size, and cut by user space; where the page ends
    // before that, what lies in it is enough.
    let failed = unsafe { bpf_probe_read_user((&raw mut value).cast(), 8, address as *const _) } != 0;
    if failed { short(address, argument.size) } else { Some(value) }
}

/// Reads a small argument at the end of what is mapped.
#[inline(always)]
fn short(address: u64, size: u8) -> Option<u64> {
    let mut value = 0_u32;
    if size > 4 {
        return None;
    }
    // SAFETY: the helper checks the address.
    let failed = unsafe { bpf_probe_read_user((&raw mut value).cast(), 4, address as *const _) } != 0;
    (!failed).then_some(u64::from(value))
}

/// The size of the record with its texts.
#[inline(always)]
fn with_texts(told: &mut Told) -> usize {
    told.texts = UsdtTexts { lengths: [0; USDT_TEXTS], bytes: [[0; USDT_TEXT_MAX]; USDT_TEXTS] };
    told.usdt.header.size = size_of::<Told>() as u16;
    let [first, second, third] = TEXTS.load();
    told.texts.lengths[0] = read_text(&told.usdt, first, &mut told.texts.bytes[0]);
    told.texts.lengths[1] = read_text(&told.usdt, second, &mut told.texts.bytes[1]);
    told.texts.lengths[2] = read_text(&told.usdt, third, &mut told.texts.bytes[2]);
    size_of::<Told>()
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
