// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Breakpoint and watchpoint registers, which guests use directly (DDI 0487 D13).
#![forbid(unsafe_code)]

use super::sysreg::*;

type Setters = (fn(u64), fn(u64));

const BREAKPOINTS: [Setters; 16] = [
    (set_dbgbcr0, set_dbgbvr0),
    (set_dbgbcr1, set_dbgbvr1),
    (set_dbgbcr2, set_dbgbvr2),
    (set_dbgbcr3, set_dbgbvr3),
    (set_dbgbcr4, set_dbgbvr4),
    (set_dbgbcr5, set_dbgbvr5),
    (set_dbgbcr6, set_dbgbvr6),
    (set_dbgbcr7, set_dbgbvr7),
    (set_dbgbcr8, set_dbgbvr8),
    (set_dbgbcr9, set_dbgbvr9),
    (set_dbgbcr10, set_dbgbvr10),
    (set_dbgbcr11, set_dbgbvr11),
    (set_dbgbcr12, set_dbgbvr12),
    (set_dbgbcr13, set_dbgbvr13),
    (set_dbgbcr14, set_dbgbvr14),
    (set_dbgbcr15, set_dbgbvr15),
];

const WATCHPOINTS: [Setters; 16] = [
    (set_dbgwcr0, set_dbgwvr0),
    (set_dbgwcr1, set_dbgwvr1),
    (set_dbgwcr2, set_dbgwvr2),
    (set_dbgwcr3, set_dbgwvr3),
    (set_dbgwcr4, set_dbgwvr4),
    (set_dbgwcr5, set_dbgwvr5),
    (set_dbgwcr6, set_dbgwvr6),
    (set_dbgwcr7, set_dbgwvr7),
    (set_dbgwcr8, set_dbgwvr8),
    (set_dbgwcr9, set_dbgwvr9),
    (set_dbgwcr10, set_dbgwvr10),
    (set_dbgwcr11, set_dbgwvr11),
    (set_dbgwcr12, set_dbgwvr12),
    (set_dbgwcr13, set_dbgwvr13),
    (set_dbgwcr14, set_dbgwvr14),
    (set_dbgwcr15, set_dbgwvr15),
];

/// Turns off and zeroes as many breakpoints and watchpoints as the core has.
pub(super) fn reset(breakpoint_count: usize, watchpoint_count: usize) {
    let breakpoints = BREAKPOINTS.iter().take(breakpoint_count);
    for (set_control, set_value) in breakpoints.chain(WATCHPOINTS.iter().take(watchpoint_count)) {
        set_control(0);
        set_value(0);
    }
}
