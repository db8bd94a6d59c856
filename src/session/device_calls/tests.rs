//! Scenarios of calls between devices, and a random test with several devices.

use std::collections::{BTreeSet, HashMap};

use super::*;

mod two_places;

fn mac(n: u8) -> Mac {
    Mac::from([2, 0, 0, 0, 0, n])
}

/// Everyone is in a call, except who is listed.
#[derive(Default)]
struct Others(HashMap<Mac, Presence>);

impl LocalDevices for Others {
    fn presence(&self, mac: Mac) -> Presence {
        self.0.get(&mac).copied().unwrap_or(Presence::InCall)
    }

    fn listens_in_realtime(&self, _: Mac) -> bool {
        false
    }
}

struct Scenario {
    calls: DeviceCallTable,
    devices: Others,
    now: Instant,
    /// The effects of the last change, without its answer.
    out: Vec<DeviceCallEffect>,
}

impl Scenario {
    fn new() -> Self {
        Self {
            calls: DeviceCallTable::default(),
            devices: Others::default(),
            now: Instant::now(),
            out: Vec::new(),
        }
    }

    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut DeviceCallTable, &mut DeviceCallContext<'_>) -> T,
    ) -> (T, Option<CallAnswer>) {
        self.out.clear();
        let mut cx = DeviceCallContext { now: self.now, devices: &self.devices, out: &mut self.out };
        let outcome = change(&mut self.calls, &mut cx);
        let mut answers = self.out.extract_if(.., |effect| matches!(effect, DeviceCallEffect::Answer(..)));
        let answer = answers.next();
        assert_eq!(answers.next(), None, "one answer");
        drop(answers);
        match answer {
            Some(DeviceCallEffect::Answer(7, answer)) => (outcome, Some(answer)),
            None => (outcome, None),
            other => panic!("{other:?}"),
        }
    }

    fn request(&mut self, caller: u8, target: u8) -> RequestOutcome {
        let (caller, target) = (mac(caller), mac(target));
        let request = CallRequest { caller, target, place: Place::Here, nickname: "Ann" };
        match self.change(|table, cx| table.request(request, 7, cx)) {
            ((), Some(CallAnswer::Request(outcome))) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self, target: u8) -> AcceptOutcome {
        match self.change(|table, cx| table.accept(mac(target), 7, cx)) {
            ((), Some(CallAnswer::Accept(outcome))) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn left(&mut self, who: u8) -> Vec<DeviceCallEffect> {
        self.change(|table, cx| table.on_call_ended(mac(who), cx));
        self.out.clone()
    }

    fn disconnected(&mut self, who: u8) -> Vec<DeviceCallEffect> {
        self.change(|table, cx| table.on_device_disconnected(mac(who), cx));
        self.out.clone()
    }

    fn hang_up(&mut self, who: u8) -> bool {
        self.change(|table, cx| table.hang_up(mac(who), cx)).0
    }

    fn time_passes(&mut self, until: Instant) -> Vec<DeviceCallEffect> {
        self.now = until;
        self.change(DeviceCallTable::on_timeout);
        self.out.clone()
    }

    /// The effects that connect two devices of this place, in the `number`th call.
    fn connected(caller: u8, target: u8, number: u64) -> [DeviceCallEffect; 3] {
        let (caller, target) = (mac(caller), mac(target));
        let join = |mac, peer| {
            let far = FarEnd { mac: peer, place: Place::Here, call: RelayId { caller, number } };
            DeviceCallEffect::Join(JoinedDevice { mac, far, realtime: false, peer_realtime: false })
        };
        let accepted = DeviceCallEffect::Accepted { caller, from: target };
        [join(caller, target), join(target, caller), accepted]
    }
}

#[test]
fn request_then_accept_connects_and_either_side_ends_both() {
    for leaver in [1, 2] {
        let mut scenario = Scenario::new();
        assert_eq!(scenario.request(1, 2), RequestOutcome::Ringing);
        let wake = DeviceCallEffect::Wake { target: mac(2), nickname: "Ann".into() };
        assert_eq!(scenario.out, [DeviceCallEffect::Ring(mac(1)), wake]);
        assert_eq!(scenario.accept(2), AcceptOutcome::Connected(mac(1)));
        assert_eq!(scenario.out, Scenario::connected(1, 2, 1));
        assert_eq!(scenario.left(leaver), [DeviceCallEffect::End(mac(3 - leaver), EndReason::PeerLeft)]);
        assert_eq!(scenario.left(3 - leaver), []);
        assert_eq!(scenario.accept(2), AcceptOutcome::NoIncomingCall);
    }
}

#[test]
fn mutual_requests_connect_at_once() {
    let mut scenario = Scenario::new();
    assert_eq!(scenario.request(1, 2), RequestOutcome::Ringing);
    assert_eq!(scenario.request(2, 1), RequestOutcome::Connected);
    assert_eq!(scenario.calls.peer(mac(1)), Some(mac(2)));
    assert_eq!(scenario.calls.deadline(), None);
}

#[test]
fn self_offline_and_busy_give_different_outcomes() {
    let mut scenario = Scenario::new();
    assert!(matches!(scenario.request(1, 1), RequestOutcome::Refused(_)));
    scenario.devices.0.insert(mac(2), Presence::Absent);
    assert_eq!(scenario.request(1, 2), RequestOutcome::Offline);
    scenario.devices.0.clear();
    assert_eq!(scenario.request(1, 2), RequestOutcome::Ringing);
    assert_eq!(scenario.request(1, 2), RequestOutcome::Ringing, "asking again changes nothing");
    assert_eq!(scenario.out, []);
    assert!(matches!(scenario.request(1, 3), RequestOutcome::Refused(_)), "the caller is pending");
    assert!(matches!(scenario.request(3, 2), RequestOutcome::Refused(_)), "the target is being called");
    assert!(matches!(scenario.request(3, 1), RequestOutcome::Refused(_)), "the target is calling");
    scenario.accept(2);
    assert!(matches!(scenario.request(3, 1), RequestOutcome::Refused(_)), "the target is bridged");
    assert!(matches!(scenario.request(1, 3), RequestOutcome::Refused(_)), "the caller is bridged");
}

#[test]
fn impossible_requests_are_refused_with_a_message() {
    use Presence::{Idle, InCall};

    let request = |before: &[(u8, u8)], (caller, calling): (u8, Presence), target| {
        let mut scenario = Scenario::new();
        for &(caller, target) in before {
            scenario.request(caller, target);
        }
        scenario.devices.0.insert(mac(caller), calling);
        scenario.request(caller, target)
    };
    let ringing = [(1, 2)];
    let talking = [(1, 2), (2, 1)];
    for (before, caller, target, words) in [
        (&[][..], (1, InCall), 1, "不能呼叫自己 / A device cannot call itself"),
        (&[], (1, Idle), 2, "主叫方不在会话中 / The caller is in no call"),
        (&ringing, (1, InCall), 3, "正在呼叫其他设备 / The caller is calling another device"),
        (&talking, (1, InCall), 3, "已在通话中 / The caller is talking to a device"),
        (&ringing, (2, InCall), 3, "有其他设备来电 / The caller is being called by another device"),
        (&ringing, (3, InCall), 1, "对方正忙 / The device is busy with another one"),
        (&ringing, (3, InCall), 2, "对方正忙 / The device is busy with another one"),
        (&talking, (3, InCall), 2, "对方正忙 / The device is busy with another one"),
    ] {
        assert_eq!(request(before, caller, target), RequestOutcome::Refused(words), "{before:?} {caller:?}");
    }
    let mut scenario = Scenario::new();
    scenario.request(1, 2);
    scenario.devices.0.insert(mac(2), Idle);
    let refused = AcceptOutcome::Refused("设备不在会话中 / The device is in no call");
    assert_eq!(scenario.accept(2), refused);
    scenario.devices.0.clear();
    assert_eq!(scenario.accept(2), AcceptOutcome::Connected(mac(1)), "it still rings");
}

#[test]
fn the_next_deadline_is_the_earliest() {
    let mut scenario = Scenario::new();
    let first = scenario.now;
    scenario.request(1, 2);
    scenario.now += Duration::from_secs(1);
    scenario.request(3, 4);
    assert_eq!(scenario.calls.deadline(), Some(first + RING_TIMEOUT));
    // The next call replaces the record of a missed one.
    scenario.left(1);
    scenario.request(5, 2);
    assert_eq!(scenario.calls.deadline(), Some(scenario.now + RING_TIMEOUT));
}

#[test]
fn an_unanswered_call_times_out() {
    let mut scenario = Scenario::new();
    assert_eq!(scenario.calls.deadline(), None);
    scenario.request(1, 2);
    assert_eq!(scenario.calls.deadline(), Some(scenario.now + RING_TIMEOUT));
    let due = scenario.now + RING_TIMEOUT;
    assert_eq!(scenario.time_passes(due - Duration::from_millis(1)), []);
    assert_eq!(scenario.time_passes(due), [DeviceCallEffect::End(mac(1), EndReason::Unanswered)]);
    assert_eq!(scenario.accept(2), AcceptOutcome::NoIncomingCall);
}

#[test]
fn accepting_a_call_whose_caller_left_reports_it() {
    let mut scenario = Scenario::new();
    scenario.request(1, 2);
    scenario.devices.0.insert(mac(1), Presence::Absent);
    assert_eq!(scenario.accept(2), AcceptOutcome::CallerLeft);
    scenario.devices.0.clear();
    assert_eq!((scenario.accept(2), scenario.calls.deadline()), (AcceptOutcome::NoIncomingCall, None));
    scenario.request(1, 2);
    assert_eq!(scenario.left(1), []);
    assert_eq!(scenario.accept(2), AcceptOutcome::CallerLeft);
    assert_eq!(scenario.accept(2), AcceptOutcome::NoIncomingCall, "told once");
    scenario.request(1, 2);
    scenario.left(1);
    scenario.time_passes(scenario.now + RING_TIMEOUT);
    assert_eq!((scenario.accept(2), scenario.calls.deadline()), (AcceptOutcome::NoIncomingCall, None));
}

#[test]
fn a_target_that_disconnects_ends_the_ringing_but_its_new_hello_does_not() {
    let mut scenario = Scenario::new();
    scenario.request(1, 2);
    assert_eq!(
        scenario.left(2),
        [],
        "its call with its chat server ended: it may still accept from the next"
    );
    assert_eq!(scenario.disconnected(2), [DeviceCallEffect::End(mac(1), EndReason::PeerLeft)]);
}

#[test]
fn an_operator_can_hang_up_either_side() {
    let mut scenario = Scenario::new();
    assert!(!scenario.hang_up(1));
    scenario.request(1, 2);
    assert!(scenario.hang_up(2));
    assert_eq!(scenario.out, [DeviceCallEffect::End(mac(1), EndReason::Operator)]);
    scenario.request(1, 2);
    scenario.accept(2);
    assert!(scenario.hang_up(1));
    assert_eq!(
        scenario.out,
        [
            DeviceCallEffect::End(mac(2), EndReason::PeerLeft),
            DeviceCallEffect::End(mac(1), EndReason::Operator)
        ]
    );
}

/// The state of one device.
#[derive(Clone, Copy, Debug, PartialEq)]
enum UserState {
    Idle,
    Calling { whom: u8, until: Instant },
    Talking { to: u8 },
}

/// Five devices that act at random, and their expected states.
struct RandomDevices {
    scenario: Scenario,
    users: [UserState; 5],
    rng_state: u64,
    reached: BTreeSet<&'static str>,
}

impl RandomDevices {
    fn random_below(&mut self, limit: u64) -> u64 {
        self.rng_state ^= self.rng_state << 13;
        self.rng_state ^= self.rng_state >> 7;
        self.rng_state ^= self.rng_state << 17;
        (self.rng_state >> 11) % limit
    }

    fn presence(&self, who: u8) -> Presence {
        self.scenario.devices.presence(mac(who))
    }

    fn set_presence(&mut self, who: u8, presence: Presence) {
        self.scenario.devices.0.insert(mac(who), presence);
    }

    fn caller_of(&self, target: u8) -> Option<u8> {
        let calls = |who: &u8| matches!(self.users[usize::from(*who)], UserState::Calling { whom, .. } if whom == target);
        let mut callers = (0..5).filter(calls);
        let caller = callers.next();
        assert_eq!(callers.next(), None, "one caller at a time");
        caller
    }

    /// The device's call has ended. Returns the devices that must be told.
    fn end_call_of(&mut self, who: u8) -> Vec<u8> {
        let before = std::mem::replace(&mut self.users[usize::from(who)], UserState::Idle);
        let UserState::Talking { to } = before else { return Vec::new() };
        self.users[usize::from(to)] = UserState::Idle;
        vec![to]
    }

    fn step(&mut self) {
        let (a, b) = (self.random_below(5) as u8, self.random_below(5) as u8);
        let i = usize::from(a);
        self.scenario.out.clear();
        let mut told: Vec<u8> = Vec::new();
        match self.random_below(12) {
            0..=3 => self.request_call(a, b),
            4..=5 => self.accept_call(a),
            // A hello or a goodbye ends the device's call.
            6 => {
                self.scenario.left(a);
                told = self.end_call_of(a);
                if self.presence(a) != Presence::Absent {
                    let hello = self.random_below(2) == 0;
                    self.set_presence(a, if hello { Presence::InCall } else { Presence::Idle });
                }
            }
            7 => {
                self.scenario.disconnected(a);
                told = self.end_call_of(a);
                if let Some(caller) = self.caller_of(a) {
                    self.users[usize::from(caller)] = UserState::Idle;
                    told.push(caller);
                    self.reached.insert("target gone");
                }
                self.set_presence(a, Presence::Absent);
            }
            8 => {
                let took_part = self.users[i] != UserState::Idle || self.caller_of(a).is_some();
                assert_eq!(self.scenario.hang_up(a), took_part);
                let itself = self.users[i] != UserState::Idle;
                told = self.end_call_of(a);
                told.extend(itself.then_some(a));
                if let Some(caller) = self.caller_of(a) {
                    self.users[usize::from(caller)] = UserState::Idle;
                    told.push(caller);
                    self.reached.insert("declined");
                }
            }
            9..=10 => {
                let connected = self.presence(b) != Presence::Absent;
                self.set_presence(b, if connected { Presence::InCall } else { Presence::Idle });
            }
            _ => {
                let passes = Duration::from_secs(1 + self.random_below(25));
                let now = self.scenario.now + passes;
                self.scenario.time_passes(now);
                for who in 0..5 {
                    if matches!(self.users[usize::from(who)], UserState::Calling { until, .. } if until <= now)
                    {
                        self.users[usize::from(who)] = UserState::Idle;
                        told.push(who);
                        self.reached.insert("unanswered");
                    }
                }
                assert!(self.scenario.calls.deadline().is_none_or(|at| at > now), "what was due is done");
            }
        }
        let ends = self.scenario.out.iter().filter_map(|effect| match effect {
            DeviceCallEffect::End(who, _) => Some(*who),
            _ => None,
        });
        let (mut ends, mut told): (Vec<_>, Vec<_>) = (ends.collect(), told.into_iter().map(mac).collect());
        ends.sort_unstable();
        told.sort_unstable();
        assert_eq!(ends, told, "each is told once, and nobody else");
        self.check();
    }

    fn request_call(&mut self, a: u8, b: u8) {
        let (i, j) = (usize::from(a), usize::from(b));
        let outcome = self.scenario.request(a, b);
        let free = self.users[i] == UserState::Idle;
        match outcome {
            RequestOutcome::Connected => {
                assert!(matches!(self.users[j], UserState::Calling { whom, .. } if whom == a) && free);
                self.connect_users(b, a);
                self.reached.insert("mutual");
            }
            RequestOutcome::Ringing if free => {
                assert!(self.users[j] == UserState::Idle && self.caller_of(b).is_none());
                assert!(self.caller_of(a).is_none() && a != b);
                let until = self.scenario.now + RING_TIMEOUT;
                self.users[i] = UserState::Calling { whom: b, until };
                let wake = DeviceCallEffect::Wake { target: mac(b), nickname: "Ann".into() };
                assert_eq!(self.scenario.out, [DeviceCallEffect::Ring(mac(a)), wake]);
            }
            RequestOutcome::Ringing => {
                assert!(matches!(self.users[i], UserState::Calling { whom, .. } if whom == b))
            }
            RequestOutcome::Offline => assert_eq!(self.presence(b), Presence::Absent),
            RequestOutcome::Refused(_) => {
                let third = self.users[j] != UserState::Idle || self.caller_of(b).is_some();
                let own = !free || self.caller_of(a).is_some() || self.presence(a) != Presence::InCall;
                assert!(a == b || own || third, "refused for nothing");
                self.reached.insert("refused");
            }
        }
        let effects = outcome == RequestOutcome::Connected || (outcome == RequestOutcome::Ringing && free);
        assert!(effects || self.scenario.out.is_empty(), "{outcome:?} {:?}", self.scenario.out);
    }

    fn accept_call(&mut self, a: u8) {
        let caller = self.caller_of(a);
        match self.scenario.accept(a) {
            AcceptOutcome::Connected(by) => {
                assert_eq!(Some(by), caller.map(mac));
                self.connect_users(by.bytes()[5], a);
                self.reached.insert("accepted");
            }
            AcceptOutcome::NoIncomingCall => assert_eq!(caller, None),
            AcceptOutcome::CallerLeft => {
                assert_eq!(caller, None);
                self.reached.insert("caller gone");
            }
            AcceptOutcome::Refused(_) => {
                assert!(caller.is_some() && self.presence(a) != Presence::InCall);
            }
        }
    }

    fn connect_users(&mut self, caller: u8, from: u8) {
        let number = self.scenario.calls.legs[&mac(caller)].far.call.number;
        assert_eq!(self.scenario.out, Scenario::connected(caller, from, number));
        self.users[usize::from(caller)] = UserState::Talking { to: from };
        self.users[usize::from(from)] = UserState::Talking { to: caller };
    }

    fn check(&self) {
        for who in 0..5 {
            let state = self.users[usize::from(who)];
            let peer = if let UserState::Talking { to } = state { Some(mac(to)) } else { None };
            assert_eq!(self.scenario.calls.peer(mac(who)), peer);
            if let UserState::Talking { to } = state {
                assert_eq!(self.users[usize::from(to)], UserState::Talking { to: who });
                assert_eq!(self.caller_of(who), None, "who talks is not called");
            }
            let takes_part = state != UserState::Idle;
            let leg = self.scenario.calls.legs.get(&mac(who)).map(|leg| leg.state);
            let calls_or_talks = matches!(leg, Some(LegState::Calling { .. } | LegState::Talking));
            assert_eq!(calls_or_talks, takes_part);
            assert!(!takes_part || self.presence(who) == Presence::InCall);
        }
    }
}

#[test]
fn random_devices_never_leave_a_one_sided_call() {
    let mut reached = BTreeSet::new();
    for seed in 1..=300 {
        let random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
        let mut devices = RandomDevices {
            scenario: Scenario::new(),
            users: [UserState::Idle; 5],
            rng_state: random,
            reached: BTreeSet::new(),
        };
        for _ in 0..400 {
            devices.step();
        }
        for who in 0..5 {
            devices.scenario.disconnected(who);
        }
        assert_eq!(devices.scenario.calls.deadline(), None, "nothing is left of seed {seed}");
        reached.extend(devices.reached);
    }
    let all = ["accepted", "caller gone", "declined", "mutual", "refused", "target gone", "unanswered"];
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), all);
}
