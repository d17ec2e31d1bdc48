// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Breakpoint and watchpoint registers, which guests use directly (DDI 0487 D13).
#![forbid(unsafe_code)]

use super::sysreg::*;

/// Zeroes the control and the value of each number below a count.
macro_rules! zero_below {
    ($count:expr; $($n:literal => $control:ident $value:ident;)*) => {$(
        if $count > $n {
            $control(0);
            $value(0);
        }
    )*};
}

/// Turns off and zeroes as many breakpoints and watchpoints as the core has.
#[rustfmt::skip]
pub(super) fn reset(breakpoint_count: usize, watchpoint_count: usize) {
    zero_below! { breakpoint_count;
        0 => set_dbgbcr0 set_dbgbvr0;
        1 => set_dbgbcr1 set_dbgbvr1;
        2 => set_dbgbcr2 set_dbgbvr2;
        3 => set_dbgbcr3 set_dbgbvr3;
        4 => set_dbgbcr4 set_dbgbvr4;
        5 => set_dbgbcr5 set_dbgbvr5;
        6 => set_dbgbcr6 set_dbgbvr6;
        7 => set_dbgbcr7 set_dbgbvr7;
        8 => set_dbgbcr8 set_dbgbvr8;
        9 => set_dbgbcr9 set_dbgbvr9;
        10 => set_dbgbcr10 set_dbgbvr10;
        11 => set_dbgbcr11 set_dbgbvr11;
        12 => set_dbgbcr12 set_dbgbvr12;
        13 => set_dbgbcr13 set_dbgbvr13;
        14 => set_dbgbcr14 set_dbgbvr14;
        15 => set_dbgbcr15 set_dbgbvr15;
    }
    zero_below! { watchpoint_count;
        0 => set_dbgwcr0 set_dbgwvr0;
        1 => set_dbgwcr1 set_dbgwvr1;
        2 => set_dbgwcr2 set_dbgwvr2;
        3 => set_dbgwcr3 set_dbgwvr3;
        4 => set_dbgwcr4 set_dbgwvr4;
        5 => set_dbgwcr5 set_dbgwvr5;
        6 => set_dbgwcr6 set_dbgwvr6;
        7 => set_dbgwcr7 set_dbgwvr7;
        8 => set_dbgwcr8 set_dbgwvr8;
        9 => set_dbgwcr9 set_dbgwvr9;
        10 => set_dbgwcr10 set_dbgwvr10;
        11 => set_dbgwcr11 set_dbgwvr11;
        12 => set_dbgwcr12 set_dbgwvr12;
        13 => set_dbgwcr13 set_dbgwvr13;
        14 => set_dbgwcr14 set_dbgwvr14;
        15 => set_dbgwcr15 set_dbgwvr15;
    }
}
