// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cofferdam's host tool: which verb was typed. Exit codes: 0 done, 1 refused or failed, 2 usage,
//! 3 timeout.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use coffer::command;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "coffer", version, about = "Plans, builds, boots and tests Cofferdam")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Plan(command::PlanArgs),
    Build(command::BuildArgs),
    Explain(command::ExplainArgs),
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Plan(args) => command::plan(args).into(),
        Verb::Build(args) => command::build(args).into(),
        Verb::Explain(args) => command::explain(&args).into(),
    }
}
