//! Stories of who calls whom, and a town of devices that do what they like.

use std::collections::BTreeSet;

use super::*;

fn mac(n: u8) -> Mac {
    Mac::from([2, 0, 0, 0, 0, n])
}

struct Story {
    bridges: Bridges,
    now: Instant,
    out: Vec<Effect>,
}

impl Story {
    fn new() -> Self {
        Self { bridges: Bridges::default(), now: Instant::now(), out: Vec::new() }
    }

    fn request(&mut self, caller: u8, target: u8) -> Requested {
        self.out.clear();
        let (caller, target) = ((mac(caller), Presence::InCall), (mac(target), Presence::InCall));
        self.bridges.request(caller, target, "Ann", self.now, &mut self.out)
    }

    fn accept(&mut self, target: u8) -> Accepted {
        self.out.clear();
        self.bridges.accept((mac(target), Presence::InCall), |_| Presence::InCall, &mut self.out)
    }

    fn left(&mut self, who: u8) -> Vec<Effect> {
        self.out.clear();
        self.bridges.left(mac(who), &mut self.out);
        self.out.clone()
    }
}

#[test]
fn request_then_accept_bridges_and_either_side_ends_both() {
    for leaver in [1, 2] {
        let mut story = Story::new();
        assert_eq!(story.request(1, 2), Requested::Pending);
        let wake = Effect::Wake { target: mac(2), nickname: "Ann".into() };
        assert_eq!(story.out, [Effect::Ring(mac(1)), wake]);
        assert_eq!(story.accept(2), Accepted::Bridged(mac(1)));
        let accepted = Effect::Accepted { caller: mac(1), from: mac(2) };
        assert_eq!(story.out, [Effect::Bridge(mac(1), mac(2)), accepted]);
        assert_eq!(story.left(leaver), [Effect::End(mac(3 - leaver), EndReason::PeerLeft)]);
        assert_eq!(story.left(3 - leaver), []);
        assert_eq!(story.accept(2), Accepted::NoPending);
    }
}

#[test]
fn mutual_requests_bridge_at_once() {
    let mut story = Story::new();
    assert_eq!(story.request(1, 2), Requested::Pending);
    assert_eq!(story.request(2, 1), Requested::Bridged);
    assert_eq!(story.bridges.peer(mac(1)), Some(mac(2)));
    assert_eq!(story.bridges.deadline(), None);
}

#[test]
fn self_offline_and_busy_are_told_apart() {
    let mut story = Story::new();
    assert!(matches!(story.request(1, 1), Requested::Refused(_)));
    let offline = story.bridges.request(
        (mac(1), Presence::InCall),
        (mac(2), Presence::Absent),
        "Ann",
        story.now,
        &mut story.out,
    );
    assert_eq!(offline, Requested::Offline);
    assert_eq!(story.request(1, 2), Requested::Pending);
    assert_eq!(story.request(1, 2), Requested::Pending, "asking again changes nothing");
    assert_eq!(story.out, []);
    assert!(matches!(story.request(1, 3), Requested::Refused(_)), "the caller is pending");
    assert!(matches!(story.request(3, 2), Requested::Refused(_)), "the target is being called");
    assert!(matches!(story.request(3, 1), Requested::Refused(_)), "the target is calling");
    story.accept(2);
    assert!(matches!(story.request(3, 1), Requested::Refused(_)), "the target is bridged");
    assert!(matches!(story.request(1, 3), Requested::Refused(_)), "the caller is bridged");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    use Presence::{Idle, InCall};

    let request = |before: &[(u8, u8)], (caller, calling): (u8, Presence), target| {
        let mut story = Story::new();
        for &(caller, target) in before {
            story.request(caller, target);
        }
        let (caller, target) = ((mac(caller), calling), (mac(target), InCall));
        story.bridges.request(caller, target, "Ann", story.now, &mut Vec::new())
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
        assert_eq!(request(before, caller, target), Requested::Refused(words), "{before:?} {caller:?}");
    }
    let mut story = Story::new();
    story.request(1, 2);
    let accepted = story.bridges.accept((mac(2), Idle), |_| InCall, &mut story.out);
    assert_eq!(accepted, Accepted::Refused("设备不在会话中 / The device is in no call"));
    assert_eq!(story.accept(2), Accepted::Bridged(mac(1)), "it still rings");
}

#[test]
fn the_next_moment_is_that_of_the_one_who_has_waited_longest() {
    let mut story = Story::new();
    let first = story.now;
    story.request(1, 2);
    story.now += Duration::from_secs(1);
    story.request(3, 4);
    assert_eq!(story.bridges.deadline(), Some(first + RING));
    // A call that was missed is forgotten with the next one.
    story.left(1);
    story.request(5, 2);
    assert_eq!(story.bridges.deadline(), Some(story.now + RING));
}

#[test]
fn nobody_answers() {
    let mut story = Story::new();
    assert_eq!(story.bridges.deadline(), None);
    story.request(1, 2);
    assert_eq!(story.bridges.deadline(), Some(story.now + RING));
    story.out.clear();
    story.bridges.timeout(story.now + RING - Duration::from_millis(1), &mut story.out);
    assert_eq!(story.out, []);
    story.bridges.timeout(story.now + RING, &mut story.out);
    assert_eq!(story.out, [Effect::End(mac(1), EndReason::Unanswered)]);
    assert_eq!(story.accept(2), Accepted::NoPending);
}

#[test]
fn a_caller_that_left_is_told_to_the_one_who_accepts() {
    let mut story = Story::new();
    story.request(1, 2);
    let gone = story.bridges.accept((mac(2), Presence::InCall), |_| Presence::Absent, &mut story.out);
    assert_eq!(gone, Accepted::CallerGone);
    assert_eq!((story.accept(2), story.bridges.deadline()), (Accepted::NoPending, None));
    story.request(1, 2);
    assert_eq!(story.left(1), []);
    assert_eq!(story.accept(2), Accepted::CallerGone);
    assert_eq!(story.accept(2), Accepted::NoPending, "told once");
    story.request(1, 2);
    story.left(1);
    story.out.clear();
    story.bridges.timeout(story.now + RING, &mut story.out);
    assert_eq!((story.accept(2), story.bridges.deadline()), (Accepted::NoPending, None));
}

#[test]
fn a_target_that_vanishes_ends_the_ringing_but_a_new_hello_of_it_does_not() {
    let mut story = Story::new();
    story.request(1, 2);
    assert_eq!(story.left(2), [], "its call with its chat server ended: it may still accept from the next");
    story.bridges.absent(mac(2), &mut story.out);
    assert_eq!(story.out, [Effect::End(mac(1), EndReason::PeerLeft)]);
}

#[test]
fn an_operator_hangs_up_on_either_part() {
    let mut story = Story::new();
    assert!(!story.bridges.hang_up(mac(1), &mut story.out));
    story.request(1, 2);
    story.out.clear();
    assert!(story.bridges.hang_up(mac(2), &mut story.out));
    assert_eq!(story.out, [Effect::End(mac(1), EndReason::Operator)]);
    story.request(1, 2);
    story.accept(2);
    story.out.clear();
    assert!(story.bridges.hang_up(mac(1), &mut story.out));
    assert_eq!(
        story.out,
        [Effect::End(mac(2), EndReason::PeerLeft), Effect::End(mac(1), EndReason::Operator)]
    );
}

/// What one device does, as its user would tell.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    Nothing,
    Calling { whom: u8, until: Instant },
    Talking { to: u8 },
}

/// Five devices that do what they like, and what their users would tell of it.
struct Town {
    story: Story,
    doing: [Doing; 5],
    presence: [Presence; 5],
    random: u64,
    reached: BTreeSet<&'static str>,
}

impl Town {
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    fn caller_of(&self, target: u8) -> Option<u8> {
        let calls =
            |who: &u8| matches!(self.doing[usize::from(*who)], Doing::Calling { whom, .. } if whom == target);
        let mut callers = (0..5).filter(calls);
        let caller = callers.next();
        assert_eq!(callers.next(), None, "one caller at a time");
        caller
    }

    /// The device's part is over; who is told of it.
    fn leaves(&mut self, who: u8) -> Vec<u8> {
        let before = std::mem::replace(&mut self.doing[usize::from(who)], Doing::Nothing);
        let Doing::Talking { to } = before else { return Vec::new() };
        self.doing[usize::from(to)] = Doing::Nothing;
        vec![to]
    }

    fn step(&mut self) {
        let (a, b) = (self.below(5) as u8, self.below(5) as u8);
        let (i, j) = (usize::from(a), usize::from(b));
        self.story.out.clear();
        let mut told: Vec<u8> = Vec::new();
        match self.below(12) {
            0..=3 => self.asks(a, b),
            4..=5 => self.answers(a),
            // A hello or a goodbye: the call it was in is over.
            6 => {
                self.story.bridges.left(mac(a), &mut self.story.out);
                told = self.leaves(a);
                if self.presence[i] != Presence::Absent {
                    let hello = self.below(2) == 0;
                    self.presence[i] = if hello { Presence::InCall } else { Presence::Idle };
                }
            }
            7 => {
                self.story.bridges.absent(mac(a), &mut self.story.out);
                told = self.leaves(a);
                if let Some(caller) = self.caller_of(a) {
                    self.doing[usize::from(caller)] = Doing::Nothing;
                    told.push(caller);
                    self.reached.insert("target gone");
                }
                self.presence[i] = Presence::Absent;
            }
            8 => {
                let took_part = self.doing[i] != Doing::Nothing || self.caller_of(a).is_some();
                assert_eq!(self.story.bridges.hang_up(mac(a), &mut self.story.out), took_part);
                let itself = self.doing[i] != Doing::Nothing;
                told = self.leaves(a);
                told.extend(itself.then_some(a));
                if let Some(caller) = self.caller_of(a) {
                    self.doing[usize::from(caller)] = Doing::Nothing;
                    told.push(caller);
                    self.reached.insert("declined");
                }
            }
            9..=10 => {
                self.presence[j] = match self.presence[j] {
                    Presence::Absent => Presence::Idle,
                    _ => Presence::InCall,
                };
            }
            _ => {
                let passes = Duration::from_secs(1 + self.below(25));
                self.story.now += passes;
                let now = self.story.now;
                self.story.bridges.timeout(now, &mut self.story.out);
                for who in 0..5 {
                    if matches!(self.doing[usize::from(who)], Doing::Calling { until, .. } if until <= now) {
                        self.doing[usize::from(who)] = Doing::Nothing;
                        told.push(who);
                        self.reached.insert("unanswered");
                    }
                }
                assert!(self.story.bridges.deadline().is_none_or(|at| at > now), "what was due is done");
            }
        }
        let ends = self.story.out.iter().filter_map(|effect| match effect {
            Effect::End(who, _) => Some(*who),
            _ => None,
        });
        let (mut ends, mut told): (Vec<_>, Vec<_>) = (ends.collect(), told.into_iter().map(mac).collect());
        ends.sort_unstable();
        told.sort_unstable();
        assert_eq!(ends, told, "each is told once, and nobody else");
        self.check();
    }

    fn asks(&mut self, a: u8, b: u8) {
        let (i, j) = (usize::from(a), usize::from(b));
        let parties = ((mac(a), self.presence[i]), (mac(b), self.presence[j]));
        let outcome =
            self.story.bridges.request(parties.0, parties.1, "Ann", self.story.now, &mut self.story.out);
        let free = self.doing[i] == Doing::Nothing;
        match outcome {
            Requested::Bridged => {
                assert!(matches!(self.doing[j], Doing::Calling { whom, .. } if whom == a) && free);
                self.talk(b, a);
                self.reached.insert("mutual");
            }
            Requested::Pending if free => {
                assert!(self.doing[j] == Doing::Nothing && self.caller_of(b).is_none());
                assert!(self.caller_of(a).is_none() && a != b);
                let until = self.story.now + RING;
                self.doing[i] = Doing::Calling { whom: b, until };
                let wake = Effect::Wake { target: mac(b), nickname: "Ann".into() };
                assert_eq!(self.story.out, [Effect::Ring(mac(a)), wake]);
            }
            Requested::Pending => {
                assert!(matches!(self.doing[i], Doing::Calling { whom, .. } if whom == b))
            }
            Requested::Offline => assert_eq!(self.presence[j], Presence::Absent),
            Requested::Refused(_) => {
                let third = self.doing[j] != Doing::Nothing || self.caller_of(b).is_some();
                let own = !free || self.caller_of(a).is_some() || self.presence[i] != Presence::InCall;
                assert!(a == b || own || third, "refused for nothing");
                self.reached.insert("refused");
            }
        }
        let effects = outcome == Requested::Bridged || (outcome == Requested::Pending && free);
        assert!(effects || self.story.out.is_empty(), "{outcome:?} {:?}", self.story.out);
    }

    fn answers(&mut self, a: u8) {
        let presence = self.presence;
        let of = |who: Mac| presence[usize::from(who.bytes()[5])];
        let called = (mac(a), presence[usize::from(a)]);
        let caller = self.caller_of(a);
        match self.story.bridges.accept(called, of, &mut self.story.out) {
            Accepted::Bridged(by) => {
                assert_eq!(Some(by), caller.map(mac));
                self.talk(by.bytes()[5], a);
                self.reached.insert("accepted");
            }
            Accepted::NoPending => assert_eq!(caller, None),
            Accepted::CallerGone => {
                assert_eq!(caller, None);
                self.reached.insert("caller gone");
            }
            Accepted::Refused(_) => {
                assert!(caller.is_some() && presence[usize::from(a)] != Presence::InCall);
            }
        }
    }

    fn talk(&mut self, caller: u8, from: u8) {
        let accepted = Effect::Accepted { caller: mac(caller), from: mac(from) };
        assert_eq!(self.story.out, [Effect::Bridge(mac(caller), mac(from)), accepted]);
        self.doing[usize::from(caller)] = Doing::Talking { to: from };
        self.doing[usize::from(from)] = Doing::Talking { to: caller };
    }

    fn check(&self) {
        for who in 0..5 {
            let doing = self.doing[usize::from(who)];
            let peer = if let Doing::Talking { to } = doing { Some(mac(to)) } else { None };
            assert_eq!(self.story.bridges.peer(mac(who)), peer);
            if let Doing::Talking { to } = doing {
                assert_eq!(self.doing[usize::from(to)], Doing::Talking { to: who });
                assert_eq!(self.caller_of(who), None, "who talks is not called");
            }
            let takes_part = doing != Doing::Nothing;
            assert_eq!(self.story.bridges.takes_part(mac(who)), takes_part);
            assert!(!takes_part || self.presence[usize::from(who)] == Presence::InCall);
        }
    }
}

#[test]
fn whatever_devices_do_each_call_has_two_sides_and_ends_for_both() {
    let mut reached = BTreeSet::new();
    for seed in 1..=300 {
        let random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
        let (doing, presence) = ([Doing::Nothing; 5], [Presence::InCall; 5]);
        let mut town = Town { story: Story::new(), doing, presence, random, reached: BTreeSet::new() };
        for _ in 0..400 {
            town.step();
        }
        for who in 0..5 {
            town.story.bridges.absent(mac(who), &mut town.story.out);
        }
        assert_eq!(town.story.bridges.deadline(), None, "nothing is left of seed {seed}");
        reached.extend(town.reached);
    }
    let all = ["accepted", "caller gone", "declined", "mutual", "refused", "target gone", "unanswered"];
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), all);
}
