// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM's small devices, between its guest and whoever looks after it: the watchdog, the GPIO
//! controller whose lines tell the guest something, the port on which it reports a panic.
//!
//! They live in guest time. What has to be done later is done by the core of vCPU 0, whose timer
//! is armed for it; others ask that core to look.
#![forbid(unsafe_code)]

use super::Vm;
use super::crash::CrashCause;
use crate::arch;
use crate::bits::{Level, MmioError, Width};
use crate::devices::pl061::{Line, Pl061};
use crate::devices::pvpanic::{self, Event};
use crate::devices::watchdog::{Frame, Watchdog};
use crate::id::VcpuId;
use crate::sync::Guard;
use crate::vcpu::{FromCore, GO_ON};

/// The GPIO line of the power button, as on QEMU's `virt`.
const POWER: Line = Line::new(3);
/// The GPIO line that is high while a VM that this one depends on is gone.
const DEPENDENCY_LOST: Line = Line::new(4);
/// How long a press of the power button takes, in seconds: far longer than the 5 ms for which Linux
/// waits until a button has come to rest, also on a core that is a busy host's.
const PRESS_SECONDS: u64 = 1;

/// One of the devices, by its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The PL061.
    Gpio,
    /// The watchdog.
    Watchdog(Frame),
    /// The panic port.
    Panic,
}

/// A VM's small devices.
#[derive(Debug, Default)]
pub struct Platform {
    watchdog: Watchdog,
    gpio: Pl061,
    /// When the power button is let go, if it is pressed: in ticks of the guest.
    release_at: Option<u64>,
    /// Whether a VM that this one depends on is gone: no reset of this one changes that.
    dependency_lost: Level,
    /// What the interrupts' lines were last seen to carry: the GPIO controller's, the watchdog's.
    lines: (Level, Level),
    /// Until when, in ticks of the guest, the timer of vCPU 0's core is sure to fire.
    fires_by: Option<u64>,
}

impl Platform {
    /// Returns the first tick of the guest at which something is to be done.
    fn deadline(&self) -> Option<u64> {
        [self.watchdog.deadline(), self.release_at].into_iter().flatten().min()
    }

    /// Does what time brings about.
    fn look(&mut self, now: u64) {
        self.watchdog.look(now);
        if self.release_at.is_some_and(|at| at <= now) {
            self.release_at = None;
            self.gpio.drive(POWER, Level::Low);
        }
    }
}

impl Vm {
    /// Reads a register of a device.
    ///
    /// # Errors
    /// The model does not answer such an access.
    pub fn read_platform(
        &self,
        by: &FromCore<'_>,
        (device, offset): (Device, u64),
        width: Width,
    ) -> Result<u64, MmioError> {
        let mut platform = self.platform.acquire();
        match device {
            Device::Gpio => platform.gpio.read(offset, width),
            Device::Panic => pvpanic::read(offset, width),
            Device::Watchdog(frame) => {
                let value = platform.watchdog.read(frame, offset, width, self.now_ticks());
                self.follow_platform(by, platform);
                value
            }
        }
    }

    /// Writes a register of a device.
    ///
    /// # Errors
    /// The model does not answer such an access, or it reports a panic.
    pub fn write_platform(
        &self,
        by: &FromCore<'_>,
        (device, offset): (Device, u64),
        width: Width,
        value: u64,
    ) -> Result<(), MmioError> {
        let mut platform = self.platform.acquire();
        match device {
            Device::Gpio => platform.gpio.write(offset, width, value)?,
            Device::Watchdog(frame) => {
                platform.watchdog.write(frame, offset, width, value, self.now_ticks())?;
            }
            Device::Panic => {
                return match pvpanic::write(offset, width, value)? {
                    Some(Event::Panicked) => Err(MmioError::Panicked),
                    // Its own crash kernel goes on.
                    Some(Event::CrashLoaded) | None => Ok(()),
                };
            }
        }
        self.follow_platform(by, platform);
        Ok(())
    }

    /// Presses the power button and lets it go a second later.
    pub fn press_power(&self, by: &FromCore<'_>) {
        let mut platform = self.platform.acquire();
        platform.gpio.drive(POWER, Level::High);
        let press_ticks = arch::counter_frequency_hz().saturating_mul(PRESS_SECONDS);
        platform.release_at = Some(self.now_ticks().wrapping_add(press_ticks));
        self.follow_platform(by, platform);
    }

    /// Tells the guest whether a VM that it depends on is gone, now and after each of its resets.
    pub fn set_dependency_lost(&self, by: &FromCore<'_>, level: Level) {
        let mut platform = self.platform.acquire();
        platform.dependency_lost = level;
        platform.gpio.drive(DEPENDENCY_LOST, level);
        self.follow_platform(by, platform);
    }

    /// Makes the devices as they are after reset. Nothing is due before
    /// [`start_platform`](Self::start_platform).
    pub(super) fn reset_platform(&self, by: &FromCore<'_>) {
        let mut platform = self.platform.acquire();
        let Platform { dependency_lost, lines, .. } = *platform;
        *platform = Platform { dependency_lost, lines, ..Platform::default() };
        platform.gpio.drive(DEPENDENCY_LOST, dependency_lost);
        self.follow_platform(by, platform);
    }

    /// Arms the watchdog where the plan says so, when guest time begins; ask the core of vCPU 0 to
    /// look once the VM runs.
    pub(super) fn start_platform(&self) {
        let Some(timeout_ms) = self.plan.policies.watchdog_ms else { return };
        let timeout_ticks = u64::from(timeout_ms).saturating_mul(arch::counter_frequency_hz());
        self.platform.acquire().watchdog = Watchdog::armed(timeout_ticks / 1000, 0);
    }

    /// Lets the devices go on after the guest was held: the time in between is not held against
    /// it, whether it saw it pass or not. Its vCPU 0's core calls this.
    pub(super) fn resume_platform(&self, by: &FromCore<'_>) {
        let mut platform = self.platform.acquire();
        platform.fires_by = None;
        if !self.stops_time() && platform.watchdog.deadline().is_some() {
            platform.watchdog.refresh(self.now_ticks());
        }
        self.follow_platform(by, platform);
    }

    /// Does what is due: the core of vCPU 0 calls this when its timer has fired, which then is no
    /// longer armed, or when somebody has asked for it. Returns whether that is the end of the
    /// guest.
    pub fn serve_platform(&self, by: &FromCore<'_>) -> Option<CrashCause> {
        let mut platform = self.platform.acquire();
        platform.fires_by = None;
        platform.look(self.now_ticks());
        let fired = platform.watchdog.fired();
        self.follow_platform(by, platform);
        (fired == Level::High).then_some(CrashCause::Watchdog)
    }

    /// Returns the guest's time.
    fn now_ticks(&self) -> u64 {
        self.clock.at(arch::counter())
    }

    /// Asks the core of vCPU 0 to look what is due.
    pub fn ask_to_serve_platform(&self) {
        if let Some(core) = self.kicks.first() {
            arch::send_sgi(GO_ON, *core);
        }
    }

    /// Carries on what has changed: lines, and when there is something to do. A timer that fires
    /// too early does no harm, so what moves into the future leaves it alone.
    fn follow_platform(&self, by: &FromCore<'_>, mut platform: Guard<'_, Platform>) {
        let lines = (platform.gpio.interrupt_level(), platform.watchdog.interrupt_level());
        let deadline = platform.deadline();
        let is_earlier = |deadline| platform.fires_by.is_none_or(|fires_by| deadline < fires_by);
        let earlier = deadline.filter(|deadline| is_earlier(*deadline));
        platform.fires_by = earlier.or(platform.fires_by);
        if lines == platform.lines {
            drop(platform);
        } else {
            platform.lines = lines;
            self.set_platform_lines(*by, platform, lines);
        }
        let Some(deadline) = earlier else { return };
        if by.own == Some(VcpuId::new(0)) {
            // What never comes must not come at once.
            arch::arm_hyp_timer(deadline.saturating_add(self.clock.offset_ticks()));
        } else {
            self.ask_to_serve_platform();
        }
    }

    /// Lets the distributor see the lines as they are now, and gives the lock back.
    fn set_platform_lines(
        &self,
        by: FromCore<'_>,
        platform: Guard<'_, Platform>,
        (gpio, watchdog): (Level, Level),
    ) {
        let layout = &self.plan.layout;
        let ((), kicks) = self.change_spis_before_kicks(by, |token, effects| {
            self.vgic.set_level(token, layout.gpio_interrupt, gpio, effects);
            self.vgic.set_level(token, layout.watchdog_interrupt, watchdog, effects);
        });
        drop(platform);
        self.send_kicks(kicks);
    }
}
