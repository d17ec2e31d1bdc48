// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The verbs `plan`, `build`, `schema` and `explain`: arguments in, text and exit code out.
#![forbid(unsafe_code)]

use crate::board::{Board, Overrides};
use crate::build::{self, Options};
use crate::closure::Closure;
use crate::explain::Code;
use crate::manifest::{Manifest, schema};
use crate::message::{JsonMessage, Report, Style, nearest, quote};
use clap::Args;
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// How the tool ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Refused or failed.
    Failed = 1,
    /// Called in a way that there is not.
    Usage = 2,
    /// Stopped because it took too long.
    Timeout = 3,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Shows what follows from a manifest, or why it cannot work.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// The manifest.
    manifest: PathBuf,
    /// Write JSON (format 1).
    #[arg(long)]
    json: bool,
    /// Plan for this device tree instead of the board's own.
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
    /// Say what the board's tree has of this node instead: a path, `&label` or alias.
    #[arg(long, value_name = "NODE", conflicts_with = "json")]
    explain: Option<String>,
}

/// Writes cofferdam.img and bundle.itb.
#[derive(Args, Debug)]
pub struct BuildArgs {
    /// The manifest.
    manifest: PathBuf,
    /// The directory for the files (default: one under target/coffer).
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write JSON (format 1).
    #[arg(long)]
    json: bool,
    /// Plan for this device tree instead of the board's own.
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
    /// Take this ELF file instead of building the hypervisor.
    #[arg(long, value_name = "ELF")]
    hypervisor: Option<PathBuf>,
}

/// Prints what a manifest may say: its JSON schema.
#[derive(Args, Debug)]
pub struct SchemaArgs {
    /// Print the page for people instead.
    #[arg(long)]
    page: bool,
}

/// Explains an error code.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The code, as E21.
    code: String,
}

/// Carries out `coffer plan`.
#[must_use]
pub fn plan(args: PlanArgs) -> Exit {
    let overrides = Overrides { tree: args.dtb, ..Overrides::default() };
    if let Some(name) = &args.explain {
        return explain_node(&args.manifest, &overrides, name);
    }
    let options = Options { overrides, ..Options::default() };
    match build::plan(&args.manifest, &options) {
        Ok((board, planned)) if args.json => print_json(&planned.to_json(&board)),
        Ok((board, planned)) => {
            print!("{}", planned.to_text(&board));
            print_report(&planned.warnings);
            Exit::Done
        }
        Err(report) => refuse(&report, args.json),
    }
}

/// Says what the tree of a manifest's board has of a node.
fn explain_node(manifest: &Path, overrides: &Overrides, name: &str) -> Exit {
    let board = Manifest::load(manifest).and_then(|manifest| Board::load(&manifest, overrides));
    let board = match board {
        Ok(board) => board,
        Err(report) => return refuse(&report, false),
    };
    let label = name.strip_prefix('&').unwrap_or(name);
    let Some(node) = board.tree.resolve(label) else {
        let near = nearest(label, board.tree.labels());
        let near = near.map_or_else(String::new, |near| format!(", but `&{near}`"));
        eprintln!("the board has no node {}{near}", quote(name));
        return Exit::Failed;
    };
    print!("{}", Closure::read(&board.tree).describe(node, &board.hints));
    Exit::Done
}

/// Carries out `coffer build`.
#[must_use]
pub fn build(args: BuildArgs) -> Exit {
    let overrides = Overrides { tree: args.dtb, ..Overrides::default() };
    let BuildArgs { out, hypervisor, .. } = args;
    let options = Options { overrides, out, hypervisor, ..Options::default() };
    match build::build(&args.manifest, &options) {
        Ok(built) if args.json => print_json(&JsonBuilt {
            format: 1,
            image: &built.image,
            bundle: &built.bundle,
            elf: &built.elf,
            warnings: built.warnings.to_json(),
        }),
        Ok(built) => {
            print_report(&built.warnings);
            println!("{}\n{}", built.image.display(), built.bundle.display());
            Exit::Done
        }
        Err(report) => refuse(&report, args.json),
    }
}

/// Carries out `coffer explain`.
#[must_use]
pub fn explain(args: &ExplainArgs) -> Exit {
    match Code::find(&args.code) {
        Some(code) => {
            print!("{}", code.page());
            Exit::Done
        }
        None => {
            let codes: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
            eprintln!("there is no code {}: the codes are {}", quote(&args.code), codes.join(" "));
            Exit::Usage
        }
    }
}

/// Carries out `coffer schema`.
#[must_use]
pub fn schema(args: &SchemaArgs) -> Exit {
    let text = if args.page { Ok(schema::page()) } else { schema::json() };
    match text {
        Ok(text) => {
            print!("{text}");
            Exit::Done
        }
        Err(error) => {
            eprintln!("{error}");
            Exit::Failed
        }
    }
}

/// Prints why something is refused.
#[must_use]
pub fn refuse(report: &Report, json: bool) -> Exit {
    if json {
        let _ = print_json(&JsonRefused { format: 1, errors: report.to_json() });
    } else {
        print_report(report);
    }
    Exit::Failed
}

/// Prints messages to standard error, in colour where somebody looks.
pub fn print_report(report: &Report) {
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    eprint!("{}", report.render(if coloured { Style::Coloured } else { Style::Plain }));
}

fn print_json(value: &impl Serialize) -> Exit {
    match serde_json::to_string_pretty(value) {
        Ok(text) => {
            println!("{text}");
            Exit::Done
        }
        Err(error) => {
            eprintln!("{error}");
            Exit::Failed
        }
    }
}

#[derive(Serialize)]
struct JsonRefused<'a> {
    format: u32,
    errors: Vec<JsonMessage<'a>>,
}

#[derive(Serialize)]
struct JsonBuilt<'a> {
    format: u32,
    image: &'a PathBuf,
    bundle: &'a PathBuf,
    elf: &'a PathBuf,
    warnings: Vec<JsonMessage<'a>>,
}
