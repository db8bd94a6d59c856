//! Frames for other gateways, bundled: Redis spends as much on a message of 200 bytes as on one of 4,000.

use std::collections::BTreeMap;

use super::GatewayId;
use super::frame::{Frame, HEADER_LEN};

/// The most bytes of a bundle of several frames.
const BUNDLE_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct FrameBundles {
    bundles: BTreeMap<GatewayId, Vec<u8>>,
    bytes: usize,
}

impl FrameBundles {
    /// Adds a frame to the bundle for this gateway. Returns the bundle before when there is no room in it, which must be sent first.
    pub(super) fn add(&mut self, to: GatewayId, frame: &Frame<'_>) -> Option<Vec<u8>> {
        let bundle = self.bundles.entry(to).or_default();
        let len = HEADER_LEN + frame.payload.len();
        let full = (!bundle.is_empty() && bundle.len() + len > BUNDLE_MAX).then(|| std::mem::take(bundle));
        frame.write(bundle);
        self.bytes = self.bytes + len - full.as_ref().map_or(0, Vec::len);
        full
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All bundles, each for one gateway.
    pub(super) fn take(&mut self) -> BTreeMap<GatewayId, Vec<u8>> {
        self.bytes = 0;
        std::mem::take(&mut self.bundles)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_bundled_up_to_4_kib_and_keep_their_order() {
        let mut bundles = FrameBundles::default();
        let payload = [7; 1000];
        let frame = |id| Frame { from: GatewayId(1), kind: 20, id, payload: &payload };
        let mut sent = Vec::new();
        for id in 0..10 {
            sent.extend(bundles.add(GatewayId(2), &frame(id)));
        }
        assert_eq!(bundles.add(GatewayId(3), &frame(10)), None);
        assert_eq!(bundles.bytes(), 3 * 1024);
        assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [4096, 4096]);
        let rest = bundles.take();
        assert_eq!(rest.values().map(Vec::len).collect::<Vec<_>>(), [2048, 1024]);
        assert_eq!((bundles.bytes(), bundles.take().len()), (0, 0));
        sent.push(rest[&GatewayId(2)].clone());
        let all = sent.concat();
        let mut message = &all[..];
        let ids: Vec<_> =
            std::iter::from_fn(|| crate::cluster::frame::take(&mut message)).map(|frame| frame.id).collect();
        assert_eq!(ids, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_frame_is_a_bundle_of_its_own() {
        let mut bundles = FrameBundles::default();
        let long = vec![1; 100_000];
        let frame = |payload| Frame { from: GatewayId(1), kind: 20, id: 1, payload };
        assert_eq!(bundles.add(GatewayId(2), &frame(b"x")), None);
        assert_eq!(bundles.add(GatewayId(2), &frame(&long)).unwrap().len(), 25);
        assert_eq!(bundles.add(GatewayId(2), &frame(b"x")).unwrap().len(), 100_024);
    }
}
