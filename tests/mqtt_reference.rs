//! Another decoder reads the corpus of the fuzz target `mqtt_decode` like this gateway.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

#[path = "support/mqtt_reference.rs"]
mod reference;

#[test]
fn rumqttc_reads_the_same() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/mqtt_decode");
    // A published package does not contain the corpora.
    let Ok(files) = fs::read_dir(corpus) else { return };
    for file in files {
        let path = file.unwrap().path();
        eprintln!("{}", path.display());
        reference::agrees(&fs::read(path).unwrap());
    }
}
