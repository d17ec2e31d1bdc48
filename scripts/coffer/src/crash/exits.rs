// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Why a vCPU has left its guest, in words: the syndrome and what goes with it (DDI 0487 D24.2.40).
#![forbid(unsafe_code)]

use super::map::Map;
use cofferdam::spec::esr::{Cause, Direction, RareCause, Syndrome, SystemRegister};
use cofferdam::spec::psci::{self, Function};
use cofferdam::spec::smccc::{self, FunctionId};

/// Set in place of a syndrome for a physical interrupt, whose number is in the low bits.
const INTERRUPT: u64 = 1 << 63;
/// The exception class of an SError.
const SERROR: u64 = 0x2f;

/// An exit, as the hypervisor has kept it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastExit {
    /// ESR_EL2, or the mark of an interrupt.
    pub syndrome: u64,
    /// ELR_EL2.
    pub pc: u64,
    /// The counter.
    pub at_ticks: u64,
    /// X0 of a call; the guest's physical address of an access that a device has answered.
    pub detail: Option<u64>,
    /// FAR_EL2 of a fault.
    pub far: Option<u64>,
}

impl LastExit {
    /// Returns the address of an instruction that it is about, to look its function up: of a call
    /// by HVC the PC is behind it.
    #[must_use]
    pub fn lookup(&self) -> u64 {
        let is_behind = self.syndrome & INTERRUPT == 0
            && matches!(Syndrome::new(self.syndrome).cause(), Cause::Hvc(_));
        self.pc.wrapping_sub(u64::from(is_behind))
    }

    /// Says why.
    #[must_use]
    pub fn to_text(&self, map: &Map) -> String {
        if self.syndrome & INTERRUPT != 0 {
            return interrupt(self.syndrome & 0xff_ffff);
        }
        let syndrome = Syndrome::new(self.syndrome);
        let at = self.far.map_or(String::new(), |far| format!(" at {far:#x}"));
        match syndrome.cause() {
            Cause::Hvc(immediate) => format!("HVC {}", self.call(immediate)),
            Cause::Smc(immediate) => format!("SMC {}", self.call(immediate)),
            Cause::SystemRegister(access) => {
                let way = way(access.direction);
                format!("{way} of {}", register(access.id))
            }
            Cause::DataAbort(abort) => {
                let direction = if abort.is_write() { "write" } else { "read" };
                let Some(ipa) = self.detail else {
                    return format!("data abort, {direction}{at}{}", abort_kind(self.syndrome));
                };
                let place = map.place(ipa).map(|place| format!(" ({place})"));
                let place = place.unwrap_or_else(|| " (nothing is there)".to_owned());
                let bytes = abort.access().map(|access| access.width.bytes());
                let bytes = bytes.map(|n| format!(" of {n} bytes")).unwrap_or_default();
                format!("data abort, {direction}{bytes} of {ipa:#x}{place}")
            }
            Cause::Rare(_) if syndrome.class() == SERROR => "SError".to_owned(),
            Cause::Rare(rare) => match rare.rare_cause() {
                RareCause::InstructionAbort(_) => {
                    format!("instruction abort{at}{}", abort_kind(self.syndrome))
                }
                RareCause::Wait => "WFI or WFE".to_owned(),
                RareCause::Undefined => {
                    format!("hidden instruction (exception class {:#x})", syndrome.class())
                }
            },
        }
    }

    fn call(&self, immediate: u16) -> String {
        let Some(x0) = self.detail.filter(|_| immediate == 0) else {
            return format!("#{immediate:#x}");
        };
        let function = FunctionId::from_x0(x0);
        let name =
            if psci::owns(function) { Function::decode(function).map(psci_name) } else { None };
        match (name, smccc_name(function)) {
            (Some(name), _) => format!("PSCI {name}"),
            (None, Some(name)) => name.to_owned(),
            (None, None) => format!("function {:#x}", function.get()),
        }
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    }
}

/// Says what is wrong with an address, where that is not just that nothing is there.
fn abort_kind(syndrome: u64) -> &'static str {
    const S1PTW: u64 = 1 << 7;
    match syndrome & 0x3f {
        _ if syndrome & S1PTW != 0 => ", where the guest has a translation table",
        0x0c..=0x0f => ", not permitted",
        0x10..=0x1f => ", external abort",
        0x21 => ", not aligned",
        _ => "",
    }
}

/// Names an interrupt of a core by the numbers that the hypervisor asks of every machine.
fn interrupt(intid: u64) -> String {
    let name = match intid {
        0 => " (kick)",
        1 => " (halt)",
        2 => " (go on)",
        23 => " (PMU)",
        25 => " (maintenance)",
        26 => " (timer of the hypervisor)",
        27 => " (virtual timer)",
        30 => " (physical timer)",
        _ => "",
    };
    format!("interrupt {intid}{name}")
}

fn psci_name(function: Function) -> &'static str {
    match function {
        Function::Version => "PSCI_VERSION",
        Function::CpuSuspend => "CPU_SUSPEND",
        Function::CpuOff => "CPU_OFF",
        Function::CpuOn => "CPU_ON",
        Function::AffinityInfo => "AFFINITY_INFO",
        Function::MigrateInfoType => "MIGRATE_INFO_TYPE",
        Function::SystemOff => "SYSTEM_OFF",
        Function::SystemReset => "SYSTEM_RESET",
        Function::Features => "PSCI_FEATURES",
        Function::SystemSuspend => "SYSTEM_SUSPEND",
        Function::SystemReset2 => "SYSTEM_RESET2",
    }
}

fn smccc_name(function: FunctionId) -> Option<&'static str> {
    Some(match function {
        smccc::VERSION => "SMCCC_VERSION",
        smccc::ARCH_FEATURES => "SMCCC_ARCH_FEATURES",
        smccc::ARCH_WORKAROUND_1 => "SMCCC_ARCH_WORKAROUND_1",
        smccc::ARCH_WORKAROUND_2 => "SMCCC_ARCH_WORKAROUND_2",
        smccc::ARCH_WORKAROUND_3 => "SMCCC_ARCH_WORKAROUND_3",
        _ => return None,
    })
}

/// Names the registers that guests are known to come here with; others by their encoding.
fn register(id: SystemRegister) -> String {
    const KNOWN: [(SystemRegister, &str); 11] = [
        (SystemRegister::new(3, 0, 0, 4, 0), "ID_AA64PFR0_EL1"),
        (SystemRegister::new(3, 0, 0, 4, 1), "ID_AA64PFR1_EL1"),
        (SystemRegister::new(3, 0, 0, 5, 0), "ID_AA64DFR0_EL1"),
        (SystemRegister::new(3, 0, 0, 6, 0), "ID_AA64ISAR0_EL1"),
        (SystemRegister::new(3, 0, 0, 6, 1), "ID_AA64ISAR1_EL1"),
        (SystemRegister::new(3, 0, 0, 7, 0), "ID_AA64MMFR0_EL1"),
        (SystemRegister::new(3, 0, 0, 7, 1), "ID_AA64MMFR1_EL1"),
        (SystemRegister::new(3, 0, 1, 0, 1), "ACTLR_EL1"),
        (SystemRegister::new(3, 0, 12, 11, 1), "ICC_DIR_EL1"),
        (SystemRegister::new(3, 0, 12, 11, 5), "ICC_SGI1R_EL1"),
        (SystemRegister::new(3, 0, 12, 11, 7), "ICC_SGI0R_EL1"),
    ];
    let known = KNOWN.iter().find(|(own, _)| *own == id);
    known.map_or_else(|| format!("{id:?}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::map::Area;
    use super::*;

    fn text(syndrome: u64, detail: Option<u64>, far: Option<u64>) -> String {
        let area = Area {
            kind: "model".to_owned(),
            at: 0x900_0000,
            bytes: 0x1000,
            name: "pl011".to_owned(),
        };
        LastExit { syndrome, pc: 0, at_ticks: 0, detail, far }.to_text(&Map(vec![area]))
    }

    /// DDI 0487 D24.2.40: EC in 31:26, IL in 25, ISV in 24, SAS in 23:22, WnR in 6, DFSC in 5:0.
    #[test]
    fn syndromes_are_said_in_words() {
        let ec = |class: u64| class << 26 | 1 << 25;
        for (syndrome, detail, far, expected) in [
            (ec(0x16), Some(0xc400_0003), None, "HVC PSCI CPU_ON"),
            (ec(0x17), Some(0x8400_0009), None, "SMC PSCI SYSTEM_RESET"),
            (ec(0x17), Some(0x8000_8000), None, "SMC SMCCC_ARCH_WORKAROUND_1"),
            (ec(0x16), Some(0x8400_001f), None, "HVC function 0x8400001f"),
            (ec(0x16) | 7, Some(0x8400_0000), None, "HVC #0x7"),
            (
                ec(0x24) | 1 << 24 | 2 << 22 | 7,
                Some(0x900_0018),
                None,
                "data abort, read of 4 bytes of 0x9000018 (pl011+0x18)",
            ),
            (
                ec(0x24) | 1 << 24 | 1 << 6 | 7,
                Some(0x900_1000),
                Some(0xffff_0000),
                "data abort, write of 1 bytes of 0x9001000 (nothing is there)",
            ),
            (
                ec(0x24) | 0x87,
                None,
                Some(0x40),
                "data abort, read at 0x40, where the guest has a translation table",
            ),
            (ec(0x24) | 0x4f, None, Some(0x40), "data abort, write at 0x40, not permitted"),
            (ec(0x20) | 0x10, None, Some(8), "instruction abort at 0x8, external abort"),
            (
                ec(0x18) | 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1,
                None,
                None,
                "write of ICC_SGI1R_EL1",
            ),
            (
                ec(0x18) | 3 << 20 | 3 << 14 | 13 << 10 | 2 << 1 | 1,
                None,
                None,
                "read of S3_3_C13_C2_0",
            ),
            (ec(0x2f), None, None, "SError"),
            (0, None, None, "hidden instruction (exception class 0x0)"),
            (1 << 63 | 27, None, None, "interrupt 27 (virtual timer)"),
            (1 << 63 | 70, None, None, "interrupt 70"),
        ] {
            assert_eq!(text(syndrome, detail, far), expected);
        }
    }

    #[test]
    fn a_call_by_hvc_is_in_front_of_the_pc() {
        let exit = |syndrome| LastExit { syndrome, pc: 8, at_ticks: 0, detail: None, far: None };
        let lookups = [0x16 << 26, 0x17 << 26, 1 << 63 | 0x16 << 26].map(|own| exit(own).lookup());
        assert_eq!(lookups, [7, 8, 8]);
    }
}
