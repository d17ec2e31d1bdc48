// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Why a VM cannot go on.
#![forbid(unsafe_code)]

use core::fmt;

/// Why a VM cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashCause {
    /// Its guest has said that it panicked.
    Panicked,
    /// Its watchdog has not been refreshed, nor has its warning been answered.
    Watchdog,
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panicked => "its guest has panicked",
            Self::Watchdog => "its watchdog has fired",
        })
    }
}
