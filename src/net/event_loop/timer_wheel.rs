//! A timer wheel with two levels.
//!
//! Time is counted in ticks of 8 ms since the wheel's start. The near level has one slot per tick of the current block
//! of 256 ticks (2.048 s). The far level has one slot per block, for the 255 blocks ahead (8.7 minutes); entries that are
//! due later wait in its last slot and are placed again when that block begins. An owner with one deadline that changes keeps
//! [`Armed`], and its entry is moved when the deadline comes earlier. Other timers are not cancelled: their owner remembers the
//! tick of its one valid entry and ignores every other expiration.
//!
//! The entries of a slot are a linked list in one arena. So the slots cost 2 KiB however many timers a slot once held, and
//! moving an entry between slots copies nothing.

use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(8);
const TICKS_PER_SECOND: u64 = 125;
const SLOTS: u64 = 256;
const NONE: u32 = u32::MAX;
/// What the first entry of a list has as the one before it: this, and the number of the list. The lists are those of the near slots,
/// of the far slots, and of entries that were already due when they were armed.
const FIRST_LIST: u32 = NONE - 1 - LATE;
const FAR: u32 = SLOTS as u32;
const LATE: u32 = 2 * FAR;
/// The most ticks from now to an entry: 198 days.
const HORIZON: u64 = i32::MAX as u64;

/// Timers that each carry a `T`.
pub struct TimerWheel<T> {
    start: Instant,
    /// Every tick up to this one has expired. The near level holds later ticks of the same block only.
    done: u64,
    near: Level,
    far: Level,
    /// Head of the list of entries that were already due when they were armed.
    late: u32,
    nodes: Vec<Node<T>>,
    /// Head of the list of unused nodes.
    free: u32,
}

struct Node<T> {
    /// The low half of the tick.
    tick: u32,
    timer: T,
    /// The node before, or [`FIRST_LIST`] and the number of the list; [`NONE`] in an unused node.
    previous: u32,
    next: u32,
}

/// Where the one entry of a timer is, as far as its owner knows: the entry may have expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    /// The low half of the tick.
    tick: u32,
    node: u32,
}

impl Armed {
    /// There is no entry.
    pub const NOT: Self = Self { tick: 0, node: NONE };

    /// An entry of this timer has expired, at this tick. To be told before the halves of ticks repeat, after 198 days.
    pub fn on_expired(&mut self, tick: u64) {
        if self.tick == tick as u32 {
            *self = Self::NOT;
        }
    }
}

impl<T: Copy + PartialEq> TimerWheel<T> {
    /// An empty wheel whose first tick is `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            done: 0,
            near: Level::new(),
            far: Level::new(),
            late: NONE,
            nodes: Vec::new(),
            free: NONE,
        }
    }

    /// Arms `timer` for the first tick that is not before `at`, and returns that tick. With `at` in the past it expires at
    /// the next [`expire`](Self::expire); with `at` more than half a year ahead it expires after half a year.
    pub fn arm(&mut self, at: Instant, timer: T) -> u64 {
        let tick = self.tick(at);
        self.add(tick as u32, timer);
        tick
    }

    /// Makes sure that `timer` expires at the first tick that is not before `at`, or earlier: its one entry, which is the one `armed` knows
    /// of if that has not expired, is moved there unless it is earlier already.
    pub fn arm_by(&mut self, armed: &mut Armed, at: Instant, timer: T) {
        let tick = self.tick(at);
        if armed.node != NONE {
            let armed_tick = self.full_tick(armed.tick);
            // Its memory need not be looked at.
            if self.done < armed_tick && armed_tick <= tick {
                return;
            }
            // An entry that has expired may be another timer's by now, or its memory freed.
            let node = self.nodes.get(armed.node as usize);
            if node.is_some_and(|node| node.previous != NONE && node.timer == timer) {
                if armed_tick > tick {
                    self.remove(armed.node);
                    self.nodes[armed.node as usize].tick = tick as u32;
                    self.place(armed.node);
                    armed.tick = tick as u32;
                }
                return;
            }
        }
        *armed = Armed { tick: tick as u32, node: self.add(tick as u32, timer) };
    }

    fn add(&mut self, tick: u32, timer: T) -> u32 {
        let node = Node { tick, timer, previous: NONE, next: NONE };
        let index = match self.free {
            NONE => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
            index => {
                self.free = self.nodes[index as usize].next;
                self.nodes[index as usize] = node;
                index
            }
        };
        self.place(index);
        index
    }

    /// The tick that [`arm`](Self::arm) would return for `at`.
    pub fn tick(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        let tick = since.as_secs() * TICKS_PER_SECOND
            + u64::from(since.subsec_nanos()).div_ceil(TICK.as_nanos() as u64);
        tick.min(self.done + HORIZON)
    }

    /// The tick whose low half this is. It is unambiguous, as no node is farther away than the horizon.
    fn full_tick(&self, tick: u32) -> u64 {
        self.done.wrapping_add_signed(i64::from(tick.wrapping_sub(self.done as u32) as i32))
    }

    /// When to call [`expire`](Self::expire) next. Never later than the first timer is due, but it can be earlier: once per
    /// entry and 8.7 minutes, to move the entry to the near level. None when no timer is armed.
    pub fn next(&self) -> Option<Instant> {
        let tick = if self.late != NONE {
            self.done
        } else if let Some(tick) = self.next_near() {
            tick
        } else {
            self.next_far()? * SLOTS
        };
        // At most 9 minutes after `done`, so it does not overflow.
        Some(self.start + Duration::from_millis(tick * TICK.as_millis() as u64))
    }

    /// Moves every entry that is due at `now` into `due`, each with the tick that [`arm`](Self::arm) returned: first those
    /// that were already due when armed, then by tick. The cost depends on the entries, not on the ticks that have passed.
    pub fn expire(&mut self, now: Instant, due: &mut Vec<(u64, T)>) {
        let since = now.saturating_duration_since(self.start);
        let now =
            since.as_secs() * TICKS_PER_SECOND + u64::from(since.subsec_nanos()) / TICK.as_nanos() as u64;
        let late = std::mem::replace(&mut self.late, NONE);
        self.push_due(late, due);
        while self.done < now {
            if let Some(tick) = self.next_near() {
                if tick > now {
                    break;
                }
                self.done = tick;
                let list = self.near.take(tick);
                self.push_due(list, due);
            } else if let Some(block) = self.next_far().filter(|block| block * SLOTS <= now) {
                self.done = block * SLOTS;
                self.cascade(block);
                let late = std::mem::replace(&mut self.late, NONE);
                self.push_due(late, due);
            } else {
                break;
            }
        }
        self.done = self.done.max(now);
    }

    /// Frees the memory behind the last entry in use.
    pub fn shrink(&mut self) {
        let mut unused = vec![false; self.nodes.len()];
        let mut list = std::mem::replace(&mut self.free, NONE);
        while list != NONE {
            unused[list as usize] = true;
            list = self.nodes[list as usize].next;
        }
        let used = unused.iter().rposition(|unused| !unused).map_or(0, |last| last + 1);
        self.nodes.truncate(used);
        self.nodes.shrink_to_fit();
        for index in (0..used).filter(|index| unused[*index]) {
            self.nodes[index].next = std::mem::replace(&mut self.free, index as u32);
        }
    }

    /// Entries that are armed and have not expired, including those their owners will ignore.
    #[cfg(test)]
    fn len(&self) -> usize {
        let next = |index: &u32| self.nodes.get(*index as usize).map(|node| node.next);
        let unused = std::iter::successors(Some(self.free), next).take_while(|index| *index != NONE);
        self.nodes.len() - unused.count()
    }

    fn place(&mut self, index: u32) {
        let tick = self.full_tick(self.nodes[index as usize].tick);
        let (block, here) = (tick / SLOTS, self.done / SLOTS);
        let list = if tick <= self.done {
            LATE
        } else if block == here {
            (tick % SLOTS) as u32
        } else {
            FAR + (block.min(here + SLOTS - 1) % SLOTS) as u32
        };
        let next = self.set_first(list, index);
        if let Some(next) = self.nodes.get_mut(next as usize) {
            next.previous = index;
        }
        let node = &mut self.nodes[index as usize];
        (node.previous, node.next) = (FIRST_LIST + list, next);
    }

    /// Takes an entry out of its list.
    fn remove(&mut self, index: u32) {
        let Node { previous, next, .. } = self.nodes[index as usize];
        match previous.checked_sub(FIRST_LIST) {
            Some(list) => drop(self.set_first(list, next)),
            None => self.nodes[previous as usize].next = next,
        }
        if let Some(next) = self.nodes.get_mut(next as usize) {
            next.previous = previous;
        }
    }

    /// Returns what was the first entry of the list before.
    fn set_first(&mut self, list: u32, index: u32) -> u32 {
        match list {
            LATE => std::mem::replace(&mut self.late, index),
            FAR.. => self.far.set_first(list - FAR, index),
            _ => self.near.set_first(list, index),
        }
    }

    fn push_due(&mut self, mut list: u32, due: &mut Vec<(u64, T)>) {
        while list != NONE {
            let tick = self.full_tick(self.nodes[list as usize].tick);
            let node = &mut self.nodes[list as usize];
            due.push((tick, node.timer));
            node.previous = NONE;
            let next = std::mem::replace(&mut node.next, self.free);
            self.free = std::mem::replace(&mut list, next);
        }
    }

    /// Places the entries of far slot `block` again, now that the block has begun.
    fn cascade(&mut self, block: u64) {
        let mut list = self.far.take(block);
        while list != NONE {
            let next = self.nodes[list as usize].next;
            self.place(list);
            list = next;
        }
    }

    fn next_near(&self) -> Option<u64> {
        let tick = self.near.next_after(self.done)?;
        (tick / SLOTS == self.done / SLOTS).then_some(tick)
    }

    fn next_far(&self) -> Option<u64> {
        self.far.next_after(self.done / SLOTS)
    }
}

/// 256 list heads, and a bitmap of the non-empty ones.
struct Level {
    heads: [u32; SLOTS as usize],
    occupied: [u64; 4],
}

impl Level {
    fn new() -> Self {
        Self { heads: [NONE; SLOTS as usize], occupied: [0; 4] }
    }

    /// Sets the head of the list in this slot, and returns the one before.
    fn set_first(&mut self, slot: u32, head: u32) -> u32 {
        let slot = slot as usize;
        self.occupied[slot / 64] &= !(1 << (slot % 64));
        self.occupied[slot / 64] |= u64::from(head != NONE) << (slot % 64);
        std::mem::replace(&mut self.heads[slot], head)
    }

    /// Empties the list at `position` and returns its old head.
    fn take(&mut self, position: u64) -> u32 {
        self.set_first((position % SLOTS) as u32, NONE)
    }

    /// The first non-empty position among the 255 that follow `position`.
    fn next_after(&self, position: u64) -> Option<u64> {
        let mut at = position + 1;
        while at < position + SLOTS {
            let slot = (at % SLOTS) as usize;
            let ahead = self.occupied[slot / 64] >> (slot % 64);
            if ahead != 0 {
                // The slot of `position` itself is always empty, so the result is less than 256 away.
                return Some(at + u64::from(ahead.trailing_zeros()));
            }
            at += 64 - (slot % 64) as u64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_timer_expires_at_its_tick_and_not_before() {
        let start = Instant::now();
        // Requested delay, expected tick: on both sides of the bounds of ticks, blocks and the far level.
        let table = [
            (0, 0),
            (1, 1),
            (8, 1),
            (9, 2),
            (2_039, 255),
            (2_040, 255),
            (2_041, 256),
            (2_048, 256),
            (2_049, 257),
            (524_287, 65_536),
            (524_288, 65_536),
            (524_289, 65_537),
            (36_000_000, 4_500_000),
        ];
        for (delay, tick) in table {
            let mut wheel = TimerWheel::new(start);
            let mut due = Vec::new();
            assert_eq!(wheel.arm(start + ms(delay), 'a'), tick, "{delay} ms");
            if tick > 0 {
                wheel.expire(start + ms(tick * 8) - Duration::from_nanos(1), &mut due);
                assert_eq!(due, [], "{delay} ms expired early");
            }
            wheel.expire(start + ms(tick * 8), &mut due);
            assert_eq!(due, [(tick, 'a')], "{delay} ms");
            assert!(wheel.len() == 0 && wheel.next().is_none());
        }
    }

    #[test]
    fn a_timer_in_the_past_expires_at_the_next_call_even_in_the_same_tick() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let now = start + ms(10_000);
        let mut due = Vec::new();
        wheel.expire(now, &mut due);
        let tick = wheel.arm(start + ms(4), 1);
        assert!(wheel.next().is_some_and(|at| at <= now));
        wheel.expire(now, &mut due);
        assert_eq!(due, [(tick, 1)]);
    }

    #[test]
    fn times_before_the_start_are_handled() {
        let start = Instant::now() + ms(1_000);
        let mut wheel = TimerWheel::new(start);
        let mut due = Vec::new();
        wheel.expire(start - ms(500), &mut due);
        assert_eq!(wheel.arm(start - ms(900), 1), 0);
        wheel.expire(start - ms(500), &mut due);
        assert_eq!(due, [(0, 1)]);
    }

    #[test]
    fn following_next_reaches_a_far_timer_in_few_steps() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let at = start + Duration::from_secs(10 * 3_600) + ms(3);
        wheel.arm(at, ());
        let (mut due, mut steps) = (Vec::new(), 0);
        while let Some(now) = wheel.next() {
            assert!(due.is_empty() && now < at + TICK);
            wheel.expire(now, &mut due);
            steps += 1;
        }
        assert_eq!(due.len(), 1);
        assert!(steps < 80, "{steps} wake-ups for one timer in ten hours");
    }

    #[test]
    fn shrink_frees_memory_and_keeps_armed_timers() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        for n in 0..1_000 {
            wheel.arm(start + ms(if n == 10 { 900_000 } else { 100 }), n);
        }
        let mut due = Vec::new();
        wheel.expire(start + ms(200), &mut due);
        wheel.shrink();
        assert_eq!((due.len(), wheel.nodes.len(), wheel.len()), (999, 11, 1));
        // The free nodes are used again.
        for n in 0..10 {
            wheel.arm(start + ms(300), 2_000 + n);
        }
        assert_eq!(wheel.nodes.len(), 11);
        due.clear();
        wheel.expire(start + ms(1_000_000), &mut due);
        assert_eq!((due.len(), due.last().map(|(_, n)| *n)), (11, Some(10)));
    }

    #[test]
    fn an_entry_is_moved_when_its_deadline_comes_earlier() {
        let start = Instant::now();
        let (mut wheel, mut due, mut armed) = (TimerWheel::new(start), Vec::new(), Armed::NOT);
        // From the far level's last slot to the far level, the near level, and to what is due.
        for at in [900_000, 900_000, 950_000, 60_000, 1_000, 500, 1_000, 0] {
            wheel.arm_by(&mut armed, start + ms(at), 'a');
            assert_eq!(wheel.nodes.len(), 1, "{at}");
        }
        wheel.expire(start, &mut due);
        assert_eq!((due.split_off(0), wheel.next()), (vec![(0, 'a')], None));
        // Its node is another timer's now.
        wheel.arm(start + ms(80), 'b');
        wheel.arm_by(&mut armed, start + ms(40), 'a');
        wheel.arm_by(&mut armed, start + ms(24), 'a');
        wheel.expire(start + ms(100), &mut due);
        assert_eq!(due, [(3, 'a'), (10, 'b')]);
        // Its node is gone.
        wheel.shrink();
        wheel.arm_by(&mut armed, start + ms(200), 'a');
        wheel.expire(start + ms(200), &mut due);
        assert_eq!(due.last(), Some(&(25, 'a')));
    }

    #[test]
    fn nodes_are_used_again() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let mut due = Vec::new();
        for i in 0..1_000 {
            let now = start + ms(i * 100);
            for n in 0..10 {
                wheel.arm(now + ms(50 + n), n);
            }
            due.clear();
            wheel.expire(now, &mut due);
            assert!(wheel.len() <= 10);
        }
        assert!(wheel.nodes.len() <= 20, "{} nodes", wheel.nodes.len());
    }

    /// Timers that each have one entry, which is moved.
    const MOVED: usize = 4;

    #[derive(Clone, Debug)]
    enum Step {
        /// Arm this long from now, or before now when negative (milliseconds).
        Arm(i64),
        /// The one entry of this timer, by so long from now.
        ArmBy(usize, u64),
        /// Let this much time pass, microseconds.
        Sleep(u64),
        /// Sleep exactly until `next()`.
        Follow,
        Shrink,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (-100i64..5_000).prop_map(Step::Arm),
            1 => (0i64..2_000_000).prop_map(Step::Arm),
            1 => (0i64..40_000_000).prop_map(Step::Arm),
            4 => (0..MOVED, 0u64..5_000).prop_map(|(timer, delay)| Step::ArmBy(timer, delay)),
            2 => (0..MOVED, 0u64..2_000_000).prop_map(|(timer, delay)| Step::ArmBy(timer, delay)),
            3 => (0u64..300_000).prop_map(Step::Sleep),
            1 => (0u64..600_000_000).prop_map(Step::Sleep),
            1 => (0u64..20_000_000_000).prop_map(Step::Sleep),
            3 => Just(Step::Follow),
            1 => Just(Step::Shrink),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn behaves_like_a_sorted_list(steps in prop::collection::vec(step(), 1..120)) {
            let start = Instant::now();
            let mut now = start;
            let mut wheel = TimerWheel::new(start);
            // Armed timers: (tick, number). One is due when its tick has passed.
            let mut model: Vec<(u64, u32)> = Vec::new();
            let mut number = MOVED as u32;
            let mut armed = [Armed::NOT; MOVED];
            for step in steps {
                match step {
                    Step::Arm(delay) => {
                        let at = if delay < 0 { now.checked_sub(ms(delay.unsigned_abs())).unwrap_or(now) } else { now + ms(delay as u64) };
                        let tick = wheel.arm(at, number);
                        prop_assert!(start + ms(tick * 8) >= at, "expires too early");
                        prop_assert!(start + ms(tick * 8) < at.max(start) + TICK, "expires more than a tick late");
                        model.push((tick, number));
                        number += 1;
                        continue;
                    }
                    Step::ArmBy(timer, delay) => {
                        let at = now + ms(delay);
                        wheel.arm_by(&mut armed[timer], at, timer as u32);
                        let tick = wheel.tick(at);
                        match model.iter_mut().find(|(_, number)| *number == timer as u32) {
                            Some((earlier, _)) => *earlier = tick.min(*earlier),
                            None => model.push((tick, timer as u32)),
                        }
                        prop_assert_eq!(wheel.len(), model.len());
                        continue;
                    }
                    Step::Shrink => {
                        wheel.shrink();
                        continue;
                    }
                    Step::Sleep(micros) => now += Duration::from_micros(micros),
                    Step::Follow => now = wheel.next().map_or(now, |at| at.max(now)),
                }
                let mut due = Vec::new();
                wheel.expire(now, &mut due);
                let elapsed = (now - start).as_millis() as u64 / 8;
                let (mut expected, rest): (Vec<_>, Vec<_>) = model.into_iter().partition(|entry| entry.0 <= elapsed);
                model = rest;
                due.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(due, expected);
                prop_assert_eq!(wheel.len(), model.len());
                match (wheel.next(), model.iter().map(|entry| entry.0).min()) {
                    (None, None) => {}
                    (Some(at), Some(tick)) => {
                        prop_assert!(at <= start + ms(tick * 8), "next() is too late");
                        prop_assert!(at > now, "next() would spin");
                    }
                    (next, tick) => prop_assert!(false, "next() {:?} but the first tick is {:?}", next, tick),
                }
            }
        }
    }
}
