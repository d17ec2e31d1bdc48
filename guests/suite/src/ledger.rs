// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `mode=ledger`: interrupts by the hundred thousand on each path, none lost and none doubled
//! (traps T65 to T72). `count=` says how many.
//!
//! A token goes round among the vCPUs: who takes its interrupt sends it on. A token has two
//! INTIDs that take turns, so that an interrupt that comes twice is told from the next one; no
//! INTID is ever sent before the one before it was taken, so none may merge. Whoever has nothing
//! to do sleeps in WFI, so that a wake-up that is lost is an interrupt that is lost.

use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
    Ordering::SeqCst,
};
use guest_rt::console::{self, reg};
use guest_rt::its::{self, Enable, LPI_FIRST};
use guest_rt::sysreg::{dsb, wfi};
use guest_rt::test::{Outcome, Tally};
use guest_rt::timer::{self, ENABLE, ISTATUS, Timer};
use guest_rt::{check, check_eq, cpu, gic, irq, println, tree};

/// The most tokens: SGI 15 ends servers, and each token has two.
const TOKENS_MAX: usize = 7;
/// The first of the SPIs that software makes pending.
const SPI_FIRST: u32 = 48;
/// UARTIMSC: transmit.
const TXIM: u32 = 1 << 5;
/// The device whose events are LPIs.
const LPI_DEVICE: u32 = 1;
/// The tokens whose LPI is to be sent (bit n = token n).
static TO_POST: AtomicU32 = AtomicU32::new(0);
/// Whether a vCPU posts commands: one at a time.
static IS_POSTING: AtomicBool = AtomicBool::new(false);
/// How often vCPU 0 looks whether anything has happened, in microseconds.
const WATCH_US: u64 = 10_000;
/// After how many looks without news an interrupt counts as lost.
const LOOKS_MAX: u32 = 2_000;

/// What makes an interrupt pending.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Sgi,
    SpiEdge,
    SpiLevel,
    Lpi,
    Timer,
}

/// What goes round.
struct Token {
    /// The vCPU whose turn it is.
    at: AtomicUsize,
    /// How often it was taken.
    hops: AtomicU32,
}

static TOKENS: [Token; TOKENS_MAX] =
    [const { Token { at: AtomicUsize::new(0), hops: AtomicU32::new(0) } }; TOKENS_MAX];
/// How often a token, or a vCPU's timer, has to be taken.
static LIMIT: AtomicU32 = AtomicU32::new(0);
/// Interrupts that nobody had sent.
static DOUBLED: AtomicU32 = AtomicU32::new(0);
/// How often each vCPU's timer has fired.
static FIRED: [AtomicU32; cpu::CPUS_MAX] = [const { AtomicU32::new(0) }; cpu::CPUS_MAX];
/// The looks of vCPU 0.
static LOOKS: AtomicU32 = AtomicU32::new(0);

/// Runs all paths and ends the guest.
pub fn run() -> ! {
    let count = tree::argument("count").and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let tokens = cpu::count().min(TOKENS_MAX);
    let mut tally = Tally::default();
    tally.report("ledger_sgi", keep(Path::Sgi, tokens, count));
    tally.report("ledger_spi_edge", keep(Path::SpiEdge, tokens, count));
    tally.report("ledger_spi_level", keep(Path::SpiLevel, 1, count));
    if its::device().is_some() {
        tally.report("ledger_lpi", keep(Path::Lpi, tokens, count));
    }
    tally.report("ledger_timer", keep(Path::Timer, cpu::count(), count));
    tally.finish()
}

/// Lets `count` interrupts happen on a path, spread over as many tokens or timers.
fn keep(path: Path, tokens: usize, count: u32) -> Outcome {
    set_up(path, count.div_ceil(u32::try_from(tokens).unwrap_or(1)));
    for index in 1..cpu::count() {
        let job = if path == Path::Timer { serve_timer } else { serve };
        check!(cpu::start_server(index, job), "vCPU {index} does not start");
    }
    irq::handle_with(take);
    gic::enable(Timer::Physical.intid());
    watch();
    for (token, at) in TOKENS.iter().zip(0..).take(tokens) {
        token.at.store(at, Relaxed);
    }
    match path {
        Path::Timer => start_timer(),
        _ => (0..tokens).for_each(|token| send(path, token, 0, token)),
    }
    sleep_until_done(path, tokens);
    // Whatever comes now is one too many.
    timer::delay(2 * WATCH_US);
    irq::take_pending();
    Timer::Physical.set_ctl(0);
    let others_stop = cpu::stop_servers();
    let limit = LIMIT.load(Relaxed);
    let mut taken = 0;
    for n in 0..tokens {
        let hops = count_of(path, n);
        let at = TOKENS.get(n).map_or(n, |token| token.at.load(Relaxed));
        check_eq!(hops, limit, "taken of {n}, which is at vCPU {at}");
        taken += hops;
    }
    check_eq!(DOUBLED.load(Relaxed), 0, "interrupts that nobody had sent");
    check!(others_stop, "a vCPU does not go off");
    println!("LEDGER {} on {} vCPUs: {taken} sent and taken", name(path), cpu::count());
    Ok(())
}

fn name(path: Path) -> &'static str {
    match path {
        Path::Sgi => "SGI",
        Path::SpiEdge => "SPI edge",
        Path::SpiLevel => "SPI level",
        Path::Lpi => "LPI",
        Path::Timer => "timer",
    }
}

fn set_up(path: Path, limit: u32) {
    gic::init();
    gic::init_cpu();
    LIMIT.store(limit, Relaxed);
    DOUBLED.store(0, Relaxed);
    TOKENS.iter().for_each(|token| token.hops.store(0, Relaxed));
    FIRED.iter().for_each(|fired| fired.store(0, Relaxed));
    for intid in 0..15 {
        gic::enable(intid);
    }
    match path {
        Path::SpiEdge => {
            for intid in SPI_FIRST..SPI_FIRST + 16 {
                gic::set_edge(intid);
                gic::enable(intid);
            }
        }
        Path::SpiLevel => {
            let uart = console::device();
            uart.write32(reg::IMSC, 0);
            // The byte that goes out raises the transmit interrupt, which then stays.
            console::put(b'\r');
            let raised = || uart.read32(reg::RIS) & TXIM != 0;
            let _ = timer::wait_for(timer::PATIENCE_MS, raised);
            gic::enable(tree::machine().uart_intid);
        }
        Path::Lpi => set_up_lpis(),
        Path::Sgi | Path::Timer => {}
    }
}

/// Makes the first LPIs of the first events of one device.
fn set_up_lpis() {
    let Some(its) = its::device() else { return };
    let _ = its::init(its);
    its::post(its, [its::mapd(LPI_DEVICE, 4)]);
    for n in 0..16 {
        its::configure(LPI_FIRST + n, gic::PRIORITY, Enable::On);
        its::post(its, [its::mapti((LPI_DEVICE, n), LPI_FIRST + n, 0)]);
    }
}

fn serve() {
    irq::handle_with(take);
    cpu::serve();
}

fn serve_timer() {
    start_timer();
    serve();
}

fn start_timer() {
    gic::enable(Timer::Virtual.intid());
    Timer::Virtual.set_cval(0);
    Timer::Virtual.set_ctl(ENABLE);
}

/// Starts the look at what has happened anew.
fn watch() {
    Timer::Physical.set_cval(Timer::Physical.now() + timer::ticks(WATCH_US));
    Timer::Physical.set_ctl(ENABLE);
}

fn count_of(path: Path, n: usize) -> u32 {
    let count = match path {
        Path::Timer => FIRED.get(n),
        _ => TOKENS.get(n).map(|token| &token.hops),
    };
    count.map_or(0, |count| count.load(Acquire))
}

/// Sleeps and takes interrupts until all have been taken, or nothing has happened for long.
fn sleep_until_done(path: Path, tokens: usize) {
    let total = || (0..tokens).map(|n| u64::from(count_of(path, n))).sum::<u64>();
    let goal = u64::from(LIMIT.load(Relaxed)) * tokens as u64;
    let mut last = 0;
    LOOKS.store(0, Relaxed);
    while total() < goal && LOOKS.load(Relaxed) < LOOKS_MAX {
        wfi();
        irq::take_pending();
        let now = total();
        if now != last {
            LOOKS.store(0, Relaxed);
        }
        last = now;
    }
}

/// Takes one interrupt.
fn take() {
    let intid = irq::acknowledge();
    match intid {
        irq::SPURIOUS | cpu::WAKE_SGI => irq::end(intid),
        _ if intid == Timer::Virtual.intid() => take_timer(intid),
        _ if intid == Timer::Physical.intid() => {
            LOOKS.fetch_add(1, Relaxed);
            watch();
            irq::end(intid);
        }
        _ if intid == tree::machine().uart_intid => take_level(intid),
        0..16 => take_token(Path::Sgi, intid, intid),
        LPI_FIRST.. => take_token(Path::Lpi, intid, intid - LPI_FIRST),
        _ => take_token(Path::SpiEdge, intid, intid - SPI_FIRST),
    }
}

/// Takes a token whose INTID is the `number`th of its path, and sends it on.
fn take_token(path: Path, intid: u32, number: u32) {
    let n = usize::try_from(number & 7).unwrap_or(0);
    irq::end(intid);
    let Some(token) = TOKENS.get(n) else { return count_doubled() };
    let hops = token.hops.load(Acquire);
    if token.at.load(Acquire) != cpu::index() || hops % 2 != number >> 3 & 1 {
        return count_doubled();
    }
    pass_on(path, token, n, hops);
}

/// Takes the console's interrupt, whose line goes low before its end.
fn take_level(intid: u32) {
    let uart = console::device();
    let [token, ..] = &TOKENS;
    let is_raised = uart.read32(reg::MIS) & TXIM != 0;
    let is_mine = token.at.load(Acquire) == cpu::index();
    uart.write32(reg::IMSC, 0);
    dsb();
    irq::end(intid);
    if is_raised && is_mine {
        pass_on(Path::SpiLevel, token, 0, token.hops.load(Acquire));
    } else {
        count_doubled();
    }
}

fn pass_on(path: Path, token: &Token, n: usize, hops: u32) {
    let hops = hops + 1;
    let next = (cpu::index() + 1) % cpu::count();
    token.at.store(next, Release);
    token.hops.store(hops, Release);
    if hops < LIMIT.load(Relaxed) {
        send(path, n, hops, next);
    }
}

/// Makes the interrupt pending with which the token `n` is taken for the `hops`th time.
fn send(path: Path, n: usize, hops: u32, target: usize) {
    let number = u32::try_from(n).unwrap_or(0) | (hops % 2) << 3;
    match path {
        Path::Sgi => gic::send_sgi(number, target),
        Path::SpiEdge => {
            gic::route(SPI_FIRST + number, cpu::mpidr(target));
            gic::set_pending(SPI_FIRST + number);
        }
        Path::Lpi => send_lpi(n),
        Path::SpiLevel => {
            gic::route(tree::machine().uart_intid, cpu::mpidr(target));
            console::device().write32(reg::IMSC, TXIM);
        }
        Path::Timer => {}
    }
}

/// Sends a token's LPI, or leaves that to the vCPU that posts: it looks again when it has done so.
///
/// Nobody waits for that one. It may have been stopped by the very vCPU that it has woken, where
/// both are threads on one core of the host.
fn send_lpi(n: usize) {
    let Some(its) = its::device() else { return };
    TO_POST.fetch_or(1 << n, SeqCst);
    while TO_POST.load(SeqCst) != 0 && !IS_POSTING.swap(true, SeqCst) {
        let to_post = TO_POST.swap(0, SeqCst);
        for (token, n) in TOKENS.iter().zip(0..).filter(|(_, n)| to_post >> n & 1 == 1) {
            let event = (LPI_DEVICE, n | (token.hops.load(Acquire) % 2) << 3);
            let target = token.at.load(Acquire);
            its::post(its, [its::movi(event, target), its::int(event)]);
        }
        IS_POSTING.store(false, SeqCst);
    }
}

/// Takes this vCPU's timer and sets the next deadline: mostly one that has passed, at times one
/// to come.
fn take_timer(intid: u32) {
    let Some(fired) = FIRED.get(cpu::index()) else { return };
    let count = fired.load(Relaxed);
    if Timer::Virtual.ctl() & ISTATUS == 0 || count == LIMIT.load(Relaxed) {
        irq::end(intid);
        return count_doubled();
    }
    let count = count + 1;
    let now = Timer::Virtual.now();
    if count == LIMIT.load(Relaxed) {
        Timer::Virtual.set_ctl(0);
    } else {
        Timer::Virtual.set_cval(if count % 8 == 0 { now + 1000 } else { now });
    }
    fired.store(count, Release);
    irq::end(intid);
}

fn count_doubled() {
    DOUBLED.fetch_add(1, Relaxed);
}
