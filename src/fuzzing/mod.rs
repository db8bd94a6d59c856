//! What the fuzz targets in `fuzz/` do with their bytes, and the same bytes as plain tests.
//!
//! Built for tests and by cargo-fuzz (`--cfg fuzzing`) only. A target asserts all that must hold whatever the bytes are:
//! not only that nothing panics. The corpora in `fuzz/corpus` are run through them by `cargo test fuzzing`.

#![allow(clippy::unwrap_used)]

mod http_parse;
mod json_peek;
mod live_call;
mod mqtt_decode;
mod proxy_header;
mod session_bytes;
mod udp_open;
mod upgrade_reply;
mod ws_audio;

pub use http_parse::http_parse;
pub use json_peek::json_peek;
pub use mqtt_decode::mqtt_decode;
pub use proxy_header::proxy_header;
pub use session_bytes::session_bytes;
pub use udp_open::udp_open;
pub use upgrade_reply::upgrade_reply;
pub use ws_audio::ws_audio;

/// Text of a configuration file, in our own shape or that of the Node.js gateway, or of its `.env`.
pub fn config_parse(data: &[u8]) {
    crate::config::fuzz::parse(data);
}

/// A script of the choices that a device, its servers and the network make; the laws are those of the simulation.
pub fn session_core(data: &[u8]) {
    crate::session::sim::run_script(data);
}

/// Bytes that are taken one field after the other; past their end all is 0.
struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    fn u32(&mut self) -> u32 {
        self.bytes(4).iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// So many, or fewer at the end.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Where to cut a text of this length, to see that it makes no difference: everywhere near its ends, here and there between.
fn split_points(len: usize) -> impl Iterator<Item = usize> {
    (0..=len).filter(move |at| *at < 64 || at % 61 == 0 || len - at < 16)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    type FuzzTarget = (&'static str, fn(&[u8]));

    const TARGETS: [FuzzTarget; 10] = [
        ("config_parse", config_parse),
        ("http_parse", http_parse),
        ("json_peek", json_peek),
        ("mqtt_decode", mqtt_decode),
        ("proxy_header", proxy_header),
        ("session_bytes", session_bytes),
        ("session_core", session_core),
        ("udp_open", udp_open),
        ("upgrade_reply", upgrade_reply),
        ("ws_audio", ws_audio),
    ];

    /// The file at hand, should its target panic.
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

    /// No target has a table of its own that this one does not know.
    #[test]
    fn every_target_is_listed() {
        let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/targets");
        let Ok(found) = fs::read_dir(targets) else { return };
        let mut found: Vec<_> = found.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        let known: Vec<_> = TARGETS.iter().map(|(target, _)| format!("{target}.rs")).collect();
        assert_eq!(found, known);
    }
}
