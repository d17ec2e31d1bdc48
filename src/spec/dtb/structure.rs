// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The structure block: the pass over its tokens (Devicetree Specification 0.4, section 5.4).
#![forbid(unsafe_code)]

use super::{DEPTH_MAX, DtbError, Header, NAME_MAX, NODES_MAX, PROPERTIES_MAX, word};

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// What the pass comes by, in the order of the tree.
#[derive(Clone, Copy)]
pub enum Entry<'a> {
    /// A node, of this depth: 0 for the root. What follows is in it.
    Node(usize, &'a str),
    /// A property of the last node, and its value.
    Property(&'a str, &'a [u8]),
    /// Nothing.
    Nop,
}

/// A token and what belongs to it.
struct Item {
    token: u32,
    /// Bytes with token, and name or value.
    bytes: usize,
    /// The same with padding.
    size: usize,
}

/// What may stand at the next token. Properties come before child nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeRoot,
    Properties,
    Children,
    AfterRoot,
}

/// Checks all tokens up to the end of the tree, shows the nodes and properties on the way, and
/// returns how many NOPs there are.
pub(super) fn check<'a>(
    bytes: &'a [u8],
    header: &Header,
    show: &mut dyn FnMut(Entry<'a>),
) -> Result<usize, DtbError> {
    let block = bytes.get(header.structs.clone()).ok_or(DtbError::Block("structure"))?;
    let strings = bytes.get(header.strings.clone()).ok_or(DtbError::Block("strings"))?;
    let (mut at, mut place, mut open) = (0, Place::BeforeRoot, 0_usize);
    let (mut nodes, mut properties, mut nops) = (0, 0, 0);
    loop {
        let item = item(block, at)?;
        place = match (item.token, place) {
            (NOP, _) => {
                show(Entry::Nop);
                nops += 1;
                place
            }
            (BEGIN_NODE, Place::BeforeRoot | Place::Properties | Place::Children) => {
                let name = node_name(block, at, place)?;
                if nodes == NODES_MAX {
                    return Err(DtbError::Count(at));
                }
                if open == DEPTH_MAX {
                    return Err(DtbError::Depth(at));
                }
                show(Entry::Node(open, name));
                nodes += 1;
                open += 1;
                Place::Properties
            }
            (PROP, Place::Properties) => {
                let name = word(block, at + 8).ok_or(DtbError::Token(at))?;
                let name = property_name(strings, name).ok_or(DtbError::Name(at))?;
                properties += 1;
                if properties > PROPERTIES_MAX {
                    return Err(DtbError::Count(at));
                }
                let value = block.get(at + 12..at + item.bytes).ok_or(DtbError::Value(at))?;
                show(Entry::Property(name, value));
                place
            }
            (END_NODE, Place::Properties | Place::Children) => {
                open -= 1;
                if open == 0 { Place::AfterRoot } else { Place::Children }
            }
            (END, Place::AfterRoot) => return Ok(nops),
            _ => return Err(DtbError::Token(at)),
        };
        at += item.size;
    }
}

/// Moves everything but NOPs to the front of a block that has passed, clears the rest and returns
/// the bytes in use.
pub(super) fn squeeze(block: &mut [u8]) -> Result<usize, DtbError> {
    let (mut from, mut to) = (0, 0);
    loop {
        let Item { token, size, .. } = item(block, from)?;
        if token != NOP {
            block.copy_within(from..from + size, to);
            to += size;
        }
        from += size;
        if token == END {
            block.get_mut(to..).unwrap_or_default().fill(0);
            return Ok(to);
        }
    }
}

/// Reads the token at `at`; all of the item lies in the block.
fn item(block: &[u8], at: usize) -> Result<Item, DtbError> {
    let token = word(block, at).ok_or(DtbError::Token(at))?;
    let bytes = match token {
        BEGIN_NODE => 4 + name_at(block, at + 4).ok_or(DtbError::Name(at))?.len() + 1,
        PROP => {
            let value = word(block, at + 4).ok_or(DtbError::Token(at))?;
            usize::try_from(value)
                .ok()
                .and_then(|v| v.checked_add(12))
                .ok_or(DtbError::Value(at))?
        }
        _ => 4,
    };
    let size = bytes.checked_next_multiple_of(4).ok_or(DtbError::Value(at))?;
    match at.checked_add(size) {
        Some(end) if end <= block.len() => Ok(Item { token, bytes, size }),
        _ => Err(DtbError::Value(at)),
    }
}

/// Returns the name at `at` without its NUL; `None` when it is too long or not printable.
fn name_at(bytes: &[u8], at: usize) -> Option<&str> {
    let name = bytes.get(at..)?;
    let name = name.get(..name.iter().take(NAME_MAX + 1).position(|byte| *byte == 0)?)?;
    let is_printable = name.iter().all(u8::is_ascii_graphic);
    str::from_utf8(name).ok().filter(|_| is_printable)
}

/// The root alone has no name; a `/` would make paths ambiguous.
fn node_name(block: &[u8], at: usize, place: Place) -> Result<&str, DtbError> {
    let name = name_at(block, at + 4).ok_or(DtbError::Name(at))?;
    if name.is_empty() == (place == Place::BeforeRoot) && !name.contains('/') {
        Ok(name)
    } else {
        Err(DtbError::Name(at))
    }
}

fn property_name(strings: &[u8], at: u32) -> Option<&str> {
    name_at(strings, usize::try_from(at).ok()?).filter(|name| !name.is_empty())
}
