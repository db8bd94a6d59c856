//! The fuzz targets in `fuzz/`, which `cargo test fuzzing` runs with the corpora in `fuzz/corpus`.
//!
//! This module of the library is built for tests and by cargo-fuzz (`--cfg fuzzing`) only, which is why its files are here. A target asserts all that must hold for any input, not
//! only that there is no panic.

#![allow(clippy::unwrap_used)]

#[cfg(feature = "cluster")]
mod cluster_bytes;
mod http_parse;
mod json_peek;
mod live_call;
mod mqtt_decode;
mod ogg_opus;
mod proxy_header;
mod session_bytes;
mod udp_open;
mod upgrade_reply;
mod ws_audio;

#[cfg(feature = "cluster")]
pub use cluster_bytes::cluster_bytes;
pub use http_parse::http_parse;
pub use json_peek::json_peek;
pub use mqtt_decode::mqtt_decode;
pub use ogg_opus::{firmware_plays, ogg_opus};
pub use proxy_header::proxy_header;
pub use session_bytes::session_bytes;
pub use udp_open::udp_open;
pub use upgrade_reply::upgrade_reply;
pub use ws_audio::ws_audio;

/// The text of a configuration file, in the format of this gateway or of the Node.js gateway, or of a `.env` file.
pub fn config_parse(data: &[u8]) {
    crate::config::fuzz::parse(data);
}

/// A script with the choices of the simulation.
pub fn session_core(data: &[u8]) {
    crate::session::sim::run_script(data);
}

/// Reads fields from bytes, one after the other. After the end, all fields are 0.
struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    fn u32(&mut self) -> u32 {
        self.bytes(4).iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// This many bytes, or fewer at the end.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Offsets at which to split a text of this length: all of them near its ends, some of them between.
fn split_points(len: usize) -> impl Iterator<Item = usize> {
    (0..=len).filter(move |at| *at < 64 || at % 61 == 0 || len - at < 16)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    type FuzzTarget = (&'static str, fn(&[u8]));

    const TARGETS: &[FuzzTarget] = &[
        #[cfg(feature = "cluster")]
        ("cluster_bytes", cluster_bytes),
        ("config_parse", config_parse),
        ("http_parse", http_parse),
        ("json_peek", json_peek),
        ("mqtt_decode", mqtt_decode),
        ("ogg_opus", ogg_opus),
        ("proxy_header", proxy_header),
        ("session_bytes", session_bytes),
        ("session_core", session_core),
        ("udp_open", udp_open),
        ("upgrade_reply", upgrade_reply),
        ("ws_audio", ws_audio),
    ];

    /// The current file, which is printed if its target panics.
    struct FailingInput(String);

    impl Drop for FailingInput {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("with the bytes of {}", self.0);
            }
        }
    }

    #[test]
    fn every_corpus_passes() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        if !fuzz.exists() {
            // A published package has no corpora.
            return;
        }
        for (target, run) in TARGETS {
            let files: Vec<_> = fs::read_dir(fuzz.join("corpus").join(target)).unwrap().collect();
            assert!(files.len() >= 5, "{target}: {} files", files.len());
            for file in files {
                let path = file.unwrap().path();
                let named = FailingInput(path.display().to_string());
                let bytes = fs::read(path).unwrap();
                assert!(bytes.len() < 1024, "{}: {} bytes", named.0, bytes.len());
                run(&bytes);
            }
        }
    }

    /// `TARGETS` has every target in `fuzz/targets`.
    #[test]
    #[cfg(feature = "cluster")]
    fn every_target_is_listed() {
        let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/targets");
        let Ok(found) = fs::read_dir(targets) else { return };
        let mut found: Vec<_> = found.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        let known: Vec<_> = TARGETS.iter().map(|(target, _)| format!("{target}.rs")).collect();
        assert_eq!(found, known);
    }
}
