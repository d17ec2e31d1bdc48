// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A client of the control protocol (docs/control.md): a request, and its whole reply.
//!
//! What is lost or damaged on the way is asked for again, with the same number, so that nothing is
//! done twice. It does not know what requests mean.
#![forbid(unsafe_code)]

use super::port::Port;
use cofferdam::control::{Direction, Frame, MARK, Seq, Taken, VERSION, crc32c, open};
use std::io;
use std::time::{Duration, Instant};

/// How long a silence is that makes a client ask again.
const SILENCE: Duration = Duration::from_secs(1);
/// How often a request is sent that does not arrive whole.
const DAMAGED_MAX: u32 = 5;
/// The most rows of a reply.
const ROWS_MAX: usize = 1 << 20;

/// A row of a reply: keys and values, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row(pub Vec<(String, String)>);

impl Row {
    /// Returns the value of a key; empty where there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(own, _)| own == key).map_or("", |(_, value)| value)
    }

    fn parse(fields: &str) -> Self {
        let fields = fields.split(' ').filter_map(|field| field.split_once('='));
        Self(fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }
}

/// Why there is no reply, or not the one that was wanted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The line is gone.
    #[error("the line to the machine is gone: {0}")]
    Line(#[from] io::Error),
    /// Nothing whole has come in time.
    #[error("no answer in {} s: is this the machine's port for requests?", .0.as_secs())]
    Silent(Duration),
    /// The hypervisor refuses.
    #[error("{text}")]
    Refused {
        /// The code of the error.
        code: String,
        /// The sentence.
        text: String,
    },
    /// The reply is not one that this client understands.
    #[error("the hypervisor answers what this coffer does not understand: {0}")]
    Strange(String),
}

impl ClientError {
    /// Returns the code in JSON: the hypervisor's own where it has refused.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Line(_) => "line",
            Self::Silent(_) => "timeout",
            Self::Refused { code, .. } => code,
            Self::Strange(_) => "strange",
        }
    }
}

/// What a line of a reply says.
enum Said {
    Row(usize, Row),
    Ok(usize),
    Error(String, String),
    Strange(String),
}

/// One side of the conversation.
#[derive(Debug)]
pub struct Client<P> {
    port: P,
    frame: Frame,
    next_seq: u32,
    /// How long a silence is that makes it ask again.
    silence: Duration,
    /// Bytes that were received and not looked at.
    pending: std::collections::VecDeque<u8>,
}

impl<P: Port> Client<P> {
    /// Makes a client whose first request has this number: a random one, since another client may
    /// have been here before.
    pub fn new(port: P, first_seq: u32) -> Self {
        Self {
            port,
            frame: Frame::default(),
            next_seq: first_seq,
            silence: SILENCE,
            pending: Default::default(),
        }
    }

    /// Returns the line itself.
    pub fn port(&mut self) -> &mut P {
        &mut self.port
    }

    /// Asks and returns the rows of the reply.
    ///
    /// # Errors
    /// Says why there are none.
    pub fn ask(&mut self, request: &str, patience: Duration) -> Result<Vec<Row>, ClientError> {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        let text = format!("C{VERSION} {seq} {request}");
        let crc = crc32c(text.as_bytes());
        let line = [&[MARK], format!("{text}*{crc:08x}\n").as_bytes()].concat();
        let deadline = Instant::now() + patience;
        let mut damaged = 0;
        while Instant::now() < deadline {
            self.port.send(&line)?;
            match self.reply(seq, deadline)? {
                Reply::Whole(rows) => return Ok(rows),
                Reply::Lost => {}
                Reply::Damaged(refusal) => {
                    damaged += 1;
                    if damaged == DAMAGED_MAX {
                        return Err(refusal);
                    }
                }
            }
        }
        Err(ClientError::Silent(patience))
    }

    /// Waits for the whole reply.
    fn reply(&mut self, seq: u32, deadline: Instant) -> Result<Reply, ClientError> {
        let mut rows: Vec<Row> = Vec::new();
        let mut heard_at = Instant::now();
        let mut damaged = None;
        loop {
            let now = Instant::now();
            if now >= deadline || now.duration_since(heard_at) >= self.silence {
                return Ok(Reply::Lost);
            }
            let Some((own, said)) = self.next_line(seq)? else {
                match damaged {
                    Some(refusal) => return Ok(Reply::Damaged(refusal)),
                    None => continue,
                }
            };
            heard_at = now;
            match (own, said) {
                // It may have been something before this request that did not arrive, and more of
                // that kind may come: what comes last counts.
                (None, Said::Error(code, text)) => {
                    damaged = Some(ClientError::Refused { code, text });
                }
                (None, _) => return Ok(Reply::Lost),
                (_, Said::Row(0, row)) => rows = vec![row],
                (_, Said::Row(n, row)) if n == rows.len() && n < ROWS_MAX => rows.push(row),
                (_, Said::Ok(count)) if count == rows.len() => return Ok(Reply::Whole(rows)),
                (_, Said::Row(..) | Said::Ok(_)) => return Ok(Reply::Lost),
                (_, Said::Error(code, text)) => return Err(ClientError::Refused { code, text }),
                (_, Said::Strange(body)) => return Err(ClientError::Strange(body)),
            }
        }
    }

    /// Returns the next line that is about this request, or about one that did not read, if one comes
    /// soon. Others are of earlier requests, of the log, or damaged.
    fn next_line(&mut self, seq: u32) -> Result<Option<(Seq, Said)>, ClientError> {
        if self.pending.is_empty() {
            self.pending.extend(self.port.receive()?);
        }
        while let Some(byte) = self.pending.pop_front() {
            if self.frame.take(byte) != Taken::End {
                continue;
            }
            let opened = self.frame.line().and_then(|line| open(Direction::Reply, line));
            if let Ok((own, body)) = opened
                && own.is_none_or(|own| own == seq)
            {
                return Ok(Some((own, parse(body))));
            }
        }
        Ok(None)
    }
}

/// What came of waiting for a reply.
enum Reply {
    /// All of it.
    Whole(Vec<Row>),
    /// Not all of it.
    Lost,
    /// The word that the request has not arrived whole.
    Damaged(ClientError),
}

/// Reads the body of a line.
fn parse(body: &str) -> Said {
    let (verb, rest) = body.split_once(' ').unwrap_or((body, ""));
    let said = match verb {
        "row" => {
            let (number, fields) = rest.split_once(' ').unwrap_or((rest, ""));
            number.parse().ok().map(|number| Said::Row(number, Row::parse(fields)))
        }
        "ok" => Row::parse(rest).get("rows").parse().ok().map(Said::Ok),
        "error" => {
            let (fields, text) = rest.split_once(" text=").unwrap_or((rest, ""));
            Some(Said::Error(Row::parse(fields).get("code").to_owned(), text.to_owned()))
        }
        _ => None,
    };
    said.unwrap_or_else(|| Said::Strange(body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofferdam::control::{self, Executor, Refusal, Request, Rows, Session};
    use std::cell::RefCell;
    use std::fmt::Write;
    use std::rc::Rc;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Two VMs, and what was done.
    #[derive(Default)]
    struct Machine(RefCell<Vec<String>>);

    impl Executor for Machine {
        fn carry_out(&self, request: Request<'_>) -> Result<Rows, Refusal> {
            match request {
                Request::List => return Ok(Rows::Vms(0)),
                Request::Hello
                | Request::Audit
                | Request::Stats { .. }
                | Request::Crash { .. }
                | Request::Read { .. }
                | Request::Upload { .. }
                | Request::Put { .. }
                | Request::Uploaded => return Ok(Rows::None),
                Request::Change { vm: "a" | "b", .. } => {}
                Request::Change { .. } => return Err(Refusal::NoVm),
            }
            self.0.borrow_mut().push(request.to_string());
            Ok(Rows::None)
        }
        fn next_row(&self, rows: &mut Rows, line: &mut control::Line) -> control::Row {
            let Rows::Vms(next @ 0..2) = *rows else { return control::Row::End };
            *rows = Rows::Vms(next + 1);
            write!(line, " name={} state=off", char::from(b'a' + next)).unwrap();
            control::Row::Written
        }
    }

    /// A line that changes what goes over it.
    struct Wire {
        session: Session,
        machine: Rc<Machine>,
        /// Sees each line, by its place among all, with its direction; returns what arrives.
        noise: Box<dyn FnMut(usize, Direction, Vec<u8>) -> Vec<u8>>,
        lines: usize,
        back: Vec<u8>,
    }

    impl Port for Wire {
        fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
            let bytes = (self.noise)(self.lines, Direction::Request, bytes.to_vec());
            self.lines += 1;
            for byte in bytes {
                self.session.take(byte, &*self.machine);
                // Taken out as they come, as on a line that is fast enough.
                let mut line = control::Line::default();
                while self.session.next_line(&mut line, &*self.machine) == control::Row::Written {
                    let bytes = format!("\x1e{}\r\n", line.as_str()).into_bytes();
                    self.back.extend((self.noise)(self.lines, Direction::Reply, bytes));
                    self.lines += 1;
                }
            }
            Ok(())
        }
        fn receive(&mut self) -> io::Result<Vec<u8>> {
            if self.back.is_empty() {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(std::mem::take(&mut self.back))
        }
    }

    fn client_of(
        noise: impl FnMut(usize, Direction, Vec<u8>) -> Vec<u8> + 'static,
    ) -> (Client<Wire>, Rc<Machine>) {
        let machine = Rc::new(Machine::default());
        let (session, machine_too) = (Session::default(), Rc::clone(&machine));
        let noise = Box::new(noise);
        let wire = Wire { session, machine: machine_too, noise, lines: 0, back: Vec::new() };
        let mut client = Client::new(wire, u32::MAX);
        client.silence = Duration::from_millis(100);
        (client, machine)
    }

    #[test]
    fn rows_arrive_between_other_lines() {
        let (mut client, _) = client_of(|_, direction, line| match direction {
            Direction::Request => line,
            Direction::Reply => [b"a| # \r\n\x1e[vm] a off\r\n", &line[..]].concat(),
        });
        for _ in 0..3 {
            let rows = client.ask("list", PATIENCE).unwrap();
            let names: Vec<_> = rows.iter().map(|row| row.get("name")).collect();
            assert_eq!(names, ["a", "b"]);
            assert_eq!(rows[0].get("none"), "");
        }
    }

    /// Whatever line is lost, cut, damaged or doubled: the reply is whole, and nothing is done twice.
    #[test]
    fn one_bad_line_is_asked_for_again() {
        type Noise = fn(Vec<u8>) -> Vec<u8>;
        let noises: [Noise; 5] = [
            |_| Vec::new(),
            |line| line[..line.len() / 2].to_vec(),
            |mut line| {
                line[5] ^= 0x04;
                line
            },
            |line| [&line[..], &line].concat(),
            |line| [&line[..7], b"\n", &line[7..]].concat(),
        ];
        for (n, noise) in noises.into_iter().enumerate() {
            for bad in 0..4 {
                let (mut client, machine) =
                    client_of(move |place, _, line| if place == bad { noise(line) } else { line });
                let rows = client.ask("list", PATIENCE).unwrap();
                assert_eq!(rows.len(), 2, "noise {n} in line {bad}");
                client.ask("kill a", PATIENCE).unwrap();
                assert_eq!(*machine.0.borrow(), ["kill a"], "noise {n} in line {bad}");
                let (mut client, machine) =
                    client_of(move |place, _, line| if place == bad { noise(line) } else { line });
                client.ask("kill a", PATIENCE).unwrap();
                client.ask("kill a", PATIENCE).unwrap();
                assert_eq!(*machine.0.borrow(), ["kill a", "kill a"], "noise {n} in line {bad}");
            }
        }
    }

    #[test]
    fn refusals_are_the_hypervisors_words() {
        let (mut client, _) = client_of(|_, _, line| line);
        let error = client.ask("start c", PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "no VM of this name: write list");
        assert!(matches!(error, ClientError::Refused { code, .. } if code == "no-vm"));
    }

    #[test]
    fn silence_ends_with_patience() {
        let (mut client, machine) = client_of(|_, _, _| Vec::new());
        let error = client.ask("kill a", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ClientError::Silent(_)), "{error}");
        assert!(machine.0.borrow().is_empty());
    }
}
