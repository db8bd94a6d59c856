//! The ids of the gateway's own JSON-RPC requests to devices.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The number of ids. The last id is `i32::MAX`, since devices read ids as int32.
const COUNT: u32 = 0x4000_0000;

/// Generates ids that are unique among the requests of all devices and workers of the process, so that a late response is never
/// matched with another request. After 2^30 ids it starts again with the first one.
#[derive(Debug, Default)]
pub struct RequestIds {
    /// The offset of the next id from the first one. From the second round on it is `COUNT` or more.
    next: AtomicU32,
}

impl RequestIds {
    /// The first id, larger than those that chat servers and devices choose.
    pub const FIRST: u32 = 0x4000_0000;

    /// Starts with the first id.
    pub const fn new() -> Self {
        Self { next: AtomicU32::new(0) }
    }

    /// The next id.
    pub fn issue(&self) -> u32 {
        let following = |next| Some(if next == 2 * COUNT - 1 { COUNT } else { next + 1 });
        let (Ok(next) | Err(next)) = self.next.fetch_update(Relaxed, Relaxed, following);
        Self::FIRST + next % COUNT
    }

    /// Whether this id was given to a request.
    pub fn is_issued(&self, id: u32) -> bool {
        Self::contains(id) && id - Self::FIRST < self.next.load(Relaxed)
    }

    /// Whether this id belongs to the range of this generator.
    pub fn contains(id: u32) -> bool {
        (Self::FIRST..=Self::FIRST + (COUNT - 1)).contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u32 = RequestIds::FIRST;
    const LAST: u32 = i32::MAX as u32;

    #[test]
    fn ids_count_up_to_the_largest_int32_and_start_again() {
        let ids = RequestIds { next: AtomicU32::new(COUNT - 1) };
        assert!(!ids.is_issued(LAST) && ids.is_issued(LAST - 1));
        for round in 0..3 {
            assert_eq!([ids.issue(), ids.issue(), ids.issue()], [LAST, FIRST, FIRST + 1], "{round}");
            assert!([FIRST, FIRST + 2, LAST].into_iter().all(|id| ids.is_issued(id)), "{round}");
            ids.next.store(2 * COUNT - 1, Relaxed);
        }
    }

    #[test]
    fn issued_ids_are_recognised() {
        let ids = RequestIds::new();
        assert!(!ids.is_issued(FIRST));
        assert_eq!([ids.issue(), ids.issue()], [FIRST, FIRST + 1]);
        for (id, issued) in
            [(0, false), (FIRST - 1, false), (FIRST, true), (FIRST + 1, true), (FIRST + 2, false)]
        {
            assert_eq!(ids.is_issued(id), issued, "{id}");
        }
        assert!(!ids.is_issued(LAST + 1) && !ids.is_issued(u32::MAX));
        assert!(RequestIds::contains(LAST) && !RequestIds::contains(LAST + 1));
    }
}
