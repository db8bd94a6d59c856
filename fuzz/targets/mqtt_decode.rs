#![no_main]

#[path = "../../tests/support/mqtt_reference.rs"]
mod reference;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    mqtt_websocket_proxy::fuzzing::mqtt_decode(data);
    reference::agrees(data);
});
