// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Asks EL2's own reader and checker, here, what they will say of a plan at boot.
//!
//! The tool's planner and EL2's checker are written apart; where they disagree, the user learns it
//! before the board does.
#![forbid(unsafe_code)]

use crate::board::{Board, Uart};
use crate::bundle::Bundle;
use crate::explain::Code;
use crate::manifest::Manifest;
use crate::message::{Message, Report};
use crate::tree;
use cofferdam::addr::PaRange;
use cofferdam::plan::check::{self, Limits};
use cofferdam::plan::machine::Machine;
use cofferdam::spec::dtb::Dtb;

/// How far addresses reach is the cores' to say: the least of any core for guests, and the most
/// for the board, whose own tree names its addresses.
const LIMITS: Limits = Limits { ipa_bits: 40, pa_bits: 52 };

/// Reports what EL2 would object to.
pub(super) fn objections(manifest: &Manifest, board: &Board, bundle: &Bundle) -> Report {
    let here = || manifest.mark(manifest.board.span(), "");
    let refused = |code, why: String| Report::from(Message::new(code, why).at(here()));
    let mut machine = match live(board) {
        Ok(machine) => machine,
        Err((code, why)) => return refused(code, why),
    };
    if let Some(control) = &bundle.plan.control.uart {
        machine.keep_for_control(&control.path);
    }
    let image_bytes = |name: &str| {
        let image = bundle.images.iter().find(|image| image.name == name)?;
        u64::try_from(image.bytes.len()).ok()
    };
    let checked = match check::check(&bundle.plan, &machine, LIMITS, &image_bytes) {
        Ok(checked) => checked,
        Err(refusal) => return refused(Code::E42, refusal.to_string()),
    };
    let mut report = Report::default();
    for refusal in &checked.refusals {
        let vm = manifest.vms.get(refusal.id.index());
        let span = vm.map_or_else(|| manifest.board.span(), |vm| vm.name.span());
        let message = Message::new(Code::E42, refusal.to_string());
        report.push(message.at(manifest.mark(span, "")));
    }
    if let Some(shortfall) = &checked.shortfall {
        report.append(refused(Code::E42, shortfall.to_string()));
    }
    report
}

/// Reads the board's tree as EL2 does.
fn live(board: &Board) -> Result<Machine, (Code, String)> {
    let bytes = tree::size(&board.tree_bytes).ok().and_then(|size| board.tree_bytes.get(..size));
    let mut bytes = bytes.unwrap_or_default().to_vec();
    let live = Dtb::squeeze(&mut bytes).map_err(|error| (Code::E31, error.to_string()))?;
    Machine::read(&live).map_err(|error| (Code::E32, error.to_string()))
}

/// Returns the console's UART where EL2 has a driver for it; a tree that it cannot read has one.
pub(super) fn console(board: &Board) -> Option<&Uart> {
    let lacks_driver = live(board).is_ok_and(|machine| machine.uart.is_none());
    board.machine.uart.as_ref().filter(|_| !lacks_driver)
}

/// Returns the addresses that EL2 gives to no guest, and for whom it keeps them.
pub(super) fn held(manifest: &Manifest, board: &Board) -> Result<Vec<(String, PaRange)>, Message> {
    let mut machine = live(board).map_err(|(code, why)| {
        Message::new(code, why).at(manifest.mark(manifest.board.span(), ""))
    })?;
    for port in manifest.control_uarts() {
        let name = port.get_ref();
        if let Some(node) = board.tree.resolve(name.strip_prefix('&').unwrap_or(name)) {
            machine.keep_for_control(&board.tree.path(node));
        }
    }
    Ok(machine.held().map(|(holder, range)| (holder.to_string(), range)).collect())
}
