// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bytes to a machine that runs: a bundle goes over in pieces, and what is to be done with it is
//! waited for. Knows nothing of what is in it.
#![forbid(unsafe_code)]

use super::client::{Client, ClientError};
use super::port::Port;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cofferdam::control::{PUT_BYTES_MAX, Request};
use crc::{CRC_32_ISCSI, Crc};
use std::thread;
use std::time::{Duration, Instant};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the machine may take for one step: finding memory, checking, making a VM.
const STEP: Duration = Duration::from_secs(300);
/// How often somebody looks who waits.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why a bundle did not arrive, or was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The line, or a request.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The bundle has too many bytes for an offset of 32 bits.
    #[error("the bundle has 4G or more")]
    TooLong,
    /// The machine has looked at the bundle and wants none of it.
    #[error("the machine refuses it: {0}")]
    Refused(String),
    /// Somebody else has begun another upload.
    #[error("somebody else uploads as well; coffer vm list tells what was done")]
    Gone,
    /// The machine does not get any further.
    #[error("the machine is still {state} after {} s", waited.as_secs())]
    Stuck {
        /// What it does.
        state: String,
        /// For how long.
        waited: Duration,
    },
}

impl UploadError {
    /// Returns the code in JSON: the hypervisor's own where it has refused.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Client(error) => error.code(),
            Self::TooLong => "too-large",
            Self::Refused(_) => "refused",
            Self::Gone => "no-upload",
            Self::Stuck { .. } => "timeout",
        }
    }
}

/// Uploads `bytes`; `progress` hears now and then how many have arrived.
///
/// # Errors
/// Says why they have not all arrived.
pub fn upload<P: Port>(
    client: &mut Client<P>,
    bytes: &[u8],
    progress: &mut dyn FnMut(usize),
) -> Result<(), UploadError> {
    let total = u32::try_from(bytes.len()).map_err(|_| UploadError::TooLong)?;
    let crc32c = Crc::<u32>::new(&CRC_32_ISCSI).checksum(bytes);
    ask(client, Request::Upload { bytes: total, crc32c })?;
    wait(client, "reserving", "filling")?;
    put(client, bytes, progress)
}

/// Sends `bytes`, from the first on, to an upload that takes pieces.
///
/// # Errors
/// Says why they have not all arrived.
pub fn put<P: Port>(
    client: &mut Client<P>,
    bytes: &[u8],
    progress: &mut dyn FnMut(usize),
) -> Result<(), UploadError> {
    let total = u32::try_from(bytes.len()).map_err(|_| UploadError::TooLong)?;
    let mut data = String::new();
    for (piece, offset) in bytes.chunks(PUT_BYTES_MAX).zip((0..total).step_by(PUT_BYTES_MAX)) {
        data.clear();
        STANDARD.encode_string(piece, &mut data);
        ask(client, Request::Put { offset, data: &data })?;
        progress(usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(piece.len()));
    }
    Ok(())
}

/// Asks for what is to be done with an upload that is complete, and waits until it is done.
///
/// # Errors
/// Says why it is not done.
pub fn carry_out<P: Port>(client: &mut Client<P>, request: Request<'_>) -> Result<(), UploadError> {
    // Nothing of it is left when it is done: it is a VM's then.
    let done = ask(client, request).and_then(|()| wait(client, "checking", "none"));
    match &done {
        // What is looked at just now is somebody else's.
        Err(UploadError::Client(ClientError::Refused { code, .. })) if code == "busy" => {}
        Err(UploadError::Client(ClientError::Refused { .. }) | UploadError::Refused(_)) => {
            // It is still there, for nobody. That it goes is no part of what was asked for.
            let _ = ask(client, Request::Upload { bytes: 0, crc32c: 0 });
        }
        _ => {}
    }
    done
}

fn ask<P: Port>(client: &mut Client<P>, request: Request<'_>) -> Result<(), UploadError> {
    client.ask(&request.to_string(), PATIENCE)?;
    Ok(())
}

/// Waits while an upload is in one state until it is in the other.
fn wait<P: Port>(client: &mut Client<P>, present: &str, awaited: &str) -> Result<(), UploadError> {
    let begun = Instant::now();
    loop {
        let row = client.ask(&Request::Uploaded.to_string(), PATIENCE)?.pop().unwrap_or_default();
        let state = row.get("state");
        if state == awaited {
            return Ok(());
        }
        match state {
            "refused" => return Err(UploadError::Refused(row.get("text").to_owned())),
            state if state != present => return Err(UploadError::Gone),
            state if begun.elapsed() >= STEP => {
                return Err(UploadError::Stuck { state: state.to_owned(), waited: STEP });
            }
            _ => thread::sleep(LOOK_EVERY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::fake::Wire;
    use cofferdam::control::{self, Action, Executor, Refusal, Rows, base64};
    use std::cell::RefCell;
    use std::fmt::Write;
    use std::rc::Rc;

    /// A machine that takes an upload as docs/control.md says, and notes what it was asked.
    #[derive(Default)]
    struct Machine(RefCell<State>);

    #[derive(Default)]
    struct State {
        /// What has come, with each byte's place in it, and the checksum that was told.
        bytes: Vec<Option<u8>>,
        crc32c: u32,
        /// What it says next when it is asked how it stands; the last one stays.
        states: Vec<&'static str>,
        asked: Vec<String>,
    }

    impl Executor for Machine {
        fn carry_out(&self, request: Request<'_>) -> Result<Rows, Refusal> {
            let mut state = self.0.borrow_mut();
            match request {
                Request::Upload { bytes, crc32c } => {
                    state.bytes = vec![None; bytes as usize];
                    state.crc32c = crc32c;
                }
                Request::Put { offset, data } => {
                    let piece = base64::decode(data).unwrap();
                    let places = state.bytes.iter_mut().skip(offset as usize);
                    let put =
                        places.zip(piece.as_bytes()).map(|(place, byte)| *place = Some(*byte));
                    assert_eq!(put.count(), piece.as_bytes().len(), "beyond the end");
                    return Ok(Rows::None);
                }
                Request::Uploaded => return Ok(Rows::Vms(0)),
                Request::Change { vm: "busy", .. } => return Err(Refusal::Busy),
                Request::Change { vm: "none", .. } => return Err(Refusal::NoVm),
                _ => {}
            }
            state.asked.push(request.to_string());
            Ok(Rows::None)
        }

        fn next_row(&self, rows: &mut Rows, line: &mut control::Line) -> control::Row {
            if std::mem::replace(rows, Rows::None) == Rows::None {
                return control::Row::End;
            }
            let states = &mut self.0.borrow_mut().states;
            let state = if states.len() > 1 { states.remove(0) } else { states[0] };
            write!(line, " state={state}").unwrap();
            control::Row::Written
        }
    }

    fn machine(states: &[&'static str]) -> (Client<Wire<Machine>>, Rc<Machine>) {
        let machine = Rc::new(Machine::default());
        machine.0.borrow_mut().states = states.to_vec();
        // The longest number, so that every line has its greatest length.
        (Client::new(Wire::new(&machine, |_, _, line| line), u32::MAX - 1), machine)
    }

    fn create() -> Request<'static> {
        Request::Change { vm: "a", action: Action::Create }
    }

    #[test]
    fn every_byte_arrives_in_its_place() {
        for length in [1, 2, 3, PUT_BYTES_MAX - 1, PUT_BYTES_MAX, PUT_BYTES_MAX + 1, 5000] {
            let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let states = ["reserving bytes=0", "filling", "checking", "none bytes=0"];
            let (mut client, machine) = machine(&states);
            let mut seen = vec![0];
            upload(&mut client, &bytes, &mut |arrived| seen.push(arrived)).unwrap();
            assert!(seen.is_sorted() && seen.last() == Some(&length));
            carry_out(&mut client, create()).unwrap();
            let state = machine.0.borrow();
            assert_eq!(state.bytes, bytes.iter().copied().map(Some).collect::<Vec<_>>());
            assert_eq!(state.crc32c, control::crc32c(&bytes));
            let crc = state.crc32c;
            assert_eq!(state.asked, [format!("upload {length} {crc:08x}"), "create a".to_owned()]);
        }
    }

    #[test]
    fn the_longest_piece_fits_a_request() {
        let data = STANDARD.encode([0xff; PUT_BYTES_MAX]);
        let put = Request::Put { offset: u32::MAX, data: &data };
        let line = format!("\u{1e}C1 {} {put}*01234567\n", u32::MAX);
        assert!(line.len() <= control::REQUEST_BYTES_MAX, "{}", line.len());
    }

    #[test]
    fn a_refusal_is_told_in_the_machines_words() {
        let (mut client, refusing) =
            machine(&["checking", "refused bytes=9 text=core 2 is a's: x=y"]);
        let error = carry_out(&mut client, create()).unwrap_err();
        assert_eq!(error.to_string(), "the machine refuses it: core 2 is a's: x=y");
        let asked = refusing.0.borrow().asked.clone();
        assert_eq!(asked, ["create a", "upload 0 00000000"], "its memory is given back");
        for (vm, given_back) in [("busy", &[][..]), ("none", &["upload 0 00000000"])] {
            let (mut client, refusing) = machine(&["none"]);
            let error = carry_out(&mut client, Request::Change { vm, action: Action::Create });
            assert!(matches!(error, Err(UploadError::Client(ClientError::Refused { .. }))));
            assert_eq!(refusing.0.borrow().asked, given_back, "{vm}");
        }
        let (mut client, machine) = machine(&["reserving", "refused bytes=9 text=no memory"]);
        let error = upload(&mut client, b"x", &mut |_| {}).unwrap_err();
        assert!(matches!(error, UploadError::Refused(text) if text == "no memory"));
        assert_eq!(machine.0.borrow().bytes, [None], "nothing is put where there is no room");
    }

    #[test]
    fn another_upload_is_not_taken_for_the_own_one() {
        for other in ["filling", "reserving"] {
            let (mut client, _) = machine(&["checking", other]);
            let error = carry_out(&mut client, create()).unwrap_err();
            assert!(matches!(error, UploadError::Gone), "{error}");
        }
        let (mut client, _) = machine(&["none"]);
        let error = upload(&mut client, b"x", &mut |_| {}).unwrap_err();
        assert!(matches!(error, UploadError::Gone), "{error}");
    }
}
