//! Tells the program when it was built: a clock that stands before that is wrong. And whether OpenSSL may encrypt the audio.

use std::time::SystemTime;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Distributions set this, so that the same source gives the same program.
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // `openssl_cipher`: OpenSSL is linked, for a processor that may have no AES instructions, or none that the crate `aes` uses.
    println!("cargo:rustc-check-cfg=cfg(openssl_cipher)");
    let is = |name: &str, values: &[&str]| std::env::var(name).is_ok_and(|value| values.contains(&&*value));
    if std::env::var_os("CARGO_FEATURE_TLS").is_some()
        && is("CARGO_CFG_TARGET_ARCH", &["arm", "aarch64"])
        && !is("CARGO_CFG_TARGET_OS", &["windows"])
        && !is("CARGO_CFG_TARGET_VENDOR", &["apple"])
    {
        println!("cargo:rustc-cfg=openssl_cipher");
    }
    println!("cargo:rustc-env=BUILT_AT={}", fixed.unwrap_or_else(now));
}
