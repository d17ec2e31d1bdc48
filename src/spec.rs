// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Encodings of the specifications, without state: what the words on the wire mean.
#![forbid(unsafe_code)]

pub mod gic;
