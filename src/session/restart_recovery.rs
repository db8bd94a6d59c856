//! Devices that are still in a call of an earlier process of the gateway, which ended without a word to them.
//!
//! Firmware up to 2.4 stays in such a call until its user presses the button: a device that listens sends audio with an ssrc that
//! nobody knows, one that speaks is silent. `tts stop` makes the latter say `listen start` with its old session id, which is
//! answered with a goodbye with that id; the former needs `tts start` first. Neither message has a session id, since the old one is
//! not known, and firmware that reads it has left its call with the connection.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::proto::audio::{UPLINK_FLAGS, UdpHeader};
use crate::proto::identity::Mac;

/// A device that says and sends nothing for so long after CONNECT may be speaking.
const SILENCE: Duration = Duration::from_secs(2);
/// So many datagrams with one unknown ssrc, over at least this time, come from a device that listens.
const DATAGRAMS: u8 = 8;
const DATAGRAMS_SPAN: Duration = Duration::from_millis(400);
/// The unknown ssrcs that are counted for each address.
const SSRCS_PER_ADDRESS: usize = 4;

/// Finds these devices, in the first minute of the gateway.
pub struct RestartRecovery {
    ends_at: Instant,
    /// By the address of a device that has connected.
    addresses: HashMap<IpAddr, Address>,
    /// When the silence of each device has lasted long enough, in milliseconds since the start, rounded up. Oldest first.
    silent_at: VecDeque<(u32, Mac)>,
    /// The ssrcs of this process.
    issued: HashSet<u32>,
    /// Devices that were told to stop.
    told: HashSet<Mac>,
}

#[derive(Default)]
struct Address {
    /// Some may be here more than once.
    devices: Vec<Mac>,
    last_datagram: Option<Instant>,
    unknown: Vec<UnknownSsrc>,
}

struct UnknownSsrc {
    ssrc: u32,
    first_at: Instant,
    datagrams: u8,
}

impl RestartRecovery {
    /// For how long after the start devices of an earlier process are looked for.
    pub const WINDOW: Duration = Duration::from_secs(60);

    /// The gateway has started.
    pub fn new(now: Instant) -> Self {
        Self {
            ends_at: now + Self::WINDOW,
            addresses: HashMap::new(),
            silent_at: VecDeque::new(),
            issued: HashSet::new(),
            told: HashSet::new(),
        }
    }

    /// Another gateway has ended, whose devices connect to this one.
    pub fn extend(&mut self, now: Instant) {
        self.ends_at = now + Self::WINDOW;
    }

    /// Whether all is done, and this can be dropped.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.ends_at && self.silent_at.is_empty()
    }

    /// A call got this ssrc.
    pub fn on_call(&mut self, ssrc: u32) {
        self.issued.insert(ssrc);
    }

    /// A device has logged in. Returns when to call [`take_silent`](Self::take_silent), unless that is known already.
    pub fn on_connected(&mut self, ip: IpAddr, mac: Mac, now: Instant) -> Option<Instant> {
        if now >= self.ends_at {
            return None;
        }
        // Not compared with those that are there: there may be thousands.
        self.addresses.entry(ip).or_default().devices.push(mac);
        let at = (now + SILENCE).saturating_duration_since(self.start()) + Duration::from_nanos(999_999);
        self.silent_at.push_back((at.as_millis() as u32, mac));
        self.next_silent_at().filter(|_| self.silent_at.len() == 1)
    }

    /// When to call [`take_silent`](Self::take_silent).
    pub fn next_silent_at(&self) -> Option<Instant> {
        self.silent_at.front().map(|(at, _)| self.start() + Duration::from_millis(u64::from(*at)))
    }

    fn start(&self) -> Instant {
        self.ends_at - Self::WINDOW
    }

    /// A datagram with the ssrc of no call. Returns the device that is to get `tts start` and `tts stop`. `is_idle`: this device is
    /// connected from this address, without a call.
    pub fn on_unknown_datagram(
        &mut self,
        ip: IpAddr,
        datagram: &[u8],
        now: Instant,
        is_idle: impl Fn(Mac) -> bool,
    ) -> Option<Mac> {
        let header = UdpHeader::parse(datagram).ok().filter(|header| header.flags == UPLINK_FLAGS)?;
        let address = self.addresses.get_mut(&ip).filter(|_| now < self.ends_at)?;
        address.last_datagram = Some(now);
        if self.issued.contains(&header.ssrc) {
            return None;
        }
        let known = address.unknown.iter().position(|unknown| unknown.ssrc == header.ssrc);
        let index = known.unwrap_or(address.unknown.len());
        if index < SSRCS_PER_ADDRESS && known.is_none() {
            address.unknown.push(UnknownSsrc { ssrc: header.ssrc, first_at: now, datagrams: 0 });
        }
        let unknown = address.unknown.get_mut(index)?;
        unknown.datagrams = unknown.datagrams.saturating_add(1);
        if unknown.datagrams < DATAGRAMS || now.saturating_duration_since(unknown.first_at) < DATAGRAMS_SPAN {
            return None;
        }
        // If it is not clear whose they are, as many more are waited for.
        (unknown.datagrams, unknown.first_at) = (0, now);
        let mut idle = address.devices.iter().copied().filter(|mac| is_idle(*mac));
        let only = idle.next()?;
        (idle.all(|mac| mac == only) && self.told.insert(only)).then_some(only)
    }

    /// The next device, with its address, that has been connected for 2 s and is to get `tts stop`. `silent`: its address if it is
    /// connected, has no call, and has sent nothing but MCP since it connected, at that time or before.
    pub fn take_silent(
        &mut self,
        now: Instant,
        silent: impl Fn(Mac, Instant) -> Option<IpAddr>,
    ) -> Option<(IpAddr, Mac)> {
        while let Some(at) = self.next_silent_at().filter(|at| *at <= now) {
            let (_, mac) = self.silent_at.pop_front()?;
            let connected_at = at - SILENCE;
            let Some(ip) = silent(mac, connected_at) else { continue };
            let last = self.addresses.get(&ip).and_then(|address| address.last_datagram);
            if last.is_none_or(|last| last < connected_at) && self.told.insert(mac) {
                return Some((ip, mac));
            }
        }
        if self.silent_at.is_empty() {
            // Of thousands that came at once, nothing is kept.
            self.silent_at = VecDeque::new();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::audio;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn mac(n: u8) -> Mac {
        format!("02:00:00:00:00:{n:02x}").parse().unwrap()
    }

    fn datagram(ssrc: u32) -> Vec<u8> {
        let header = UdpHeader { flags: 0, payload_len: 3, ssrc, timestamp: 0, sequence: 1 };
        [&header.to_bytes()[..], b"abc"].concat()
    }

    /// A gateway that has just started, and the time.
    struct Start {
        recovery: RestartRecovery,
        now: Instant,
        /// Idle devices at [`IP`].
        idle: Vec<Mac>,
    }

    impl Start {
        fn with_devices(devices: &[u8]) -> Self {
            let now = Instant::now();
            let mut start = Self { recovery: RestartRecovery::new(now), now, idle: Vec::new() };
            for device in devices {
                start.recovery.on_connected(IP, mac(*device), now);
                start.idle.push(mac(*device));
            }
            start
        }

        /// So many datagrams 60 ms apart: the devices that are told.
        fn datagrams(&mut self, ip: IpAddr, count: u32, bytes: &[u8]) -> Vec<Mac> {
            let mut told = Vec::new();
            for _ in 0..count {
                let is_idle = |mac| self.idle.contains(&mac);
                told.extend(self.recovery.on_unknown_datagram(ip, bytes, self.now, is_idle));
                self.now += MS(60);
            }
            told
        }

        fn silent(&mut self) -> Vec<Mac> {
            let mut told = Vec::new();
            while let Some((ip, mac)) =
                self.recovery.take_silent(self.now, |mac, _| self.idle.contains(&mac).then_some(IP))
            {
                assert_eq!(ip, IP);
                told.push(mac);
            }
            told
        }
    }

    #[test]
    fn the_one_idle_device_at_an_address_that_sends_unknown_audio_is_told_once() {
        let mut start = Start::with_devices(&[1]);
        assert_eq!(start.datagrams(IP, 7, &datagram(5)), []);
        assert_eq!(start.datagrams(IP, 1, &datagram(5)), [mac(1)]);
        assert_eq!(start.datagrams(IP, 40, &datagram(5)), []);
        assert_eq!(start.datagrams(IP, 40, &datagram(6)), []);
        start.now += SILENCE;
        assert_eq!(start.silent(), [], "never both");
    }

    #[test]
    fn the_datagrams_last_at_least_400_ms() {
        let mut start = Start::with_devices(&[1]);
        for _ in 0..50 {
            assert_eq!(start.recovery.on_unknown_datagram(IP, &datagram(5), start.now, |_| true), None);
        }
        start.now += MS(399);
        assert_eq!(start.recovery.on_unknown_datagram(IP, &datagram(5), start.now, |_| true), None);
        start.now += MS(1);
        assert_eq!(start.recovery.on_unknown_datagram(IP, &datagram(5), start.now, |_| true), Some(mac(1)));
    }

    #[test]
    fn nobody_is_told_when_it_is_not_clear_whose_audio_it_is() {
        let mut start = Start::with_devices(&[1, 2]);
        assert_eq!(start.datagrams(IP, 8, &datagram(5)), []);
        // One of them has a call now.
        start.idle.pop();
        assert_eq!(start.datagrams(IP, 7, &datagram(5)), []);
        assert_eq!(start.datagrams(IP, 1, &datagram(5)), [mac(1)]);
        // It is idle again, and the other one is too.
        start.idle.push(mac(2));
        assert_eq!(start.datagrams(IP, 40, &datagram(6)), []);

        let mut start = Start::with_devices(&[1]);
        start.idle.clear();
        assert_eq!(start.datagrams(IP, 40, &datagram(5)), []);
    }

    #[test]
    fn datagrams_that_no_device_of_an_earlier_process_sends_do_not_count() {
        let mut start = Start::with_devices(&[1]);
        start.recovery.on_call(5);
        assert_eq!(start.datagrams(IP, 40, &datagram(5)), [], "of a call of this process");
        assert_eq!(start.datagrams(OTHER_IP, 40, &datagram(6)), [], "of another address");
        assert!(start.recovery.addresses.len() == 1, "which is not kept");
        let mut flags = datagram(6);
        flags[1] = 1;
        let long = [&datagram(6)[..], b"x"].concat();
        for bytes in [&flags[..], &long, &datagram(6)[..audio::HEADER_LEN], &[2; 40], &[]] {
            assert_eq!(start.datagrams(IP, 40, bytes), [], "{bytes:?}");
        }
        for ssrc in 100..1_000 {
            assert_eq!(start.datagrams(IP, 1, &datagram(ssrc)), []);
        }
        assert_eq!(start.recovery.addresses[&IP].unknown.len(), SSRCS_PER_ADDRESS);
    }

    #[test]
    fn a_silent_device_is_told_once_after_two_seconds() {
        let mut start = Start::with_devices(&[1, 2]);
        start.idle.pop();
        start.now += SILENCE - MS(1);
        assert_eq!(start.silent(), []);
        start.now += MS(1);
        assert_eq!(start.silent(), [mac(1)], "the other one has a call, or has said something");
        assert_eq!(start.recovery.on_connected(IP, mac(1), start.now), Some(start.now + SILENCE));
        start.now += SILENCE;
        assert_eq!(start.silent(), []);
        assert_eq!(start.datagrams(IP, 40, &datagram(5)), [], "never both");
    }

    #[test]
    fn a_device_at_whose_address_audio_comes_from_is_not_silent() {
        let mut start = Start::with_devices(&[1, 2]);
        start.datagrams(IP, 1, &datagram(5));
        start.now += SILENCE;
        assert_eq!(start.silent(), []);
        // A later one, after the audio.
        start.idle.push(mac(3));
        start.recovery.on_connected(IP, mac(3), start.now);
        start.now += SILENCE;
        assert_eq!(start.silent(), [mac(3)]);
    }

    #[test]
    fn nothing_is_done_after_the_first_minute() {
        let mut start = Start::with_devices(&[1]);
        assert!(!start.recovery.is_over(start.now));
        start.now = start.recovery.ends_at;
        assert!(!start.recovery.is_over(start.now), "a device waits to be judged");
        assert_eq!(start.datagrams(IP, 40, &datagram(5)), []);
        assert_eq!(start.recovery.on_connected(IP, mac(2), start.now), None);
        assert_eq!(start.silent(), [mac(1)]);
        assert!(start.recovery.is_over(start.now));
    }
}
