//! Messages between the two processes of an upgrade: JSON, and the descriptors of sockets (SCM_RIGHTS of unix(7)).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::net::event_loop::inherited::Purpose;
use crate::net::media::steering::Steering;

/// Descriptors in one message; the system allows 253.
const DESCRIPTORS: usize = 64;
/// Bytes of one message.
const MAX_MESSAGE: usize = 64 << 10;

/// What the processes say to each other.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// What the successor gets; the descriptors follow in messages of their own.
    Offer(Offer),
    /// Descriptors, in the order of the offer.
    Descriptors,
    /// From the successor: it could start.
    Ready,
    /// From the process that serves: it accepts no connections any more.
    Go,
    /// From the successor: it accepts connections now.
    Serving,
    /// From the successor: why it cannot start.
    Failed(String),
    /// From the process that serves to an earlier one: report the devices that have a call with you, now and when that changes.
    ReportCalls,
    /// From an earlier process: these devices have a call with it.
    CallsHere(Vec<String>),
    /// From an earlier process: all its workers have reported their devices with a call.
    AllReported,
    /// From an earlier process: this device's call has ended.
    CallEnded(String),
    /// From the process that serves to an earlier one: a new connection of a device that has a call with it, and what was read from
    /// it (base64).
    Connection { ip: IpAddr, port: u16, bytes: String },
}

/// The sockets, in the order of their descriptors: first those of the UDP port by their place, then the listeners, then one channel
/// to each earlier process that has calls.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The configured address of the UDP port.
    pub(crate) udp: SocketAddr,
    /// The successor's steering.
    pub(crate) steering: Steering,
    pub(crate) listeners: Vec<OfferedListener>,
    /// The generations of the earlier processes, the offering one included.
    pub(crate) predecessors: Vec<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OfferedListener {
    pub(crate) worker: usize,
    pub(crate) purpose: Purpose,
    /// The configured address.
    pub(crate) addr: SocketAddr,
}

impl Offer {
    pub(crate) fn descriptors(&self) -> usize {
        self.steering.places() as usize + self.listeners.len() + self.predecessors.len()
    }
}

/// One end of a connection to another process. It keeps the borders of messages.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Both ends of a new channel.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
    }

    pub(crate) fn new(end: OwnedFd) -> Self {
        Self(end)
    }

    /// Sends a message and descriptors.
    ///
    /// # Errors
    /// Those of sendmsg(2); EPIPE when the other process has ended.
    pub(crate) fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut chunks = descriptors.chunks(DESCRIPTORS);
        self.send_bytes(&bytes, chunks.next().unwrap_or_default())?;
        let more = serde_json::to_vec(&Message::Descriptors)?;
        chunks.try_for_each(|chunk| self.send_bytes(&more, chunk))
    }

    /// Sends a message without waiting; for messages with one descriptor at most.
    ///
    /// # Errors
    /// WouldBlock when the other process reads too slowly, and those of sendmsg(2).
    pub(crate) fn try_send(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.send_with(&serde_json::to_vec(message)?, descriptor.as_slice(), flags)
    }

    fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(bytes, descriptors, SendFlags::NOSIGNAL)
    }

    fn send_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)?;
        Ok(())
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// UnexpectedEof when the other process has ended, TimedOut after the timeout, InvalidData for what is no message.
    pub(crate) fn receive(&self, timeout: Option<Duration>) -> io::Result<(Message, Vec<OwnedFd>)> {
        SockRef::from(&self.0).set_read_timeout(timeout)?;
        self.receive_with(RecvFlags::empty()).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
            _ => error,
        })
    }

    /// The next message, without waiting.
    ///
    /// # Errors
    /// WouldBlock when there is none, and those of [`Self::receive`].
    pub(crate) fn try_receive(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        self.receive_with(RecvFlags::DONTWAIT)
    }

    fn receive_with(&self, flags: RecvFlags) -> io::Result<(Message, Vec<OwnedFd>)> {
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if received.bytes == 0 && descriptors.is_empty() {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "it has ended"));
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(ErrorKind::InvalidData, "a message was longer than allowed"));
        }
        Ok((serde_json::from_slice(&bytes[..received.bytes])?, descriptors))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn messages_keep_their_borders_and_carry_any_number_of_descriptors() {
        let (one, other) = Channel::pair().unwrap();
        let (one, other) = (Channel::new(one), Channel::new(other));
        let sockets: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        // More than one message can carry.
        let all: Vec<_> = (0..DESCRIPTORS + 6).map(|n| sockets[n % 3].as_fd()).collect();
        one.send(&Message::Failed("why".to_owned()), &all).unwrap();
        one.send(&Message::Go, &[]).unwrap();
        let (first, mut received) = other.receive(None).unwrap();
        assert!(matches!(first, Message::Failed(why) if why == "why"));
        let (second, rest) = other.receive(None).unwrap();
        assert!(matches!(second, Message::Descriptors));
        received.extend(rest);
        assert!(matches!(other.receive(None).unwrap(), (Message::Go, none) if none.is_empty()));
        let ports = received.into_iter().map(|fd| UdpSocket::from(fd).local_addr().unwrap());
        let expected = (0..DESCRIPTORS + 6).map(|n| sockets[n % 3].local_addr().unwrap());
        assert!(ports.eq(expected));
    }

    #[test]
    fn silence_the_end_of_the_other_process_and_nonsense_are_told_apart() {
        let (one, other) = Channel::pair().unwrap();
        let (one, other) = (Channel::new(one), Channel::new(other));
        let timeout = Some(Duration::from_millis(1));
        assert_eq!(other.receive(timeout).unwrap_err().kind(), ErrorKind::TimedOut);
        one.send_bytes(b"nonsense", &[]).unwrap();
        assert!(other.receive(timeout).unwrap_err().to_string().contains("expected"));
        drop(one);
        assert_eq!(other.receive(timeout).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(other.send(&Message::Ready, &[]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
