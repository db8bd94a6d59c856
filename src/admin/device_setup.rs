//! What `POST /api/credentials` answers: what a new device needs.

use qrcodegen::{QrCode, QrCodeEcc};
use serde::Serialize;

use super::params::{BadParameter, Members};
use crate::proto::identity::Mac;
use crate::proto::ota::MqttSection;

/// Why a device that asks for its settings gets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OtaObstacle {
    /// The gateway answers no OTA requests: `ota.enabled`.
    Off,
    /// `ota.macs` has other MACs.
    Mac,
}

/// What a new device needs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceSetup {
    /// The device.
    pub mac: String,
    /// Where it asks for its settings; none if this gateway has no OTA port.
    pub ota_url: Option<String>,
    /// Why it would get none there.
    pub ota_obstacle: Option<OtaObstacle>,
    /// The QR code of that URL, row by row: `1` is dark. Without the light border of four modules.
    pub ota_qr: Option<Vec<String>>,
    /// Section `mqtt` of the OTA answer, for another OTA server. Its password is a secret; none if `api.issue_credentials` is off.
    pub mqtt: Option<MqttSection>,
}

impl DeviceSetup {
    /// For this device.
    pub fn new(
        mac: Mac,
        mqtt: Option<MqttSection>,
        ota_url: Option<String>,
        ota_obstacle: Option<OtaObstacle>,
    ) -> Self {
        let ota_qr = ota_url.as_deref().and_then(qr_rows);
        Self { mac: mac.to_string(), ota_url, ota_obstacle, ota_qr, mqtt }
    }
}

/// The device that a body is about.
///
/// # Errors
/// What is missing or not allowed.
pub fn parse_mac(members: &Members<'_>) -> Result<Mac, BadParameter> {
    let allowed = "a MAC address like aa:bb:cc:dd:ee:ff";
    let text = members.string("mac", allowed)?.unwrap_or_default();
    text.trim().parse().map_err(|_| BadParameter::new("mac", &format!("{text:?}"), allowed))
}

/// `None` when the text is too long for a code.
fn qr_rows(text: &str) -> Option<Vec<String>> {
    let code = QrCode::encode_text(text, QrCodeEcc::Medium).ok()?;
    let row = |y| (0..code.size()).map(|x| if code.get_module(x, y) { '1' } else { '0' }).collect();
    Some((0..code.size()).map(row).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_a_square_with_its_three_marks() {
        let rows = qr_rows("http://192.168.1.2:8006/xiaozhi/ota/").unwrap();
        assert!(rows.iter().all(|row| row.len() == rows.len()));
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        assert!(first.starts_with("11111110") && first.ends_with("01111111") && last.starts_with("11111110"));
        assert_eq!(qr_rows(&"x".repeat(3000)), None);
    }

    #[test]
    fn a_body_names_a_mac() {
        let parse = |body| parse_mac(&Members::of_body(body).unwrap()).map_err(|bad| bad.to_string());
        assert_eq!(parse(r#"{"mac":" AA-bb-cc-dd-ee-01 "}"#), Ok("aa:bb:cc:dd:ee:01".parse().unwrap()));
        for (body, found) in [("{}", "\"\""), (r#"{"mac":"x"}"#, "\"x\""), (r#"{"mac":7}"#, "7")] {
            let expected = format!("mac: found {found}, allowed: a MAC address like aa:bb:cc:dd:ee:ff");
            assert_eq!(parse(body), Err(expected), "{body}");
        }
    }
}
