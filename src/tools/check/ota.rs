//! Asks the OTA port as a device does when it starts, and looks at the answer as the firmware does.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::{Map, Value};

use super::report::Finding;
use crate::admin::response_parser::ResponseReader;
use crate::config::Config;
use crate::proto::identity::{ClientId, Mac};
use crate::proto::ota::{ENDPOINT_ALLOWED, Endpoint, TLS_PORT, VIA};
use crate::tools::step_report::StepState;

const NAME: &str = "OTA";
/// A longer name of a setting aborts the firmware, each time it starts.
const MAX_NAME_BYTES: usize = 15;

/// What a device is told; none when the OTA port is off.
pub(super) fn check_ota(config: &Config, mac: Mac, timeout: Duration) -> Option<Finding> {
    let ota = &config.ota;
    if !ota.enabled {
        return None;
    }
    let ip = match ota.host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, ota.port);
    Some(match ask(address, mac, timeout) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused || ota.port == 0 => {
            let detail = format!("port {}: not asked, since this gateway does not run", ota.port);
            Finding::new(NAME, StepState::Skipped, detail)
        }
        Err(error) => Finding::new(NAME, StepState::Fail, format!("port {}: {error}", ota.port)),
        Ok((200, body)) => match judge(&body, mac) {
            Ok(endpoint) => reach(&endpoint, timeout),
            Err(why) => Finding::new(NAME, StepState::Fail, format!("port {}: {why}", ota.port))
                .with_advice("is it this gateway that answers on ota.port?"),
        },
        Ok((status, body)) => {
            let said = serde_json::from_slice::<Value>(&body).unwrap_or_default();
            let said = said["error"].as_str().unwrap_or_default();
            Finding::new(NAME, StepState::Warn, format!("port {}: HTTP {status}: {said}", ota.port))
                .with_advice("this machine is not answered; the gateway's log says why: ota.allow, ota.macs")
        }
    })
}

/// Status and body of the answer. It is the gateway's own: the marked request is not passed on to `ota.upstream`, where this
/// device would become known.
fn ask(address: SocketAddr, mac: Mac, timeout: Duration) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(
        stream,
        "POST /xiaozhi/ota/ HTTP/1.1\r\nHost: {address}\r\nDevice-Id: {mac}\r\nClient-Id: {}\r\nActivation-Version: 1\r\n\
         Via: {VIA}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}",
        mac.underscored()
    )?;
    let mut response = ResponseReader::default();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk)? {
            0 => return response.end().map_err(io::Error::other),
            n => {
                if let Some(answer) = response.push(&chunk[..n]).map_err(io::Error::other)? {
                    return Ok(answer);
                }
            }
        }
    }
}

/// The endpoint that a device would connect to.
///
/// # Errors
/// What the firmware would not take, in words.
fn judge(body: &[u8], mac: Mac) -> Result<Endpoint, String> {
    let answer: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| "the answer is no JSON object".to_owned())?;
    let mqtt = answer.get("mqtt").and_then(Value::as_object).ok_or("the answer has no section mqtt")?;
    if let Some((name, _)) = mqtt.iter().find(|(name, _)| name.len() > MAX_NAME_BYTES) {
        return Err(format!(
            "mqtt.{name}: the name has more than {MAX_NAME_BYTES} bytes, which aborts devices"
        ));
    }
    let text = |name: &str| mqtt.get(name).and_then(Value::as_str).unwrap_or_default();
    let client_id = ClientId::parse(text("client_id")).map_err(|error| format!("mqtt.client_id: {error}"))?;
    if client_id.mac() != mac {
        return Err("mqtt.client_id is that of another device".to_owned());
    }
    let endpoint = text("endpoint");
    let allowed = ENDPOINT_ALLOWED;
    endpoint.parse().map_err(|_| format!("mqtt.endpoint: found {endpoint:?}, allowed: {allowed}"))
}

/// Whether the endpoint can be reached from here.
fn reach(endpoint: &Endpoint, timeout: Duration) -> Finding {
    let (host, port) = (endpoint.host.as_str(), endpoint.port.unwrap_or(TLS_PORT));
    let connected = (host, port).to_socket_addrs().and_then(|mut addresses| {
        let address = addresses.next().ok_or_else(|| io::Error::other("it has no address"))?;
        TcpStream::connect_timeout(&address, timeout)
    });
    if let Err(error) = connected {
        let told =
            format!("a device is told to connect to {host} port {port}, and this machine cannot: {error}");
        return Finding::new(NAME, StepState::Warn, told)
            .with_advice("if devices cannot either, set ota.endpoint to where they reach this gateway");
    }
    let told = match endpoint.is_tls() {
        true => format!("a device is told to connect to {host} port {port} with TLS"),
        false => format!("a device is told to connect to {host} port {port}"),
    };
    Finding::new(NAME, StepState::Ok, told)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_as_the_firmware_takes_it() {
        let mac: Mac = "aa:bb:cc:dd:ee:ff".parse().unwrap();
        let id = "GID_a@@@aa_bb_cc_dd_ee_ff@@@u";
        for (answer, why) in [
            (format!(r#"{{"mqtt":{{"endpoint":"gw:1883","client_id":"{id}"}}}}"#), ""),
            (
                format!(r#"{{"mqtt":{{"endpoint":"mqtt://gw","client_id":"{id}"}}}}"#),
                "mqtt.endpoint: found \"mqtt://gw\", allowed: HOST",
            ),
            (format!(r#"{{"mqtt":{{"a_name_of_16_byte":1,"client_id":"{id}"}}}}"#), "more than 15 bytes"),
            (
                r#"{"mqtt":{"endpoint":"gw","client_id":"GID_a@@@11_22_33_44_55_66@@@u"}}"#.to_owned(),
                "another device",
            ),
            (r#"{"mqtt":{"endpoint":"gw"}}"#.to_owned(), "mqtt.client_id: "),
            (r#"{"websocket":{}}"#.to_owned(), "no section mqtt"),
            ("<html>".to_owned(), "no JSON object"),
        ] {
            let found = judge(answer.as_bytes(), mac);
            let found = found.as_ref().err().map_or("", String::as_str);
            assert!(found.contains(why) && found.is_empty() == why.is_empty(), "{answer}: {found}");
        }
    }
}
