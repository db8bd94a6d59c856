//! Chat servers as separate processes, so that they can be killed and frozen: this program in another role.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mqtt_websocket_proxy::tools::echo::EchoServer;

use crate::context::Context;

/// The option that runs this program as a chat server on an address.
pub(crate) const CHAT_SERVER_OPTION: &str = "--chat-server";

/// Serves until stdin ends, that is, until the parent process does.
pub(crate) fn serve(addr: SocketAddr) -> ExitCode {
    let server = match EchoServer::start_on(addr) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("soak: the chat server cannot listen on {addr}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", server.addr());
    // The parent may have ended already: then stdin has ended too.
    let _ = io::stdout().flush();
    let _ = io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

pub(crate) struct ChatServerProcess {
    addr: SocketAddr,
    child: Child,
}

impl ChatServerProcess {
    pub(crate) fn start() -> io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into())
    }

    fn start_on(addr: SocketAddr) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([CHAT_SERVER_OPTION, &addr.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let addr = line
            .trim()
            .parse()
            .map_err(|_| io::Error::other(format!("the chat server does not start on {addr}")))?;
        Ok(Self { addr, child })
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.addr)
    }

    /// SIGKILL, and after a while a new process on the same port.
    fn kill_and_restart(&mut self, context: &Context, pause: Duration) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        context.sleep(pause);
        *self = Self::start_on(self.addr)?;
        Ok(())
    }

    fn signal(&self, name: &str) -> io::Result<()> {
        Command::new("kill").args([name, &self.child.id().to_string()]).status().map(drop)
    }
}

impl Drop for ChatServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills or freezes one of the two in turn; the other one keeps running.
pub(crate) fn inject_faults(context: &Context, servers: &mut [ChatServerProcess; 2]) -> io::Result<()> {
    let mut rng = context.rng(9_001);
    for round in 0.. {
        context.sleep(rng.ms(8_000, 16_000));
        if context.is_over() {
            break;
        }
        let server = &mut servers[round % 2];
        if round % 5 == 4 {
            server.signal("-STOP")?;
            context.sleep(rng.ms(6_000, 14_000));
            server.signal("-CONT")?;
            context.counters.frozen.fetch_add(1, Relaxed);
        } else {
            server.kill_and_restart(context, rng.ms(100, 4_000))?;
            context.counters.killed.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}
