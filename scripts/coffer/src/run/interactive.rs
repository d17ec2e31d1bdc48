// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A person at the machine's serial line.
#![forbid(unsafe_code)]

use crate::command::Exit;
use crate::qemu::{Heard, Running};
use crate::terminal::{HELP, Keys, RawMode, Typed, without_marks};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io::{self, Read, Write};
use std::process::{ChildStdin, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long a request to quit can go unnoticed.
const TICK: Duration = Duration::from_millis(100);

/// Starts `command` with this terminal as its serial line and returns when it ends, when the person
/// quits, or when this process is told to; the terminal is then as it was.
///
/// # Errors
/// What starting the machine, or the terminal, failed with.
pub fn run(command: Command) -> io::Result<Exit> {
    let quit = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&quit))?;
    }
    let raw = RawMode::enter()?;
    if raw.is_some() {
        println!("{HELP}");
    }
    let mut running = Running::start(command)?;
    if let Some(input) = running.take_input() {
        let quit = Arc::clone(&quit);
        // It ends with the process: nothing wakes a read of the keyboard.
        thread::spawn(move || type_keys(input, &quit));
    }
    let (verdict, complaint) = listen(&mut running, &quit)?;
    if raw.is_some() {
        // Where the cursor is only the machine knows.
        println!();
    }
    drop(raw);
    eprint!("{complaint}");
    Ok(verdict)
}

fn listen(running: &mut Running, quit: &AtomicBool) -> io::Result<(Exit, String)> {
    let mut screen = io::stdout().lock();
    while !quit.load(Ordering::Relaxed) {
        match running.hear(TICK)? {
            Heard::Output(bytes) => {
                screen.write_all(&without_marks(&bytes))?;
                screen.flush()?;
            }
            Heard::Ended(status, errors) => {
                // A machine that loses its keyboard because the person quits may complain.
                let is_fine = status.success() || quit.load(Ordering::Relaxed);
                let verdict = if is_fine { Exit::Done } else { Exit::Failed };
                return Ok((verdict, errors));
            }
            Heard::Silence => {}
        }
    }
    Ok((Exit::Done, String::new()))
}

fn type_keys(mut input: ChildStdin, quit: &AtomicBool) {
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    loop {
        let count = match io::stdin().read(&mut buffer) {
            // Without a keyboard the machine runs on.
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        match keys.feed(&buffer[..count]) {
            Typed::Quit => return quit.store(true, Ordering::Relaxed),
            Typed::Bytes(bytes) => {
                if input.write_all(&bytes).and_then(|()| input.flush()).is_err() {
                    return;
                }
            }
        }
    }
}
