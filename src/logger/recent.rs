//! The last lines of the log, in memory, for the management API: what a person sees who cannot read the log itself.

use log::Level;

use crate::text_ring::TextRing;

/// Lines that are kept, and their bytes: the oldest make room.
const MAX_LINES: usize = 500;
const MAX_BYTES: usize = 512 * 1024;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentLine {
    /// Counts from 1 at the start of the process.
    pub id: u64,
    /// Its level.
    pub level: Level,
    /// The line as it was written, with the line feed.
    pub line: Vec<u8>,
}

/// A bounded list of lines.
pub(super) struct RecentLines {
    lines: TextRing<Level>,
    last_id: u64,
}

impl RecentLines {
    pub(super) const fn new() -> Self {
        Self { lines: TextRing::new(), last_id: 0 }
    }

    pub(super) fn push(&mut self, level: Level, line: &[u8]) {
        self.last_id += 1;
        while self.lines.len() > 0
            && (self.lines.len() == MAX_LINES || self.lines.byte_len() + line.len() > MAX_BYTES)
        {
            self.lines.remove_oldest();
        }
        self.lines.push(level, line);
    }

    /// The lines behind this id, of this level or a more serious one, and the id of the last line. An id that is not reached yet is
    /// one of an earlier process: all lines are new then.
    pub(super) fn after(&self, id: u64, level: Level) -> (u64, Vec<RecentLine>) {
        let after = if id > self.last_id { 0 } else { id };
        let ids = self.last_id - self.lines.len() as u64 + 1..;
        let lines = self.lines.items().zip(ids).enumerate();
        let wanted = lines.filter(|(_, (of, id))| *id > after && **of <= level);
        let line = |(place, (level, id)): (usize, (&Level, u64))| RecentLine {
            id,
            level: *level,
            line: self.lines.text(place),
        };
        (self.last_id, wanted.map(line).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(lines: &RecentLines, after: u64, level: Level) -> (u64, Vec<u64>) {
        let (last, found) = lines.after(after, level);
        (last, found.iter().map(|line| line.id).collect())
    }

    #[test]
    fn lines_are_selected_by_level_and_place() {
        let mut lines = RecentLines::new();
        assert_eq!(ids(&lines, 0, Level::Trace), (0, vec![]));
        for level in [Level::Info, Level::Warn, Level::Debug, Level::Error] {
            lines.push(level, b"x\n");
        }
        assert_eq!(ids(&lines, 0, Level::Trace), (4, vec![1, 2, 3, 4]));
        assert_eq!(ids(&lines, 0, Level::Warn), (4, vec![2, 4]));
        assert_eq!(ids(&lines, 2, Level::Info), (4, vec![4]));
        assert_eq!(ids(&lines, 4, Level::Trace), (4, vec![]));
        // Of an earlier process.
        assert_eq!(ids(&lines, 99, Level::Error), (4, vec![4]));
    }

    #[test]
    fn lines_and_their_bytes_are_bounded() {
        let mut lines = RecentLines::new();
        (0..MAX_LINES + 7).for_each(|_| lines.push(Level::Info, b"x\n"));
        let (last, kept) = ids(&lines, 0, Level::Info);
        assert_eq!((last, kept.len(), kept[0]), (MAX_LINES as u64 + 7, MAX_LINES, 8));
        (0..100).for_each(|_| lines.push(Level::Info, &[b'x'; 16 * 1024]));
        assert_eq!((lines.lines.len(), lines.lines.byte_len()), (32, MAX_BYTES));
    }
}
