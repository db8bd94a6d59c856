//! What was wrong with a call, in one word: the rules stand in one table, of which the first that fits counts.

use std::time::Duration;

use super::end_reasons::EndReason;
use crate::labels::labelled_enum;

/// A device that listens for so long without any audio of it is not heard.
const UNHEARD: Duration = Duration::from_secs(3);
/// Packets that must be expected before their loss says something: 3 s of frames of 60 ms.
const LOSS_MIN_PACKETS: u64 = 50;
/// Loss, in percent, in the whole call and in its worst ten seconds, from which speech recognition suffers.
const LOSS_PERCENT: f32 = 3.0;
const WORST_LOSS_PERCENT: f32 = 10.0;
/// Silence in the middle of the server's speech that a listener notices: one gap, and all of a call.
const LONGEST_GAP: Duration = Duration::from_millis(500);
const ALL_GAPS: Duration = Duration::from_secs(2);
/// How long a user may wait: for the start of the call, and for an answer.
const SLOW_SETUP: Duration = Duration::from_secs(3);
const SLOW_ANSWER: Duration = Duration::from_secs(5);

labelled_enum! {
    /// What was wrong with a call.
    pub enum Verdict {
        /// Nothing that the gateway can see.
        Good => "good",
        /// The device listened for 3 s or more and no audio of it came, or it reported that it gets no UDP packet.
        NoAudio => "no_audio",
        /// Of the device's packets 3 % were lost, or 10 % in the worst ten seconds.
        LossyUplink => "lossy_uplink",
        /// The device had nothing to play in the middle of speech: for half a second at once, or for 2 s in all.
        ServerGaps => "server_gaps",
        /// The call took 3 s to begin, or an answer took 5 s.
        ServerSlow => "server_slow",
        /// No chat server took the call, or it was lost during the call, even if another one took over.
        ServerFailed => "server_failed",
        /// The device disappeared, was in the call no more, or violated the protocol.
        DeviceLost => "device_lost",
        /// A limit of the gateway refused the call.
        Limited => "limited",
    }
}

/// What a verdict goes by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CallFacts {
    /// Why the call ended; none while it goes on.
    pub(super) reason: Option<EndReason>,
    /// The device's connection is lost, or it has not shown since that it is in the call.
    pub(super) is_away: bool,
    /// The time from the device's hello to the reply, or to now without one.
    pub(super) setup: Duration,
    /// Packets of the device that came or should have come.
    pub(super) expected: u64,
    /// How many percent of them were lost.
    pub(super) loss_percent: f32,
    /// The same of the worst ten seconds.
    pub(super) worst_loss_percent: f32,
    /// The longest time for which the device listened without any audio of it.
    pub(super) unheard: Duration,
    /// How often a chat server that had greeted the call failed.
    pub(super) server_losses: u32,
    /// Silence in the middle of the server's speech.
    pub(super) longest_gap: Duration,
    pub(super) all_gaps: Duration,
    /// The longest time from the recognized words of the user to the answer.
    pub(super) slowest_answer: Duration,
}

impl CallFacts {
    fn ended_for(&self, reasons: &[EndReason]) -> bool {
        self.reason.is_some_and(|reason| reasons.contains(&reason))
    }
}

type Rule = (Verdict, fn(&CallFacts) -> bool);

/// In this order: the cause comes before what it brings about.
const RULES: [Rule; 8] = [
    (Verdict::Limited, |call| call.ended_for(&[EndReason::Refused, EndReason::HelloLimit])),
    (Verdict::DeviceLost, |call| {
        use EndReason::{DeviceError, DeviceLost, DeviceNotInCall, NotResumed, PeerLost};
        call.is_away || call.ended_for(&[DeviceLost, NotResumed, DeviceNotInCall, DeviceError, PeerLost])
    }),
    (Verdict::ServerFailed, |call| {
        call.ended_for(&[EndReason::NoServer, EndReason::ServerLost, EndReason::Overflow])
    }),
    (Verdict::NoAudio, |call| call.unheard >= UNHEARD || call.ended_for(&[EndReason::DeviceUdpTimeout])),
    (Verdict::ServerFailed, |call| call.server_losses > 0),
    (Verdict::LossyUplink, |call| {
        let enough = call.expected >= LOSS_MIN_PACKETS;
        enough && (call.loss_percent >= LOSS_PERCENT || call.worst_loss_percent >= WORST_LOSS_PERCENT)
    }),
    (Verdict::ServerGaps, |call| call.longest_gap >= LONGEST_GAP || call.all_gaps >= ALL_GAPS),
    (Verdict::ServerSlow, |call| call.setup >= SLOW_SETUP || call.slowest_answer >= SLOW_ANSWER),
];

impl Verdict {
    pub(super) fn of(call: &CallFacts) -> Self {
        RULES.iter().find(|(_, fits)| fits(call)).map_or(Self::Good, |(verdict, _)| *verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::end_reasons::EndedBy;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn heard() -> CallFacts {
        CallFacts { setup: MS(200), expected: 500, ..CallFacts::default() }
    }

    fn ended(reason: EndReason) -> CallFacts {
        CallFacts { reason: Some(reason), ..heard() }
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        use Verdict::*;
        let nothing = || CallFacts::default();
        for (what, call, verdict) in [
            ("it just began", nothing(), Good),
            ("it goes on", heard(), Good),
            ("a limit", ended(EndReason::Refused), Limited),
            ("too many hellos", ended(EndReason::HelloLimit), Limited),
            ("away now", CallFacts { is_away: true, ..heard() }, DeviceLost),
            ("away at a stop", CallFacts { is_away: true, ..ended(EndReason::Shutdown) }, DeviceLost),
            ("away and unheard", CallFacts { unheard: MS(9000), ..ended(EndReason::DeviceLost) }, DeviceLost),
            ("no server", CallFacts { setup: MS(8500), ..ended(EndReason::NoServer) }, ServerFailed),
            ("not read", ended(EndReason::Overflow), ServerFailed),
            ("2.9 s unheard", CallFacts { unheard: MS(2999), ..heard() }, Good),
            ("3 s unheard", CallFacts { unheard: MS(3000), ..heard() }, NoAudio),
            ("unheard, and then lost", CallFacts { unheard: MS(3000), server_losses: 1, ..heard() }, NoAudio),
            ("gets no UDP", ended(EndReason::DeviceUdpTimeout), NoAudio),
            ("a redial", CallFacts { server_losses: 1, loss_percent: 50.0, ..heard() }, ServerFailed),
            ("2.9 % lost", CallFacts { loss_percent: 2.9, ..heard() }, Good),
            ("3 % lost", CallFacts { loss_percent: 3.0, ..heard() }, LossyUplink),
            ("9.9 % lost at worst", CallFacts { worst_loss_percent: 9.9, ..heard() }, Good),
            ("10 % lost at worst", CallFacts { worst_loss_percent: 10.0, ..heard() }, LossyUplink),
            ("too few to tell", CallFacts { expected: 49, loss_percent: 30.0, ..heard() }, Good),
            ("loss and gaps", CallFacts { loss_percent: 9.0, all_gaps: MS(9000), ..heard() }, LossyUplink),
            ("short gaps", CallFacts { longest_gap: MS(499), all_gaps: MS(1999), ..heard() }, Good),
            ("one long gap", CallFacts { longest_gap: MS(500), ..heard() }, ServerGaps),
            ("many gaps", CallFacts { all_gaps: MS(2000), ..heard() }, ServerGaps),
            ("gaps, and slow", CallFacts { all_gaps: MS(2000), setup: MS(3000), ..heard() }, ServerGaps),
            ("slow to begin", CallFacts { setup: MS(3000), ..heard() }, ServerSlow),
            ("given up by the user", CallFacts { setup: MS(5000), ..ended(EndReason::Replaced) }, ServerSlow),
            ("slow to answer", CallFacts { slowest_answer: MS(5000), ..heard() }, ServerSlow),
            ("4.9 s", CallFacts { slowest_answer: MS(4999), setup: MS(2999), ..heard() }, Good),
        ] {
            assert_eq!(Verdict::of(&call), verdict, "{what}");
        }
    }

    #[test]
    fn every_end_of_a_good_call_has_its_verdict_and_its_author() {
        use EndReason as E;
        use EndedBy::*;
        let expected = |reason| match reason {
            E::DeviceGoodbye | E::DeviceDisconnected | E::Replaced | E::DeviceAbort => {
                (Device, Verdict::Good)
            }
            E::DeviceUdpTimeout => (Device, Verdict::NoAudio),
            E::DeviceLost | E::NotResumed | E::DeviceNotInCall | E::DeviceError => {
                (Device, Verdict::DeviceLost)
            }
            E::ServerClosed => (Server, Verdict::Good),
            E::NoServer | E::ServerLost => (Server, Verdict::ServerFailed),
            E::Overflow => (Gateway, Verdict::ServerFailed),
            E::Refused | E::HelloLimit => (Gateway, Verdict::Limited),
            E::Idle | E::Shutdown | E::Unanswered => (Gateway, Verdict::Good),
            E::PeerLost => (Gateway, Verdict::DeviceLost),
            E::Operator => (Operator, Verdict::Good),
            E::PeerLeft => (OtherDevice, Verdict::Good),
        };
        for reason in EndReason::ALL {
            assert_eq!((reason.ended_by(), Verdict::of(&ended(reason))), expected(reason), "{reason:?}");
        }
    }

    #[test]
    fn every_verdict_but_good_has_a_rule() {
        for verdict in Verdict::ALL {
            assert_eq!(RULES.iter().any(|(of, _)| *of == verdict), verdict != Verdict::Good, "{verdict:?}");
        }
    }
}
