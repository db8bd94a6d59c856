//! A queue of texts in one piece of memory. Hundreds of texts of different sizes that live for long, each allocated by itself, leave
//! gaps between what else is allocated when they are replaced.

use std::collections::VecDeque;

/// Texts, the oldest first, with what is known of each.
#[derive(Debug)]
pub(crate) struct TextRing<T> {
    bytes: VecDeque<u8>,
    /// With the end of the text, counted from the first byte there ever was.
    items: VecDeque<(T, u64)>,
    /// The bytes of texts that were removed.
    removed: u64,
}

impl<T> TextRing<T> {
    pub(crate) const fn new() -> Self {
        Self { bytes: VecDeque::new(), items: VecDeque::new(), removed: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The bytes of all texts.
    pub(crate) fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn push(&mut self, item: T, text: &[u8]) {
        self.bytes.extend(text);
        self.items.push_back((item, self.removed + self.bytes.len() as u64));
    }

    pub(crate) fn remove_oldest(&mut self) {
        let Some((_, end)) = self.items.pop_front() else { return };
        self.bytes.drain(..(end - self.removed) as usize);
        self.removed = end;
    }

    /// What is known of each text.
    pub(crate) fn items(&self) -> impl DoubleEndedIterator<Item = &T> + ExactSizeIterator {
        self.items.iter().map(|(item, _)| item)
    }

    /// The text at this place; the oldest one is at 0.
    pub(crate) fn text(&self, place: usize) -> Vec<u8> {
        let end_of = |place: usize| self.items.get(place).map_or(self.removed, |(_, end)| *end);
        let start = place.checked_sub(1).map_or(self.removed, end_of);
        let range = (start - self.removed) as usize..(end_of(place).max(start) - self.removed) as usize;
        self.bytes.range(range).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_that_are_left_stay_as_they_are() {
        let mut ring = TextRing::new();
        let texts: Vec<Vec<u8>> = (0..200).map(|n| vec![n as u8; n * 7 % 50]).collect();
        for (n, text) in texts.iter().enumerate() {
            ring.push(n, text);
            if ring.len() > 20 {
                ring.remove_oldest();
            }
            let kept: Vec<_> = ring.items().copied().collect();
            assert_eq!(kept, (n.saturating_sub(19)..=n).collect::<Vec<_>>());
            assert_eq!(ring.byte_len(), kept.iter().map(|n| texts[*n].len()).sum::<usize>());
            for (place, n) in kept.into_iter().enumerate() {
                assert_eq!(ring.text(place), texts[n]);
            }
        }
        (0..30).for_each(|_| ring.remove_oldest());
        assert_eq!((ring.len(), ring.byte_len(), ring.text(0)), (0, 0, Vec::new()));
        ring.push(7, b"again");
        assert_eq!((ring.text(0), ring.text(1)), (b"again".to_vec(), Vec::new()));
    }
}
