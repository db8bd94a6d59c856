//! A QR code as text.

use qrcodegen::{QrCode, QrCodeEcc};

/// Light modules around the code. ISO/IEC 18004 asks for four; readers manage with two, and a terminal is small.
const QUIET_ZONE: i32 = 2;

/// The code of this text as lines, two rows of modules in each. Light modules are drawn, so that it is right on a dark terminal.
/// `None` when the text is too long for a code.
pub(super) fn qr_lines(text: &str) -> Option<Vec<String>> {
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let all = -QUIET_ZONE..code.size() + QUIET_ZONE;
    // Outside of the code every module is light.
    let half_block = |x, y| match (code.get_module(x, y), code.get_module(x, y + 1)) {
        (false, false) => '█',
        (false, true) => '▀',
        (true, false) => '▄',
        (true, true) => ' ',
    };
    Some(all.clone().step_by(2).map(|y| all.clone().map(|x| half_block(x, y)).collect()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_show_every_module() {
        let url = "http://192.168.100.100:8006/xiaozhi/ota/";
        let lines: Vec<Vec<char>> =
            qr_lines(url).unwrap().iter().map(|line| line.chars().collect()).collect();
        let code = QrCode::encode_text(url, QrCodeEcc::Low).unwrap();
        let (size, border) = (code.size() as usize, QUIET_ZONE as usize);
        assert!(lines.iter().all(|line| line.len() == size + 2 * border) && size <= 29, "{size}");
        let is_dark = |x: usize, y: usize| match lines[y / 2][x] {
            '█' => false,
            ' ' => true,
            '▀' => !y.is_multiple_of(2),
            '▄' => y.is_multiple_of(2),
            other => panic!("{other:?}"),
        };
        for y in 0..size + 2 * border {
            for x in 0..size + 2 * border {
                let expected = code.get_module(x as i32 - QUIET_ZONE, y as i32 - QUIET_ZONE);
                assert_eq!(is_dark(x, y), expected, "{x} {y}");
            }
        }
    }

    #[test]
    fn a_text_that_is_too_long_has_no_code() {
        assert_eq!(qr_lines(&"x".repeat(3000)), None);
    }
}
