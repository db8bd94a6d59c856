//! Tells the program when it was built: a clock that stands before that is wrong. And what OpenSSL does in it.
//! Compresses the program's long texts (`src/compressed_texts.rs`).

use std::path::Path;
use std::time::SystemTime;

#[path = "src/admin/dashboard/page.rs"]
#[allow(unreachable_pub)] // It is public in the library.
mod page;

fn main() {
    // Also when a text changes, since this program includes them.
    println!("cargo:rerun-if-changed=build.rs");
    pack("dashboard", page::HTML);
    pack("openapi", include_str!("src/admin/openapi.json"));
    pack("chinese", include_str!("src/messages.zh.po"));
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Distributions set this, so that the same source gives the same program.
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // `openssl_cipher`: OpenSSL is linked, for a processor that may have no AES instructions, or none that the crate `aes` uses.
    // `openssl_client`: OpenSSL is linked, and connects to servers without native-tls, which cannot resume sessions. On Android only
    // native-tls knows where the system's authorities are.
    println!("cargo:rustc-check-cfg=cfg(openssl_cipher, openssl_client)");
    let is = |name: &str, values: &[&str]| std::env::var(name).is_ok_and(|value| values.contains(&&*value));
    let openssl = std::env::var_os("CARGO_FEATURE_TLS").is_some()
        && !is("CARGO_CFG_TARGET_OS", &["windows"])
        && !is("CARGO_CFG_TARGET_VENDOR", &["apple"]);
    if openssl && is("CARGO_CFG_TARGET_ARCH", &["arm", "aarch64"]) {
        println!("cargo:rustc-cfg=openssl_cipher");
    }
    if openssl && !is("CARGO_CFG_TARGET_OS", &["android"]) {
        println!("cargo:rustc-cfg=openssl_client");
    }
    println!("cargo:rustc-env=BUILT_AT={}", fixed.unwrap_or_else(now));
}

/// Writes a text in the format of gzip (RFC 1952), without a name and a time.
fn pack(name: &str, text: &str) {
    let mut file = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff".to_vec();
    file.extend(miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 10));
    file.extend(crc32(text.as_bytes()).to_le_bytes());
    file.extend((text.len() as u32).to_le_bytes());
    let folder = std::env::var_os("OUT_DIR").unwrap_or_default();
    let path = Path::new(&folder).join(format!("{name}.gz"));
    if let Err(error) = std::fs::write(&path, file) {
        panic!("{}: {error}", path.display());
    }
}

/// The checksum of RFC 1952 section 8.
fn crc32(bytes: &[u8]) -> u32 {
    let with_bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| with_bit(crc)))
}
