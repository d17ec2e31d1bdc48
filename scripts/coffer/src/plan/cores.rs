// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which VM has which cores: every one belongs to one VM alone.
#![forbid(unsafe_code)]

use super::Planner;
use crate::explain::Code;
use crate::manifest::{Cores, Vm};
use crate::message::{Message, nearest, quote};
use std::ops::Range;

/// A core that somebody has: its place in /cpus, whose it is and where that is written.
struct Claim<'a> {
    core: usize,
    vm: &'a Vm,
    span: Range<usize>,
}

/// Returns each VM's cores by their places in /cpus; `None` for a VM with an error.
pub(super) fn assign(planner: &mut Planner<'_>) -> Vec<Option<Vec<usize>>> {
    let mut claims: Vec<Claim<'_>> = Vec::new();
    let mut assigned = Vec::new();
    for vm in &planner.manifest.vms {
        let Some(wanted) = resolve(planner, vm) else {
            assigned.push(None);
            continue;
        };
        let mut cores = Some(Vec::new());
        for (core, span) in wanted {
            if let Some(claim) = claims.iter().find(|claim| claim.core == core) {
                let message = used_twice(planner, claim, vm, &span);
                planner.report.push(message);
                cores = None;
            } else {
                claims.push(Claim { core, vm, span });
                cores.iter_mut().for_each(|cores| cores.push(core));
            }
        }
        assigned.push(cores);
    }
    assigned
}

fn used_twice(planner: &Planner<'_>, claim: &Claim<'_>, vm: &Vm, span: &Range<usize>) -> Message {
    let (first, second) = (claim.vm.name.get_ref(), vm.name.get_ref());
    let core = claim.core;
    let (text, labels) = if std::ptr::eq(claim.vm, vm) {
        (format!("core {core} is given to {} twice", quote(first)), ["again".into(), String::new()])
    } else {
        let labels = [format!("{second} takes it again"), format!("{first} has it")];
        (format!("core {core} is given to {} and to {}", quote(first), quote(second)), labels)
    };
    let [again, has] = labels;
    let message = Message::new(Code::E11, text)
        .at(planner.manifest.mark(span.clone(), again))
        .at(planner.manifest.mark(claim.span.clone(), has));
    match free(planner) {
        Some(free) => message.write(format!("cores that are free: {free}")),
        None => message,
    }
}

/// Lists the cores that no VM asks for.
fn free(planner: &Planner<'_>) -> Option<String> {
    let asked: Vec<_> = planner.manifest.vms.iter().flat_map(|vm| places(planner, vm)).collect();
    let all = 0..planner.board.machine.cores.len();
    let free: Vec<_> = all.filter(|core| !asked.contains(core)).collect();
    (!free.is_empty()).then(|| list(&free))
}

/// Returns the cores that a VM asks for, those that exist.
fn places(planner: &Planner<'_>, vm: &Vm) -> Vec<usize> {
    match vm.cpus.get_ref() {
        Cores::Numbers(numbers) => {
            numbers.iter().filter_map(|number| usize::try_from(*number).ok()).collect()
        }
        Cores::Labels(labels) => {
            labels.iter().filter_map(|label| by_label(planner, label.get_ref())).collect()
        }
    }
}

fn by_label(planner: &Planner<'_>, label: &str) -> Option<usize> {
    let label = label.strip_prefix('&').unwrap_or(label);
    let node = planner.board.tree.resolve(label)?;
    planner.board.machine.core_of(node)
}

type Wanted = Vec<(usize, Range<usize>)>;

/// Finds the cores that a VM asks for, or reports those that do not exist.
fn resolve(planner: &mut Planner<'_>, vm: &Vm) -> Option<Wanted> {
    let cores = planner.board.machine.cores.len();
    match vm.cpus.get_ref() {
        Cores::Numbers(numbers) => {
            let span = vm.cpus.span();
            let known = |number: u32| usize::try_from(number).ok().filter(|core| *core < cores);
            if let Some(absent) = numbers.iter().find(|number| known(**number).is_none()) {
                let text = match cores {
                    1 => format!("the board has no core {absent}: it has core 0 alone"),
                    _ => format!("the board has no core {absent}: it has 0-{}", cores - 1),
                };
                let mark = planner.manifest.mark(span, "");
                return planner.error(Message::new(Code::E10, text).at(mark));
            }
            Some(numbers.iter().filter_map(|core| Some((known(*core)?, span.clone()))).collect())
        }
        Cores::Labels(labels) => {
            let wanted: Vec<_> = labels
                .iter()
                .map(|label| match by_label(planner, label.get_ref()) {
                    Some(core) => Some((core, label.span())),
                    None => {
                        let mark = planner.manifest.mark(label.span(), "");
                        let message = unknown_label(planner, label.get_ref()).at(mark);
                        planner.error(message)
                    }
                })
                .collect();
            wanted.into_iter().collect()
        }
    }
}

fn unknown_label(planner: &Planner<'_>, label: &str) -> Message {
    let tree = &planner.board.tree;
    let is_core = |label: &&str| by_label(planner, label).is_some();
    let labels: Vec<&str> = tree.labels().filter(is_core).collect();
    let message =
        Message::new(Code::E10, format!("the board has no core labelled {}", quote(label)));
    match nearest(label, labels.iter().copied()) {
        Some(near) => message.write(format!("\"{near}\"")),
        None if labels.is_empty() => {
            let last = planner.board.machine.cores.len().saturating_sub(1);
            message.write(format!("numbers, as this tree has no labels: 0 to {last}"))
        }
        None => message.write(format!("one of {}", labels.join(", "))),
    }
}

/// Writes a list of cores the way the manifest takes it.
pub(super) fn list(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *core => *last = *core,
            _ => parts.push((*core, *core)),
        }
    }
    let part = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::list;
    use crate::manifest::value::cpulist;

    #[test]
    fn lists_are_what_the_manifest_takes() {
        for text in ["0", "0-3", "0-3,5", "7,2-3"] {
            let cores: Vec<_> = cpulist(text).unwrap().iter().map(|core| *core as usize).collect();
            assert_eq!(list(&cores), text);
        }
    }
}
