// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The checker: does the plan fit the live machine, and do no two claims clash?
#![forbid(unsafe_code)]
