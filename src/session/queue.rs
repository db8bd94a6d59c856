//! Bounded queues: one of text, and one of text and audio in order of arrival.

use std::collections::VecDeque;

/// Texts that a queue holds.
const MAX_TEXTS: usize = 128;
/// Bytes of text that a queue holds.
const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Audio frames that a queue holds: 15 s of 60 ms frames, longer than a device waits for its hello reply.
const MAX_FRAMES: usize = 256;

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

/// A message of the chat server that has to wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeldItem {
    /// A text as the server sent it, and whether it is `tts start`.
    Text { text: Box<str>, tts_start: bool },
    /// A binary frame as the server sent it.
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
    frame_bytes: usize,
}

impl HeldQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|held| held.items.is_empty())
    }

    /// The bytes of the held texts and frames.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.text_bytes + held.frame_bytes)
    }

    pub(super) fn front(&self) -> Option<&HeldItem> {
        self.0.as_ref()?.items.front()
    }

    pub(super) fn push_text(&mut self, text: &str, tts_start: bool) -> Result<(), QueueOverflow> {
        let held = self.0.get_or_insert_default();
        if held.texts >= MAX_TEXTS || held.text_bytes + text.len() > MAX_TEXT_BYTES {
            return Err(QueueOverflow);
        }
        held.texts += 1;
        held.text_bytes += text.len();
        held.items.push_back(HeldItem::Text { text: text.into(), tts_start });
        Ok(())
    }

    /// False if the queue is full: the new frame is dropped.
    pub(super) fn push_frame(&mut self, frame: &[u8]) -> bool {
        let held = self.0.get_or_insert_default();
        if held.frames >= MAX_FRAMES {
            return false;
        }
        held.frames += 1;
        held.frame_bytes += frame.len();
        held.items.push_back(HeldItem::Frame(frame.into()));
        true
    }

    pub(super) fn pop(&mut self) -> Option<HeldItem> {
        let held = self.0.as_mut()?;
        let item = held.items.pop_front()?;
        match &item {
            HeldItem::Text { text, .. } => {
                held.texts -= 1;
                held.text_bytes -= text.len();
            }
            HeldItem::Frame(frame) => {
                held.frames -= 1;
                held.frame_bytes -= frame.len();
            }
        }
        if held.items.is_empty() {
            self.0 = None;
        }
        Some(item)
    }

    /// Drops every frame, keeps the texts, and returns the number of dropped frames.
    pub(super) fn drop_frames(&mut self) -> usize {
        let Some(held) = &mut self.0 else { return 0 };
        held.items.retain(|item| matches!(item, HeldItem::Text { .. }));
        held.frame_bytes = 0;
        std::mem::take(&mut held.frames)
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

    #[test]
    fn held_frames_are_bounded_and_text_keeps_its_order() {
        let mut held = HeldQueue::default();
        held.push_text("a", true).unwrap();
        for _ in 0..MAX_FRAMES {
            assert!(held.push_frame(b"f"));
        }
        assert!(!held.push_frame(b"f"));
        held.push_text("b", false).unwrap();
        assert_eq!(held.drop_frames(), MAX_FRAMES);
        assert_eq!(held.pop(), Some(HeldItem::Text { text: "a".into(), tts_start: true }));
        assert_eq!(held.pop(), Some(HeldItem::Text { text: "b".into(), tts_start: false }));
        assert!(held.is_empty() && held.push_frame(b"f"));
    }

    #[test]
    fn held_texts_are_bounded_in_number_and_bytes() {
        let mut held = HeldQueue::default();
        for _ in 0..MAX_TEXTS {
            held.push_text("{}", false).unwrap();
        }
        assert_eq!(held.push_text("{}", false), Err(QueueOverflow));
        let mut held = HeldQueue::default();
        assert_eq!(held.push_text(&"x".repeat(MAX_TEXT_BYTES + 1), false), Err(QueueOverflow));
        held.push_text("x", false).unwrap();
        assert_eq!(held.push_text(&"x".repeat(MAX_TEXT_BYTES), false), Err(QueueOverflow));
        held.push_text(&"x".repeat(MAX_TEXT_BYTES - 1), false).unwrap();
        assert_eq!((held.bytes(), held.push_text("x", false)), (MAX_TEXT_BYTES, Err(QueueOverflow)));
    }

    #[test]
    fn queued_bytes_are_counted_and_memory_is_freed() {
        let mut texts = TextQueue::default();
        assert_eq!(texts.bytes(), 0);
        texts.push("four").unwrap();
        texts.push("and more").unwrap();
        assert_eq!(texts.bytes(), 12);
        texts.take();
        assert_eq!(texts.bytes(), 0);

        let mut held = HeldQueue::default();
        assert_eq!(held.bytes(), 0);
        held.push_text("four", false).unwrap();
        held.push_frame(b"seven b");
        held.push_frame(b"two");
        assert_eq!(held.bytes(), 14);
        held.pop();
        held.pop();
        assert_eq!(held.bytes(), 3);
        held.push_text("text", false).unwrap();
        assert_eq!((held.drop_frames(), held.bytes()), (1, 4));
        held.pop();
        assert!(held.0.is_none());
    }

    #[test]
    fn popped_items_make_room() {
        let mut held = HeldQueue::default();
        held.push_text("x", false).unwrap();
        held.push_text(&"x".repeat(MAX_TEXT_BYTES - 1), false).unwrap();
        held.pop();
        held.push_text("x", false).unwrap();
        assert_eq!(held.push_text("x", false), Err(QueueOverflow));

        let mut held = HeldQueue::default();
        (0..MAX_TEXTS).for_each(|_| held.push_text("", false).unwrap());
        held.pop();
        held.push_text("", false).unwrap();
        assert_eq!(held.push_text("", false), Err(QueueOverflow));

        let mut held = HeldQueue::default();
        (0..MAX_FRAMES).for_each(|_| assert!(held.push_frame(b"f")));
        held.pop();
        assert_eq!(held.bytes(), MAX_FRAMES - 1);
        assert!(held.push_frame(b"f") && !held.push_frame(b"f"));
    }
}
