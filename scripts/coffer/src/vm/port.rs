// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The workstation's end of a port for requests: a Unix socket, a pseudo-terminal or a serial
//! device, and how the one of a machine that runs here is found. Knows nothing of the protocol.
#![forbid(unsafe_code)]

use crate::qemu::CONTROL_SOCKET;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::termios::{ControlModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a silence is that [`Port::receive`] tells of.
const TICK: Duration = Duration::from_millis(100);
/// The same for a serial device, in tenths of a second.
const TICK_TENTHS: u8 = 1;

/// A line to a machine.
pub trait Port {
    /// Sends bytes.
    ///
    /// # Errors
    /// The line is gone.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Receives what has come, or waits a moment: nothing is silence.
    ///
    /// # Errors
    /// The line is gone.
    fn receive(&mut self) -> io::Result<Vec<u8>>;
}

/// A line that the system gives.
#[derive(Debug)]
pub enum SystemPort {
    /// What QEMU makes of a serial port.
    Socket(UnixStream),
    /// A serial device, or a pseudo-terminal.
    Device(File),
}

impl SystemPort {
    /// Opens what is at `path`, a serial device at `baud`.
    ///
    /// # Errors
    /// There is nothing, or nothing that is a line.
    pub fn open(path: &Path, baud: u32) -> io::Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        if kind.is_socket() {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(TICK))?;
            return Ok(Self::Socket(socket));
        }
        if !kind.is_char_device() {
            let why = "this is neither a socket nor a serial device";
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        // Without NONBLOCK opening waits for a carrier.
        let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits();
        let flags = i32::try_from(flags).map_err(io::Error::other)?;
        let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        let mut line = tcgetattr(&device)?;
        line.make_raw();
        line.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        line.special_codes[SpecialCodeIndex::VMIN] = 0;
        line.special_codes[SpecialCodeIndex::VTIME] = TICK_TENTHS;
        line.set_speed(baud)?;
        tcsetattr(&device, OptionalActions::Flush, &line)?;
        fcntl_setfl(&device, OFlags::empty())?;
        Ok(Self::Device(device))
    }
}

impl Port for SystemPort {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.write_all(bytes),
            Self::Device(device) => device.write_all(bytes),
        }
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 4096];
        let count = match self {
            Self::Socket(socket) => match socket.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if is_silence(&error) => 0,
                result => result?,
            },
            // Nothing within VTIME is 0 bytes.
            Self::Device(device) => match device.read(&mut buffer) {
                Err(error) if is_silence(&error) => 0,
                result => result?,
            },
        };
        Ok(buffer[..count].to_vec())
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Finds the sockets of the machines that run, in the folders below `folder`.
#[must_use]
pub fn running(folder: &Path) -> Vec<PathBuf> {
    const DEPTH_MAX: u32 = 2;
    let mut found = Vec::new();
    collect(folder, DEPTH_MAX, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    let socket = folder.join(CONTROL_SOCKET);
    // One that nobody listens to was left by a machine that was killed.
    if UnixStream::connect(&socket).is_ok() {
        found.push(socket);
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_sockets_with_a_machine_behind_are_found() {
        let bed = tempfile::tempdir().unwrap();
        let socket = |name: &str| {
            std::fs::create_dir(bed.path().join(name)).unwrap();
            UnixListener::bind(bed.path().join(name).join(CONTROL_SOCKET)).unwrap()
        };
        let live = socket("live");
        drop(socket("left"));
        std::fs::create_dir(bed.path().join("other")).unwrap();
        assert_eq!(running(bed.path()), [bed.path().join("live").join(CONTROL_SOCKET)]);
        drop(live);
        assert!(running(bed.path()).is_empty());
        assert!(running(&bed.path().join("missing")).is_empty());
    }

    #[test]
    fn a_socket_is_a_line_both_ways() {
        let bed = tempfile::tempdir().unwrap();
        let path = bed.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut port = SystemPort::open(&path, 115_200).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        assert_eq!(port.receive().unwrap(), b"", "silence is no error");
        port.send(b"ping").unwrap();
        let mut heard = [0; 4];
        other.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"ping");
        other.write_all(b"pong").unwrap();
        assert_eq!(port.receive().unwrap(), b"pong");
        drop(other);
        assert_eq!(port.receive().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let bed = tempfile::tempdir().unwrap();
        let file = bed.path().join("file");
        std::fs::write(&file, "").unwrap();
        let why = SystemPort::open(&file, 115_200).unwrap_err().to_string();
        assert!(why.contains("neither a socket nor a serial device"), "{why}");
        let why = SystemPort::open(&bed.path().join("none"), 115_200).unwrap_err();
        assert_eq!(why.kind(), ErrorKind::NotFound);
    }
}
