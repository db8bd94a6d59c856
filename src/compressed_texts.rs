//! Long texts of the program, compressed by `build.rs`: as they are, they would be a tenth of a small binary.

/// A text, compressed.
pub struct Packed(&'static [u8]);

macro_rules! packed {
    ($name:literal) => {
        Packed(include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz")))
    };
}

/// The dashboard: [`HTML`](crate::admin::dashboard::HTML).
pub static DASHBOARD: Packed = packed!("dashboard");
/// The description of every call of the management API (OpenAPI 3.1).
pub static OPENAPI: Packed = packed!("openapi");
/// The catalogue of Chinese messages, in the format of GNU gettext.
pub static CHINESE: Packed = packed!("chinese");

/// The length of a header without optional fields (RFC 1952 section 2.3).
const HEADER_LEN: usize = 10;

impl Packed {
    /// The text in the format of gzip.
    pub fn gzip(&self) -> &'static [u8] {
        self.0
    }

    /// The text.
    pub fn text(&self) -> String {
        let deflated = self.0.get(HEADER_LEN..).unwrap_or_default();
        let bytes = miniz_oxide::inflate::decompress_to_vec(deflated).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_those_of_the_files() {
        assert!(DASHBOARD.text() == crate::admin::dashboard::HTML);
        assert!(OPENAPI.text() == include_str!("admin/openapi.json"));
        assert!(CHINESE.text() == include_str!("messages.zh.po"));
    }
}
