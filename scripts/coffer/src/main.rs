// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cofferdam's host tool: which verb was typed. Exit codes: 0 done, 1 refused or failed, 2 usage,
//! 3 timeout.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use coffer::{bench, command, demo, doctor, init, run, symbolize, vm};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "coffer", version, about = "Plans, builds, boots and tests Cofferdam")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Init(init::InitArgs),
    Plan(command::PlanArgs),
    Build(command::BuildArgs),
    Run(run::RunArgs),
    Test(run::TestArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    Symbolize(symbolize::SymbolizeArgs),
    Doctor(doctor::DoctorArgs),
    Schema(command::SchemaArgs),
    Explain(command::ExplainArgs),
    Vm(vm::VmArgs),
    Export(vm::ExportArgs),
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Init(args) => init::init(&args).into(),
        Verb::Plan(args) => command::plan(args).into(),
        Verb::Build(args) => command::build(args).into(),
        Verb::Run(args) => run::finish(run::run(&args)).into(),
        Verb::Test(args) => run::finish(run::test(&args)).into(),
        Verb::Demo(args) => run::finish(demo::demo(&args)).into(),
        Verb::Bench(args) => run::finish(bench::bench(&args)).into(),
        Verb::Symbolize(args) => run::finish(symbolize::symbolize(&args)).into(),
        Verb::Doctor(args) => run::finish(doctor::doctor(&args)).into(),
        Verb::Schema(args) => command::schema(&args).into(),
        Verb::Explain(args) => command::explain(&args).into(),
        Verb::Vm(args) => vm::vm(&args).into(),
        Verb::Export(args) => vm::export(&args).into(),
    }
}
