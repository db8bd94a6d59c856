//! What the frames are that gateways send each other for the rest of the gateway.

/// The kind of a frame. Those below 16 belong to the cluster itself, 24 to 31 to the connection of a device that is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A request of the management API; the id is the sender's.
    Request = 16,
    /// A part of the answer to the request with this id, before the last one.
    AnswerPart = 17,
    /// The rest of the answer to the request with this id.
    Answer = 18,
    /// A message about a call between devices.
    CallMessage = 19,
    /// An Opus packet of such a call.
    CallAudio = 20,
    /// The sender has ended its part of all calls with devices of the receiver that were there before.
    CallsLost = 21,
    /// Operators have denied devices: their MACs.
    Denied = 22,
    /// Operators allow devices again: their MACs.
    Allowed = 23,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        let requests = [Self::Request, Self::AnswerPart, Self::Answer];
        let calls = [Self::CallMessage, Self::CallAudio, Self::CallsLost];
        let all = requests.into_iter().chain(calls).chain([Self::Denied, Self::Allowed]);
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::FIRST_KIND;

    #[test]
    fn the_kinds_are_where_they_belong() {
        let known: Vec<u8> = (0..=u8::MAX).filter(|number| Kind::from_number(*number).is_some()).collect();
        assert_eq!(known, [16, 17, 18, 19, 20, 21, 22, 23]);
        assert!(known.iter().all(|number| (FIRST_KIND..24).contains(number)));
    }
}
