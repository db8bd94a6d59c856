//! Bounded queues: one of text, and one of text and audio in order of arrival.

use std::collections::VecDeque;

/// Texts that a queue holds.
const MAX_TEXTS: usize = 128;
/// Bytes of text that a queue holds.
const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Texts that wait among audio: a reply of five minutes has one per sentence.
const MAX_HELD_TEXTS: usize = 512;

/// A text does not fit into its queue: the call ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueOverflow;

/// Texts for a peer that is not connected. Most calls need none, so an empty queue takes 8 bytes.
#[derive(Debug, Default)]
pub(super) struct TextQueue(Option<Box<QueuedTexts>>);

#[derive(Debug, Default)]
struct QueuedTexts {
    texts: VecDeque<Box<str>>,
    bytes: usize,
}

impl TextQueue {
    pub(super) fn push(&mut self, text: &str) -> Result<(), QueueOverflow> {
        let queued = self.0.get_or_insert_default();
        if queued.texts.len() >= MAX_TEXTS || queued.bytes + text.len() > MAX_TEXT_BYTES {
            return Err(QueueOverflow);
        }
        queued.bytes += text.len();
        queued.texts.push_back(text.into());
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|queued| queued.texts.is_empty())
    }

    /// The bytes of the queued texts.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |queued| queued.bytes)
    }

    /// Empties the queue and frees its memory.
    pub(super) fn take(&mut self) -> VecDeque<Box<str>> {
        self.0.take().map(|queued| queued.texts).unwrap_or_default()
    }
}

/// What a `tts` message means for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    Start,
    Stop,
    /// A text that is shown while the speech goes on.
    Other,
}

/// A message of the chat server that has to wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeldItem {
    /// A text as the server sent it; for `tts`, what it means.
    Text { text: Box<str>, speech: Option<Speech> },
    /// An Opus packet with its timestamp.
    Packet { timestamp: u32, opus: Box<[u8]> },
    /// A binary frame as the server sent it, while the server's framing is not known.
    Frame(Box<[u8]>),
}

/// Text and audio of the chat server, in order of arrival. Most calls need none, so an empty queue takes 8 bytes.
#[derive(Debug, Default)]
pub(super) struct HeldQueue(Option<Box<HeldItems>>);

#[derive(Debug, Default)]
struct HeldItems {
    items: VecDeque<HeldItem>,
    texts: usize,
    text_bytes: usize,
    frames: usize,
    bytes: usize,
}

impl HeldItem {
    fn is_audio(&self) -> bool {
        !matches!(self, Self::Text { .. })
    }

    /// The bytes that it takes in the queue.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Text { text, .. } => text.len(),
                Self::Packet { opus: bytes, .. } | Self::Frame(bytes) => bytes.len(),
            }
    }
}

impl HeldQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The bytes of what is held.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.bytes)
    }

    /// The number of frames that are held.
    pub(super) fn frames(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.frames)
    }

    pub(super) fn front(&self) -> Option<&HeldItem> {
        self.0.as_ref()?.items.front()
    }

    /// Whether speech goes on after what is held, if any of it says so.
    pub(super) fn speech_goes_on(&self) -> Option<bool> {
        let items = self.0.as_ref()?.items.iter().rev();
        items.into_iter().find_map(|item| match item {
            HeldItem::Text { speech: Some(Speech::Start), .. } => Some(true),
            HeldItem::Text { speech: Some(Speech::Stop), .. } => Some(false),
            _ => None,
        })
    }

    pub(super) fn push_text(&mut self, text: &str, speech: Option<Speech>) -> Result<(), QueueOverflow> {
        let (texts, bytes) = self.0.as_ref().map_or((0, 0), |held| (held.texts, held.text_bytes));
        if texts >= MAX_HELD_TEXTS || bytes + text.len() > MAX_TEXT_BYTES {
            return Err(QueueOverflow);
        }
        self.push(HeldItem::Text { text: text.into(), speech });
        Ok(())
    }

    pub(super) fn push(&mut self, item: HeldItem) {
        let held = self.0.get_or_insert_default();
        held.bytes += item.bytes();
        match &item {
            HeldItem::Text { text, .. } => {
                (held.texts, held.text_bytes) = (held.texts + 1, held.text_bytes + text.len())
            }
            _ => held.frames += 1,
        }
        held.items.push_back(item);
    }

    pub(super) fn pop(&mut self) -> Option<HeldItem> {
        let held = self.0.as_mut()?;
        let item = held.items.pop_front()?;
        held.bytes -= item.bytes();
        match &item {
            HeldItem::Text { text, .. } => {
                (held.texts, held.text_bytes) = (held.texts - 1, held.text_bytes - text.len())
            }
            _ => held.frames -= 1,
        }
        if held.items.is_empty() {
            self.0 = None;
        }
        Some(item)
    }

    /// Moves all of `other` behind what is held.
    pub(super) fn append(&mut self, other: &mut Self) {
        while let Some(item) = other.pop() {
            self.push(item);
        }
    }

    /// Replaces each item by what `change` makes of it, in order.
    pub(super) fn change(&mut self, change: impl FnMut(HeldItem) -> Option<HeldItem>) {
        let held = std::mem::take(self);
        let items = held.0.map(|held| held.items).unwrap_or_default();
        items.into_iter().filter_map(change).for_each(|item| self.push(item));
    }

    /// Drops every frame, keeps the texts, and returns the number of dropped frames.
    pub(super) fn drop_frames(&mut self) -> usize {
        let frames = self.frames();
        if frames > 0 {
            self.change(|item| (!item.is_audio()).then_some(item));
        }
        frames
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_bounded_in_number_and_bytes() {
        let mut texts = TextQueue::default();
        for _ in 0..MAX_TEXTS {
            texts.push("{}").unwrap();
        }
        assert_eq!(texts.push("{}"), Err(QueueOverflow));
        assert_eq!(texts.take().len(), MAX_TEXTS);
        assert_eq!(texts.push(&"x".repeat(MAX_TEXT_BYTES + 1)), Err(QueueOverflow));
        texts.push(&"x".repeat(MAX_TEXT_BYTES)).unwrap();
        assert_eq!(texts.push("x"), Err(QueueOverflow));
    }

    fn packet(len: usize) -> HeldItem {
        HeldItem::Packet { timestamp: 1, opus: vec![8; len].into() }
    }

    #[test]
    fn held_texts_are_bounded_in_number_and_bytes_and_popped_ones_make_room() {
        let mut held = HeldQueue::default();
        for _ in 0..MAX_HELD_TEXTS {
            held.push_text("{}", None).unwrap();
        }
        assert_eq!(held.push_text("{}", None), Err(QueueOverflow));
        held.pop();
        held.push_text("{}", None).unwrap();
        assert_eq!(held.push_text("{}", None), Err(QueueOverflow));

        let mut held = HeldQueue::default();
        assert_eq!(held.push_text(&"x".repeat(MAX_TEXT_BYTES + 1), None), Err(QueueOverflow));
        held.push_text("x", None).unwrap();
        assert_eq!(held.push_text(&"x".repeat(MAX_TEXT_BYTES), None), Err(QueueOverflow));
        held.push_text(&"x".repeat(MAX_TEXT_BYTES - 1), None).unwrap();
        assert_eq!(held.push_text("x", None), Err(QueueOverflow));
        held.push(packet(9));
        held.pop();
        held.push_text("x", None).unwrap();
    }

    #[test]
    fn bytes_and_frames_are_counted_in_order_and_memory_is_freed() {
        let mut texts = TextQueue::default();
        assert_eq!(texts.bytes(), 0);
        texts.push("four").unwrap();
        texts.push("and more").unwrap();
        assert_eq!(texts.bytes(), 12);
        texts.take();
        assert_eq!(texts.bytes(), 0);

        let (mut held, item) = (HeldQueue::default(), size_of::<HeldItem>());
        held.push_text("four", Some(Speech::Start)).unwrap();
        held.push(packet(7));
        held.push(HeldItem::Frame(Box::from(&b"two"[..])));
        held.push_text("b", None).unwrap();
        assert_eq!((held.bytes(), held.frames()), (15 + 4 * item, 2));
        assert_eq!(held.pop(), Some(HeldItem::Text { text: "four".into(), speech: Some(Speech::Start) }));
        assert_eq!((held.drop_frames(), held.bytes()), (2, 1 + item));
        held.pop();
        assert!(held.is_empty() && held.bytes() == 0 && held.pop().is_none());
    }

    #[test]
    fn the_last_speech_text_says_whether_speech_goes_on() {
        let mut held = HeldQueue::default();
        assert_eq!(held.speech_goes_on(), None);
        for (speech, goes_on) in [
            (None, None),
            (Some(Speech::Other), None),
            (Some(Speech::Stop), Some(false)),
            (Some(Speech::Start), Some(true)),
            (Some(Speech::Other), Some(true)),
        ] {
            held.push_text("", speech).unwrap();
            assert_eq!(held.speech_goes_on(), goes_on, "{speech:?}");
        }
    }

    #[test]
    fn changed_items_keep_their_order() {
        let mut held = HeldQueue::default();
        held.push(HeldItem::Frame(Box::from(&b"a"[..])));
        held.push_text("t", None).unwrap();
        held.push(HeldItem::Frame(Box::from(&b""[..])));
        held.change(|item| match item {
            HeldItem::Frame(frame) => (!frame.is_empty()).then(|| packet(frame.len())),
            text => Some(text),
        });
        assert_eq!(held.frames(), 1);
        assert_eq!(held.pop(), Some(packet(1)));
        assert_eq!(held.pop(), Some(HeldItem::Text { text: "t".into(), speech: None }));
        assert!(held.is_empty());
    }
}
