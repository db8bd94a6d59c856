//! Sound files for idle devices, between `POST /api/notify/{clientId}` and the device's GET from the OTA port. In memory only.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::response::Response;
use crate::proto::ogg_opus::OggOpus;

/// How long a file can be fetched, and its state be asked for.
pub const KEPT_FOR: Duration = Duration::from_secs(600);
/// Bytes of all files together.
pub const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Files, with those of which only the state is left.
const MAX_FILES: usize = 4096;
/// How long after it was told of a file a device may take to fetch it, before it is sent the text instead. Firmware that knows
/// `notify` asks at once.
pub const FETCH_WAIT: Duration = Duration::from_secs(10);

/// The files of the last ten minutes. When there is no room, the bytes of the oldest files that were fetched go; a file that was
/// not fetched is never dropped for another one, which is refused instead.
#[derive(Debug, Default)]
pub struct NotifyFiles {
    /// In the order in which they came.
    files: VecDeque<NotifyFile>,
    /// Of the files whose bytes are still there.
    bytes: usize,
}

/// A file to be kept.
#[derive(Debug)]
pub struct NewFile {
    /// Its name in the path: nobody can guess it.
    pub id: String,
    /// The request that brought it.
    pub request_id: u64,
    /// The client id or MAC in that request.
    pub device: String,
    /// The whole file, which was checked. Empty when it had to make room.
    pub bytes: Arc<[u8]>,
    /// What the check found.
    pub found: OggOpus,
    /// The message for a device that does not fetch it.
    pub fallback: Option<String>,
}

#[derive(Debug)]
struct NotifyFile {
    file: NewFile,
    length: usize,
    kept_at: Instant,
    fetches: u32,
    last_fetch: Option<Instant>,
    /// The device was sent the message in its place.
    is_replaced: bool,
}

/// There is no room for another file.
#[derive(Debug, PartialEq, Eq)]
pub struct StoreFull;

impl NotifyFiles {
    /// Keeps a file.
    ///
    /// # Errors
    /// When files that were not fetched take up the room.
    pub fn insert(&mut self, file: NewFile, now: Instant) -> Result<(), StoreFull> {
        self.make_room(file.bytes.len(), now)?;
        let length = file.bytes.len();
        self.bytes += length;
        self.files.push_back(NotifyFile {
            file,
            length,
            kept_at: now,
            fetches: 0,
            last_fetch: None,
            is_replaced: false,
        });
        Ok(())
    }

    fn make_room(&mut self, length: usize, now: Instant) -> Result<(), StoreFull> {
        while self.files.front().is_some_and(|file| !file.is_kept(now)) {
            self.bytes -= self.files.pop_front().map_or(0, |kept| kept.file.bytes.len());
        }
        if self.files.len() >= MAX_FILES {
            let fetched = self.files.iter().position(|file| file.fetches > 0).ok_or(StoreFull)?;
            self.bytes -= self.files.remove(fetched).map_or(0, |kept| kept.file.bytes.len());
        }
        let fetched = |file: &&mut NotifyFile| file.fetches > 0;
        let mut oldest = self.files.iter_mut().filter(fetched);
        while self.bytes + length > MAX_BYTES {
            let kept = oldest.next().ok_or(StoreFull)?;
            self.bytes -= std::mem::take(&mut kept.file.bytes).len();
        }
        Ok(())
    }

    /// The bytes of a file, for a device that fetches it.
    pub fn fetch(&mut self, id: &str, now: Instant) -> Option<Arc<[u8]>> {
        let kept = self.files.iter_mut().find(|kept| kept.file.id == id && kept.is_kept(now))?;
        if kept.file.bytes.is_empty() {
            return None;
        }
        kept.fetches = kept.fetches.saturating_add(1);
        kept.last_fetch = Some(now);
        Some(kept.file.bytes.clone())
    }

    /// The file that this request brought.
    pub fn of_request(&self, request_id: u64) -> Option<Arc<[u8]>> {
        let kept = self.files.iter().find(|kept| kept.file.request_id == request_id);
        kept.map(|kept| kept.file.bytes.clone())
    }

    /// Forgets the file that this request brought: its device was not told of it.
    pub fn forget(&mut self, request_id: u64) {
        if let Some(index) = self.files.iter().position(|kept| kept.file.request_id == request_id) {
            self.bytes -= self.files.remove(index).map_or(0, |kept| kept.file.bytes.len());
        }
    }

    /// The devices that have not fetched their file in time, and the message for each. Every message is returned once.
    pub fn take_fallbacks(&mut self, now: Instant) -> Vec<(String, String)> {
        let late = self.files.iter_mut().filter(|kept| kept.fetches == 0 && now >= kept.kept_at + FETCH_WAIT);
        late.filter_map(|kept| {
            let message = kept.file.fallback.take()?;
            kept.is_replaced = true;
            Some((kept.file.device.clone(), message))
        })
        .collect()
    }

    /// `GET /api/notify/{id}`.
    pub fn response(&self, id: &str, now: Instant) -> Response {
        match self.files.iter().find(|kept| kept.file.id == id && kept.is_kept(now)) {
            Some(kept) => Response::json(200, kept.to_json(now).to_string()),
            None => Response::error(404, "no_file", "There was no file of this id in the last 10 minutes."),
        }
    }
}

impl NotifyFile {
    fn is_kept(&self, now: Instant) -> bool {
        now < self.kept_at + KEPT_FOR
    }

    fn to_json(&self, now: Instant) -> Value {
        let ago = |at: Instant| now.saturating_duration_since(at).as_millis() as u64;
        let fallback = match &self.file.fallback {
            _ if self.is_replaced => "sent",
            None => "none",
            Some(_) if self.fetches > 0 => "not_needed",
            Some(_) => "waiting",
        };
        json!({
            "id": self.file.id,
            "device": self.file.device,
            "bytes": self.length,
            "durationMs": self.file.found.duration_ms,
            "fetched": self.fetches > 0,
            "fetches": self.fetches,
            "createdMsAgo": ago(self.kept_at),
            "lastFetchMsAgo": self.last_fetch.map(ago),
            "fallback": fallback,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(id: usize, length: usize, fallback: Option<&str>) -> NewFile {
        NewFile {
            id: id.to_string(),
            request_id: id as u64,
            device: format!("device {id}"),
            bytes: vec![7; length].into(),
            found: OggOpus { packets: 1, duration_ms: 60 },
            fallback: fallback.map(str::to_owned),
        }
    }

    fn state(files: &NotifyFiles, id: &str, now: Instant) -> Value {
        serde_json::from_slice(&files.response(id, now).body).unwrap()
    }

    #[test]
    fn a_file_is_fetched_for_ten_minutes() {
        let (mut files, start) = (NotifyFiles::default(), Instant::now());
        files.insert(file(1, 3, None), start).unwrap();
        let expected = json!({
            "id": "1", "device": "device 1", "bytes": 3, "durationMs": 60, "fetched": false, "fetches": 0,
            "createdMsAgo": 0, "lastFetchMsAgo": null, "fallback": "none",
        });
        assert_eq!(state(&files, "1", start), expected);
        assert_eq!(files.fetch("2", start), None);
        for _ in 0..2 {
            assert_eq!(files.fetch("1", start + Duration::from_millis(70)).as_deref(), Some(&[7; 3][..]));
        }
        let fetched = state(&files, "1", start + Duration::from_millis(100));
        assert_eq!((&fetched["fetched"], &fetched["fetches"]), (&json!(true), &json!(2)));
        assert_eq!((&fetched["createdMsAgo"], &fetched["lastFetchMsAgo"]), (&json!(100), &json!(30)));
        let end = start + KEPT_FOR;
        assert_eq!((files.response("1", end).status, files.fetch("1", end)), (404, None));
        files.insert(file(2, 5, None), end).unwrap();
        assert_eq!((files.files.len(), files.bytes), (1, 5));
    }

    #[test]
    fn only_fetched_files_make_room() {
        let (mut files, now) = (NotifyFiles::default(), Instant::now());
        let part = MAX_BYTES / 4;
        for id in 0..4 {
            files.insert(file(id, part, None), now).unwrap();
        }
        assert_eq!(files.insert(file(4, 1, None), now), Err(StoreFull));
        assert!(files.fetch("2", now).is_some() && files.fetch("1", now).is_some());
        files.insert(file(4, part, None), now).unwrap();
        assert_eq!((files.fetch("1", now), files.bytes), (None, MAX_BYTES));
        assert_eq!(state(&files, "1", now)["fetched"], true, "its state is kept");
        assert!(["0", "2", "3", "4"].iter().all(|id| files.fetch(id, now).is_some()));
        // A file that its device was not told of leaves its room.
        files.forget(0);
        files.forget(0);
        assert_eq!((files.bytes, files.files.len()), (3 * part, 4));
    }

    #[test]
    fn files_are_bounded_in_number() {
        let (mut files, now) = (NotifyFiles::default(), Instant::now());
        for id in 0..MAX_FILES {
            files.insert(file(id, 1, None), now).unwrap();
        }
        assert_eq!(files.insert(file(MAX_FILES, 1, None), now), Err(StoreFull));
        assert!(files.fetch("17", now).is_some());
        files.insert(file(MAX_FILES, 1, None), now).unwrap();
        assert_eq!((files.files.len(), files.bytes), (MAX_FILES, MAX_FILES));
        assert_eq!(files.response("17", now).status, 404);
    }

    #[test]
    fn a_device_that_does_not_fetch_its_file_gets_the_text_once() {
        let (mut files, start) = (NotifyFiles::default(), Instant::now());
        for id in [1, 2] {
            files.insert(file(id, 1, Some("text")), start).unwrap();
        }
        files.insert(file(3, 1, None), start).unwrap();
        files.fetch("2", start).unwrap();
        let end = start + FETCH_WAIT;
        assert!(files.take_fallbacks(end - Duration::from_millis(1)).is_empty());
        let fallbacks =
            |files: &NotifyFiles| ["1", "2", "3"].map(|id| state(files, id, end)["fallback"].clone());
        assert_eq!(fallbacks(&files), ["waiting", "not_needed", "none"]);
        assert_eq!(files.take_fallbacks(end), [("device 1".to_owned(), "text".to_owned())]);
        assert!(files.take_fallbacks(end).is_empty());
        assert_eq!(fallbacks(&files), ["sent", "not_needed", "none"]);
        // One that fetches it later all the same changes nothing about that.
        files.fetch("1", end).unwrap();
        assert_eq!(fallbacks(&files)[0], "sent");
    }
}
