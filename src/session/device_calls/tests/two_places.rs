//! Calls between devices of several places, whose messages take their time: every order of few events, and random ones of many.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::super::*;

/// What the core of a device does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum InCore {
    /// Nothing with another device.
    Alone,
    Ringing,
    Talking(RelayId),
}

/// Places, their devices, and the messages on their way.
#[derive(Clone, Debug)]
struct World {
    now: Instant,
    tables: Vec<DeviceCallTable>,
    /// By device; device n belongs to place n modulo the number of places.
    devices: Vec<(Presence, InCore)>,
    /// From each place, in turn, to each one.
    queues: Vec<VecDeque<Item>>,
    /// What is between the places, if they are gateways; else messages are never lost.
    links: Option<Links>,
    tickets: BTreeSet<u64>,
    issued: u64,
    /// Each so many devices that join a call leave it at once, since closing their chat server ends their call; 0 is none.
    join_fails_each: u32,
    joins: u32,
    reached: BTreeSet<&'static str>,
}

/// What one place sends another one.
#[derive(Clone, Debug)]
enum Item {
    Message(RelayMessage),
    /// All calls with the other place have ended at this one.
    CallsLost,
}

/// Of each gateway, how it can use Redis.
#[derive(Clone, Debug)]
struct Links {
    /// It can send.
    sends: Vec<bool>,
    /// It is subscribed.
    receives: Vec<bool>,
    /// It gets nothing, and nobody knows it yet.
    wedged: Vec<bool>,
    /// Whom it has not told yet that their calls have ended.
    untold: Vec<BTreeSet<usize>>,
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    Request(usize, usize),
    Accept(usize),
    HangUp(usize),
    /// The device's call ends for a reason of its own.
    CallEnds(usize),
    Hello(usize),
    Disconnects(usize),
    /// The oldest message from one place arrives at the other.
    Arrives(usize, usize),
    /// A place finds that another one does not respond. What is on its way arrives later all the same.
    Stalls(usize, usize),
    HalfTheTimePasses,
    /// A gateway loses its connection for commands.
    CannotSend(usize),
    /// A gateway loses its subscription, and all that was on its way to it.
    CannotReceive(usize),
    /// The subscription of a gateway delivers nothing any more.
    IsWedged(usize),
    /// A gateway can use Redis again.
    Reconnects(usize),
}

struct Devices<'a>(&'a [(Presence, InCore)], usize, usize);

impl LocalDevices for Devices<'_> {
    fn presence(&self, mac: Mac) -> Presence {
        let Self(devices, place, places) = *self;
        assert_eq!(number(mac) % places, place, "a place asks for its own devices only");
        devices[number(mac)].0
    }

    fn listens_in_realtime(&self, mac: Mac) -> bool {
        number(mac).is_multiple_of(2)
    }
}

fn mac(n: usize) -> Mac {
    Mac::from([2, 0, 0, 0, 0, n as u8])
}

fn number(mac: Mac) -> usize {
    mac.bytes()[5].into()
}

impl World {
    fn new(places: usize, devices: usize, presence: Presence) -> Self {
        Self {
            now: Instant::now(),
            tables: vec![DeviceCallTable::default(); places],
            devices: vec![(presence, InCore::Alone); devices],
            queues: vec![VecDeque::new(); places * places],
            links: None,
            tickets: BTreeSet::new(),
            issued: 0,
            join_fails_each: 0,
            joins: 0,
            reached: BTreeSet::new(),
        }
    }

    /// Places that are gateways.
    fn of_gateways(places: usize, devices: usize, presence: Presence) -> Self {
        let links = Links {
            sends: vec![true; places],
            receives: vec![true; places],
            wedged: vec![false; places],
            untold: vec![BTreeSet::new(); places],
        };
        Self { links: Some(links), ..Self::new(places, devices, presence) }
    }

    fn place_of(&self, device: usize) -> usize {
        device % self.tables.len()
    }

    fn place_as_seen_by(&self, place: usize, device: usize) -> Place {
        let of_device = self.place_of(device);
        if of_device == place { Place::Here } else { self.other_place(of_device) }
    }

    fn other_place(&self, place: usize) -> Place {
        if self.links.is_some() { Place::Gateway(place as u64) } else { Place::Worker(place) }
    }

    /// As the shell sends to another gateway.
    fn send_to_gateway(&mut self, from: usize, to: usize, message: RelayMessage) {
        let links = self.links.as_mut().unwrap();
        if links.sends[from] {
            if links.untold[from].remove(&to) {
                self.arrive_later(from, to, Item::CallsLost);
            }
            return self.arrive_later(from, to, Item::Message(message));
        }
        links.untold[from].insert(to);
        if !matches!(message.body, RelayBody::End(_)) {
            self.lose(from, to);
        }
    }

    fn arrive_later(&mut self, from: usize, to: usize, item: Item) {
        let links = self.links.as_mut().unwrap();
        if !links.receives[to] || links.wedged[to] {
            return;
        }
        let places = self.tables.len();
        self.queues[from * places + to].push_back(item);
    }

    fn lose(&mut self, place: usize, other: usize) {
        let other = self.other_place(other);
        self.change(place, |table, cx| table.on_place_lost(other, cx));
    }

    fn lose_all(&mut self, place: usize) {
        let others: Vec<_> = (0..self.tables.len()).filter(|other| *other != place).collect();
        others.into_iter().for_each(|other| self.lose(place, other));
    }

    fn change<T>(
        &mut self,
        place: usize,
        change: impl FnOnce(&mut DeviceCallTable, &mut DeviceCallContext<'_>) -> T,
    ) -> T {
        let mut out = Vec::new();
        let devices = &Devices(&self.devices, place, self.tables.len());
        let outcome =
            change(&mut self.tables[place], &mut DeviceCallContext { now: self.now, devices, out: &mut out });
        out.into_iter().for_each(|effect| self.apply(place, effect));
        outcome
    }

    fn apply(&mut self, place: usize, effect: DeviceCallEffect) {
        let places = self.tables.len();
        match effect {
            DeviceCallEffect::Ring(caller) => {
                let device = &mut self.devices[number(caller)];
                assert_eq!(*device, (Presence::InCall, InCore::Alone), "who rings is in a call");
                device.1 = InCore::Ringing;
            }
            DeviceCallEffect::Wake { target, .. } => assert_eq!(number(target) % places, place),
            DeviceCallEffect::Accepted { caller, .. } => assert_eq!(number(caller) % places, place),
            DeviceCallEffect::Join(joined) => {
                assert_eq!(joined.realtime, number(joined.mac).is_multiple_of(2));
                assert_eq!(joined.peer_realtime, number(joined.far.mac).is_multiple_of(2));
                let n = number(joined.mac);
                if !self.tables[place].talks_in(joined.mac, joined.far.call) {
                    // The other device of this place has just left.
                    assert_eq!(joined.far.place, Place::Here);
                    return;
                }
                let own = &mut self.devices[n];
                assert!(own.0 == Presence::InCall && !matches!(own.1, InCore::Talking(_)), "{own:?}");
                own.1 = InCore::Talking(joined.far.call);
                self.reached.insert("talking");
                self.joins += 1;
                if self.join_fails_each > 0 && self.joins.is_multiple_of(self.join_fails_each) {
                    self.end_call(n);
                }
            }
            DeviceCallEffect::End(mac, _) => self.end_call(number(mac)),
            DeviceCallEffect::Send(Place::Worker(to), message) => {
                assert_ne!(to, place, "a place sends itself nothing");
                self.queues[place * places + to].push_back(Item::Message(message));
            }
            DeviceCallEffect::Send(Place::Gateway(to), message) => {
                self.send_to_gateway(place, to as usize, message);
            }
            DeviceCallEffect::Send(Place::Here, _) => panic!("a place sends itself nothing"),
            DeviceCallEffect::Answer(ticket, answer) => {
                assert!(self.tickets.remove(&ticket), "one answer each");
                self.reached.insert(match answer {
                    CallAnswer::Request(RequestOutcome::Connected) => "request: connected",
                    CallAnswer::Request(RequestOutcome::Ringing) => "request: ringing",
                    CallAnswer::Request(RequestOutcome::Offline) => "request: offline",
                    CallAnswer::Request(BUSY) => "request: busy",
                    CallAnswer::Request(LEFT) => "request: left",
                    CallAnswer::Request(CALLER_IDLE) => "request: idle",
                    CallAnswer::Request(PLACE_LOST) => "request: place lost",
                    CallAnswer::Request(RequestOutcome::Refused(_)) => "request: refused",
                    CallAnswer::Accept(AcceptOutcome::Connected(_)) => "accept: connected",
                    CallAnswer::Accept(AcceptOutcome::NoIncomingCall) => "accept: no call",
                    CallAnswer::Accept(AcceptOutcome::CallerLeft) => "accept: caller left",
                    CallAnswer::Accept(TARGET_IDLE) => "accept: idle",
                    CallAnswer::Accept(AcceptOutcome::Refused(_)) => "accept: refused",
                });
            }
        }
    }

    /// As the core and the shell: only a call with another device ends.
    fn end_call(&mut self, device: usize) {
        if std::mem::replace(&mut self.devices[device].1, InCore::Alone) != InCore::Alone {
            self.devices[device].0 = Presence::Idle;
            self.change(self.place_of(device), |table, cx| table.on_call_ended(mac(device), cx));
        }
    }

    fn ticket(&mut self) -> u64 {
        self.issued += 1;
        self.tickets.insert(self.issued);
        self.issued
    }

    /// False when the event cannot happen now.
    fn happens(&mut self, event: Event) -> bool {
        match event {
            Event::Request(caller, target) => {
                let (place, ticket) = (self.place_of(caller), self.ticket());
                let of_target = self.place_as_seen_by(place, target);
                let (caller, target) = (mac(caller), mac(target));
                let request = CallRequest { caller, target, place: of_target, nickname: "n" };
                self.change(place, |table, cx| table.request(request, ticket, cx));
            }
            Event::Accept(target) => {
                let ticket = self.ticket();
                self.change(self.place_of(target), |table, cx| table.accept(mac(target), ticket, cx));
            }
            Event::HangUp(device) => {
                return self.change(self.place_of(device), |table, cx| table.hang_up(mac(device), cx));
            }
            Event::CallEnds(device) => {
                if self.devices[device].0 != Presence::InCall {
                    return false;
                }
                self.end_call(device);
                self.devices[device].0 = Presence::Idle;
            }
            Event::Hello(device) => {
                if self.devices[device].0 == Presence::InCall {
                    return false;
                }
                self.devices[device].0 = Presence::InCall;
            }
            Event::Disconnects(device) => {
                if self.devices[device].0 == Presence::Absent {
                    return false;
                }
                self.end_call(device);
                self.devices[device].0 = Presence::Absent;
                let place = self.place_of(device);
                self.change(place, |table, cx| table.on_device_disconnected(mac(device), cx));
            }
            Event::Arrives(from, to) => {
                let item = self.queues[from * self.tables.len() + to].pop_front();
                let place = self.other_place(from);
                match item {
                    None => return false,
                    Some(Item::Message(message)) => {
                        self.change(to, |table, cx| table.on_message(place, message, cx));
                    }
                    Some(Item::CallsLost) => self.lose(to, from),
                }
            }
            Event::Stalls(place, other) => {
                let far = self.other_place(other);
                if !self.tables[place].has_calls_with(far) {
                    return false;
                }
                self.lose(place, other);
                assert!(!self.tables[place].has_calls_with(far));
            }
            Event::CannotSend(place) => {
                self.links.as_mut().unwrap().sends[place] = false;
                self.lose_all(place);
            }
            Event::CannotReceive(place) => {
                self.links.as_mut().unwrap().receives[place] = false;
                let places = self.tables.len();
                (0..places).for_each(|from| self.queues[from * places + place].clear());
                self.lose_all(place);
            }
            Event::IsWedged(place) => {
                let places = self.tables.len();
                let links = self.links.as_mut().unwrap();
                links.wedged[place] = true;
                for from in 0..places {
                    self.queues[from * places + place].clear();
                }
            }
            Event::Reconnects(place) => {
                let links = self.links.as_mut().unwrap();
                if links.sends[place] && links.receives[place] && !links.wedged[place] {
                    return false;
                }
                if links.wedged[place] {
                    // It is noticed before that.
                    self.happens(Event::CannotReceive(place));
                }
                let links = self.links.as_mut().unwrap();
                (links.sends[place], links.receives[place], links.wedged[place]) = (true, true, false);
                self.lose_all(place);
                self.links.as_mut().unwrap().untold[place].clear();
                let others = (0..self.tables.len()).filter(|other| *other != place);
                others.for_each(|other| self.arrive_later(place, other, Item::CallsLost));
            }
            Event::HalfTheTimePasses => {
                self.now += RING_TIMEOUT / 2 + Duration::from_secs(1);
                (0..self.tables.len()).for_each(|place| self.change(place, DeviceCallTable::on_timeout));
                let due = |table: &DeviceCallTable| table.deadline().is_some_and(|at| at <= self.now);
                assert!(!self.tables.iter().any(due), "what was due is done");
            }
        }
        self.check();
        true
    }

    /// What always holds: the table and the cores of its devices agree.
    fn check(&self) {
        for (n, (presence, in_core)) in self.devices.iter().enumerate() {
            let leg = self.tables[self.place_of(n)].legs.get(&mac(n));
            let expected = match leg.map(|leg| leg.state) {
                Some(LegState::Calling { .. }) => InCore::Ringing,
                Some(LegState::Talking) => InCore::Talking(leg.map(|leg| leg.far.call).unwrap()),
                _ => InCore::Alone,
            };
            assert_eq!(*in_core, expected, "device {n}");
            assert!(*in_core == InCore::Alone || *presence == Presence::InCall);
            assert!(leg.is_none() || *presence != Presence::Absent, "device {n} is away");
        }
    }

    /// All that is on its way arrives. Then both sides of each call agree, and nobody waits.
    fn settle(&mut self) {
        let places = self.tables.len();
        if self.links.is_some() {
            (0..places).for_each(|place| _ = self.happens(Event::Reconnects(place)));
        }
        self.deliver_all();
        self.assert_settled();
    }

    fn deliver_all(&mut self) {
        let places = self.tables.len();
        let mut arrived = 0;
        while let Some(link) = (0..places * places).find(|link| !self.queues[*link].is_empty()) {
            self.happens(Event::Arrives(link / places, link % places));
            arrived += 1;
            assert!(arrived < 1000, "messages without end");
        }
    }

    fn assert_settled(&self) {
        assert_eq!(self.tickets, BTreeSet::new(), "no request without its outcome");
        for n in 0..self.devices.len() {
            let table = &self.tables[self.place_of(n)];
            let Some(leg) = table.legs.get(&mac(n)) else { continue };
            let far = &self.tables[self.place_of(number(leg.far.mac))];
            let other = far.legs.get(&leg.far.mac).expect("the other one takes part");
            assert_eq!((other.far.call, other.far.mac), (leg.far.call, mac(n)));
            match (leg.state, other.state) {
                (LegState::Calling { .. }, LegState::Called { .. })
                | (LegState::Called { .. }, LegState::Calling { .. })
                | (LegState::Talking, LegState::Talking) => {}
                states => panic!("{states:?}"),
            }
        }
    }
}

const OUTCOMES: [&str; 14] = [
    "accept: caller left",
    "accept: connected",
    "accept: idle",
    "accept: no call",
    "accept: refused",
    "request: busy",
    "request: connected",
    "request: idle",
    "request: left",
    "request: offline",
    "request: place lost",
    "request: refused",
    "request: ringing",
    "talking",
];

/// Whatever has happened between two devices, both sides agree as soon as all messages have arrived, in whatever order they do.
#[test]
fn every_order_of_events_at_two_places_settles() {
    use Event::*;
    let all = [
        Request(0, 1),
        Request(1, 0),
        Accept(0),
        Accept(1),
        HangUp(0),
        HangUp(1),
        CallEnds(0),
        CallEnds(1),
        Hello(0),
        Hello(1),
        Disconnects(0),
        Disconnects(1),
        Arrives(0, 1),
        Arrives(1, 0),
        Stalls(0, 1),
        Stalls(1, 0),
        HalfTheTimePasses,
    ];
    let mut worlds = vec![World::new(2, 2, Presence::InCall)];
    let (mut seen, mut reached) = (HashSet::new(), BTreeSet::new());
    for _ in 0..7 {
        let mut next = Vec::new();
        for world in &worlds {
            for event in all {
                let mut after = world.clone();
                if !after.happens(event) {
                    continue;
                }
                reached.extend(&after.reached);
                let state = format!("{:?} {:?} {:?}", after.tables, after.devices, after.queues);
                if seen.insert(state) {
                    let mut settled = after.clone();
                    settled.settle();
                    reached.extend(settled.reached);
                    next.push(after);
                }
            }
        }
        worlds = next;
    }
    assert!(seen.len() > 5_000, "{}", seen.len());
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), OUTCOMES);
}

/// Neither place knows of the other's request when it makes its own.
#[test]
fn devices_that_call_each_other_at_once_are_connected() {
    use Event::*;
    for order in [[Arrives(0, 1), Arrives(1, 0)], [Arrives(1, 0), Arrives(0, 1)]] {
        let mut world = World::new(2, 2, Presence::InCall);
        for event in [Request(1, 0), Request(0, 1)].into_iter().chain(order) {
            assert!(world.happens(event));
        }
        world.settle();
        let call = RelayId { caller: mac(0), number: 1 };
        assert_eq!(world.devices, [(Presence::InCall, InCore::Talking(call)); 2]);
        assert_eq!(world.reached, BTreeSet::from(["request: connected", "talking"]));
    }
}

/// A place that ends takes all its messages with it. The other one is left with nothing that waits for it.
#[test]
fn a_place_that_ends_leaves_no_call_behind() {
    use Event::*;
    let steps = [Request(0, 1), Arrives(0, 1), Arrives(1, 0), Accept(1), Arrives(1, 0), Arrives(0, 1)];
    for length in 1..=steps.len() {
        for ended in [0, 1] {
            let mut world = World::new(2, 2, Presence::InCall);
            for step in &steps[..length] {
                assert!(world.happens(*step), "{step:?}");
            }
            let left = 1 - ended;
            let was_calling = world.devices[left].1 != InCore::Alone;
            world.happens(Stalls(left, ended));
            assert!(world.tables[left].legs.is_empty(), "{length} {ended}");
            assert_eq!(world.devices[left].1, InCore::Alone);
            assert_eq!(world.devices[left].0 == Presence::Idle, was_calling, "it is told");
        }
    }
}

/// Numbers below a limit, the same for a seed (xorshift).
fn random_below(seed: u64) -> impl FnMut(usize) -> usize {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
    move |limit| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        ((random >> 11) % limit as u64) as usize
    }
}

#[test]
fn random_devices_of_three_places_settle() {
    let mut reached = BTreeSet::new();
    for seed in 1..=200_u64 {
        let mut below = random_below(seed);
        let mut world = World::new(3, 6, Presence::Idle);
        world.join_fails_each = below(7) as u32;
        for step in 0..600 {
            let (a, b) = (below(6), below(6));
            let event = match below(40) {
                0..6 => Event::Request(a, b),
                6..10 => Event::Accept(a),
                10 => Event::HangUp(a),
                11 => Event::CallEnds(a),
                12..16 => Event::Hello(a),
                16 => Event::Disconnects(a),
                17 if below(4) == 0 => Event::HalfTheTimePasses,
                18 if below(4) == 0 && a % 3 != b % 3 => Event::Stalls(a % 3, b % 3),
                _ => Event::Arrives(a % 3, b % 3),
            };
            world.happens(event);
            if step % 50 == 49 {
                world.settle();
            }
        }
        (0..6).for_each(|n| _ = world.happens(Event::Disconnects(n)));
        world.settle();
        assert!(world.tables.iter().all(|table| table.legs.is_empty()));
        (0..3).for_each(|_| _ = world.happens(Event::HalfTheTimePasses));
        assert!(
            world.tables.iter().all(|table| table.deadline().is_none()),
            "nothing is left of seed {seed}"
        );
        reached.extend(world.reached);
    }
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), OUTCOMES);
}

/// Gateways lose Redis, or each other, in any way and at any time: nobody is stuck, and both sides agree in the end.
#[test]
fn random_devices_of_three_gateways_settle_whatever_is_lost() {
    let mut reached = BTreeSet::new();
    for seed in 1..=400_u64 {
        let mut below = random_below(seed);
        let mut world = World::of_gateways(3, 6, Presence::Idle);
        world.join_fails_each = below(7) as u32;
        for step in 0..600 {
            let (a, b) = (below(6), below(6));
            let event = match below(50) {
                0..6 => Event::Request(a, b),
                6..10 => Event::Accept(a),
                10 => Event::HangUp(a),
                11 => Event::CallEnds(a),
                12..16 => Event::Hello(a),
                16 => Event::Disconnects(a),
                17 if below(4) == 0 => Event::HalfTheTimePasses,
                18 if a % 3 != b % 3 => Event::Stalls(a % 3, b % 3),
                19 => Event::CannotSend(a % 3),
                20 => Event::CannotReceive(a % 3),
                21 => Event::IsWedged(a % 3),
                22..26 => Event::Reconnects(a % 3),
                _ => Event::Arrives(a % 3, b % 3),
            };
            world.happens(event);
            if step % 50 == 49 {
                world.settle();
            }
        }
        (0..6).for_each(|n| _ = world.happens(Event::Disconnects(n)));
        world.settle();
        assert!(world.tables.iter().all(|table| table.legs.is_empty()), "nothing is left of seed {seed}");
        reached.extend(world.reached);
    }
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), OUTCOMES);
}

/// At each point of a call, one of the two gateways is cut off from Redis, in each way, while the other one is not.
#[test]
fn a_gateway_that_is_cut_off_leaves_no_call_behind_at_the_other_one() {
    use Event::*;
    let steps = [Request(0, 1), Arrives(0, 1), Arrives(1, 0), Accept(1), Arrives(1, 0), Arrives(0, 1)];
    for length in 1..=steps.len() {
        for (cut, cuts) in [0, 1]
            .into_iter()
            .flat_map(|place| [CannotSend(place), CannotReceive(place)].map(|cut| (place, cut)))
        {
            let mut world = World::of_gateways(2, 2, Presence::InCall);
            for step in &steps[..length] {
                assert!(world.happens(*step), "{step:?}");
            }
            world.happens(cuts);
            assert!(world.tables[cut].legs.is_empty(), "{length} {cuts:?}");
            world.settle();
            assert!(world.tables.iter().all(|table| table.legs.is_empty()), "{length} {cuts:?}");
            assert!(world.devices.iter().all(|(_, in_core)| *in_core == InCore::Alone), "{length} {cuts:?}");
        }
    }
}
