#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mqtt_websocket_proxy::fuzzing::cluster_bytes(data));
