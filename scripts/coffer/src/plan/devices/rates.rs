// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How fast a clock runs that a guest cannot ask for.
#![forbid(unsafe_code)]

use super::Shares;
use crate::closure::{Kind, Reference};
use crate::tree::NodeId;

/// More clocks than stand between a device and an oscillator.
const DEPTH_MAX: usize = 8;

impl Shares<'_> {
    /// Returns the frequency in Hz of a clock that a node refers to, as far as the tree or the
    /// board's description tells.
    pub(super) fn rate(&self, user: NodeId, clock: &Reference) -> Option<u32> {
        let told = self.board.hints.clocks.iter().find(|(node, _)| *node == user);
        if let Some(hz) = told.and_then(|(_, rates)| rates.get(clock.index)) {
            return Some(*hz);
        }
        let set_up = [user, clock.provider].into_iter().find_map(|at| self.assigned(at, clock));
        set_up.or_else(|| self.fixed(clock.provider, DEPTH_MAX)).or_else(|| {
            // What drives a UART has its input's frequency there, everywhere else it is the bus's.
            let is_serial = self.tree().generic_name(user) == "serial";
            is_serial.then(|| self.tree().u32(user, "clock-frequency")).flatten()
        })
    }

    /// Returns the frequency of a clock that nobody switches.
    fn fixed(&self, clock: NodeId, depth: usize) -> Option<u32> {
        let tree = self.tree();
        if tree.u32(clock, "#clock-cells") != Some(0) || depth == 0 {
            return None;
        }
        if let Some(hz) = tree.u32(clock, "clock-frequency") {
            return Some(hz);
        }
        let (mult, div) = (tree.u32(clock, "clock-mult")?, tree.u32(clock, "clock-div")?);
        let references = &self.closure.facts(clock).references;
        let parent = references.iter().find(|found| found.kind == Kind::Clock)?;
        let hz = u64::from(self.fixed(parent.provider, depth - 1)?);
        u32::try_from(hz.checked_mul(mult.into())?.checked_div(div.into())?).ok()
    }

    /// Returns the frequency to which a node has a clock set.
    fn assigned(&self, node: NodeId, clock: &Reference) -> Option<u32> {
        let references = &self.closure.facts(node).references;
        let set = references.iter().find(|set| {
            set.property == "assigned-clocks"
                && set.provider == clock.provider
                && set.specifier == clock.specifier
        })?;
        let rates = self.tree().cells(node, "assigned-clock-rates");
        rates.get(set.index).copied().filter(|hz| *hz != 0)
    }
}
