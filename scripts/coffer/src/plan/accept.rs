// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Asks EL2's own reader and checker, here, what they will say of a plan at boot.
//!
//! The tool's planner and EL2's checker are written apart; where they disagree, the user learns it
//! before the board does.
#![forbid(unsafe_code)]

use crate::board::Board;
use crate::bundle::Bundle;
use crate::explain::Code;
use crate::manifest::Manifest;
use crate::message::{Message, Report};
use crate::tree;
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
    let bytes = tree::size(&board.tree_bytes).ok().and_then(|size| board.tree_bytes.get(..size));
    let mut bytes = bytes.unwrap_or_default().to_vec();
    let live = match Dtb::squeeze(&mut bytes) {
        Ok(live) => live,
        Err(error) => return refused(Code::E31, error.to_string()),
    };
    let mut machine = match Machine::read(&live) {
        Ok(machine) => machine,
        Err(error) => return refused(Code::E32, error.to_string()),
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
