//! The process that serves: starts its successor, and hands over to it step by step.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::channel::{Channel, Message, Offer};
use super::predecessor::VARIABLE;

/// How long a successor may take to start, and to begin to serve.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that was started to replace this one.
pub(crate) struct Successor {
    child: Child,
    channel: Channel,
}

impl Successor {
    /// Starts the program and sends it the sockets.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub(crate) fn start(
        program: &Path,
        args: &[OsString],
        offer: Offer,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<Self, String> {
        let (own, others) = Channel::pair().map_err(|error| format!("no channel to it: {error}"))?;
        let mut command = Command::new(program);
        // The watchdog's variable holds the id of this process: the successor would send it nothing.
        command.args(args).env(VARIABLE, "1").env_remove("WATCHDOG_PID").stdin(Stdio::from(others));
        let child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        let mut successor = Self { child, channel: Channel::new(own) };
        // Closes this process's descriptor of the other end.
        drop(command);
        // One that has ended already has a better reason.
        match successor.channel.send(&Message::Offer(offer), sockets) {
            Err(error)
                if error.kind() != ErrorKind::BrokenPipe && error.kind() != ErrorKind::ConnectionReset =>
            {
                Err(successor.end(&format!("the sockets cannot be sent: {error}")))
            }
            _ => Ok(successor),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it could start. Until then this process serves.
    ///
    /// # Errors
    /// Why it cannot start, which has ended it.
    pub(crate) fn wait_until_ready(&mut self) -> Result<(), String> {
        self.expect(|message| matches!(message, Message::Ready), "ready")
    }

    /// Lets it take the datagrams without a call, and waits until nothing can fail any more.
    ///
    /// # Errors
    /// Why it does not serve, which has ended it.
    pub(crate) fn let_serve(&mut self) -> Result<(), String> {
        // If it has ended, the next step says so.
        let _ = self.channel.send(&Message::Go, &[]);
        self.expect(|message| matches!(message, Message::Serving), "serving")
    }

    /// Lets it tell the service manager that it is ready, and serve.
    pub(crate) fn release(&self) {
        let _ = self.channel.send(&Message::Go, &[]);
    }

    fn expect(&mut self, is_expected: impl Fn(&Message) -> bool, state: &str) -> Result<(), String> {
        let why = match self.channel.receive(Some(START_TIMEOUT)) {
            Ok((message, _)) if is_expected(&message) => return Ok(()),
            Ok((Message::Failed(why), _)) => why,
            Ok(_) => "it answers with what this version does not know".to_owned(),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                format!("it was not {state} within {} s", START_TIMEOUT.as_secs())
            }
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                let status =
                    self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(format!("it ended before it was {state}: {status}"));
            }
            Err(error) => error.to_string(),
        };
        Err(self.end(&why))
    }

    /// Ends it, since it cannot replace this process.
    fn end(&mut self, why: &str) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        why.to_owned()
    }

    /// Waits until it ends, so that it does not stay behind as a zombie.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}
