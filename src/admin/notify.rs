//! What `POST /api/notify/{clientId}` asks for: sound and words for an idle device.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::params::{BadParameter, Members, query_value};

/// The longest text, in characters: a device's modem takes no long messages.
const MAX_TEXT: usize = 500;
/// The longest title, in characters.
const MAX_TITLE: usize = 50;
/// The longest URL, in bytes.
const MAX_URL: usize = 1000;
/// Subtitles of one sound.
const MAX_SUBTITLES: usize = 32;
/// The longest subtitle, in characters.
const MAX_SUBTITLE: usize = 200;
/// The latest start of a subtitle, in milliseconds: a day.
const MAX_START_MS: u32 = 86_400_000;
/// What a device's status bar shows above the text.
const TITLE: &str = "Notification";

/// A request that is complete and allowed.
#[derive(Debug, PartialEq, Eq)]
pub struct NotifyRequest {
    /// The file; `None` for one that came with the request, or for words alone.
    pub audio_url: Option<String>,
    /// Whether a device that does not fetch the file gets the text.
    pub falls_back: bool,
    text: Option<String>,
    title: Option<String>,
    subtitles: Vec<Subtitle>,
}

/// Words that appear when the sound has played for so long.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Subtitle {
    start_ms: u32,
    text: String,
}

/// A subtitle as it comes: `7.0` and `7e0` are whole numbers in JSON too.
#[derive(Deserialize)]
struct RawSubtitle {
    start_ms: f64,
    text: String,
}

impl NotifyRequest {
    /// Reads a JSON body: the sound is at a URL, or there are words alone.
    ///
    /// # Errors
    /// What is missing or not allowed.
    pub fn parse(members: &Members<'_>) -> Result<Self, BadParameter> {
        let string = |key: &str| Ok(members.string(key, "a string")?.map(Into::into));
        let request = Self::check(string, members.raw("subtitles")?, false)?;
        if request.audio_url.is_none() && request.text.is_none() {
            return Err(BadParameter::new("text, audio_url", "neither", "one of them or both"));
        }
        Ok(request)
    }

    /// Reads the query of a request whose body is the sound.
    ///
    /// # Errors
    /// What is not allowed.
    pub fn parse_query(query: &str) -> Result<Self, BadParameter> {
        let string = |key: &str| Ok(query_value(query, key)?.map(Into::into));
        Self::check(string, query_value(query, "subtitles")?.as_deref(), true)
    }

    fn check(
        string: impl Fn(&str) -> Result<Option<String>, BadParameter>,
        subtitles: Option<&str>,
        has_file: bool,
    ) -> Result<Self, BadParameter> {
        let audio_url = string("audio_url")?;
        if let Some(url) = &audio_url {
            check_url(url, has_file)?;
        }
        let text = short(string("text")?, "text", MAX_TEXT)?;
        let title = short(string("title")?, "title", MAX_TITLE)?;
        let falls_back = match string("fallback")?.as_deref() {
            None => false,
            Some("alert") if !has_file => {
                let allowed =
                    "it only with a sound as the body: whether another server's is fetched is not known";
                return Err(BadParameter::new("fallback", "\"alert\"", allowed));
            }
            Some("alert") if text.is_none() => {
                return Err(BadParameter::new("fallback", "\"alert\" without text", "it with text"));
            }
            Some("alert") => true,
            Some(other) => return Err(BadParameter::new("fallback", &format!("{other:?}"), "\"alert\"")),
        };
        let subtitles = match subtitles {
            Some(raw) if has_file || audio_url.is_some() => parse_subtitles(raw)?,
            Some(raw) => return Err(BadParameter::new("subtitles", raw, "them only with a sound")),
            None => text.iter().map(|text| Subtitle { start_ms: 0, text: text.clone() }).collect(),
        };
        Ok(Self { audio_url, falls_back, text, title, subtitles })
    }

    /// The message for firmware of August 2026 and later, which fetches and plays this file while it is idle (docs/notify.md of
    /// 78/xiaozhi-esp32).
    pub fn notify_message(&self, audio_url: &str) -> String {
        match self.subtitles.as_slice() {
            [] => json!({ "type": "notify", "audio_url": audio_url }).to_string(),
            subtitles => {
                json!({ "type": "notify", "audio_url": audio_url, "subtitles": subtitles }).to_string()
            }
        }
    }

    /// The message with the text alone, which all firmware shows.
    pub fn alert_message(&self) -> Option<String> {
        let (text, title) = (self.text.as_ref()?, self.title.as_deref().unwrap_or(TITLE));
        Some(json!({ "type": "alert", "status": title, "message": text, "emotion": "neutral" }).to_string())
    }
}

fn check_url(url: &str, has_file: bool) -> Result<(), BadParameter> {
    let bad = |allowed| Err(BadParameter::new("audio_url", &format!("{url:?}"), allowed));
    if has_file {
        return bad("either it or a sound as the body");
    }
    // As the description of the API has it. The device judges the rest, and what is at the URL.
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let has_host = rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['));
    match has_host && url.len() <= MAX_URL && url.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => bad("an http or https URL of 1000 bytes at most"),
    }
}

fn short(text: Option<String>, name: &str, longest: usize) -> Result<Option<String>, BadParameter> {
    let length = text.as_ref().map_or(1, |text| text.chars().count());
    match (1..=longest).contains(&length) {
        true => Ok(text),
        false => {
            let allowed = format!("1 to {longest} characters");
            Err(BadParameter::new(name, &format!("{length} characters"), allowed))
        }
    }
}

fn parse_subtitles(raw: &str) -> Result<Vec<Subtitle>, BadParameter> {
    let bad = |found: &str| {
        let text = format!("a text of {MAX_SUBTITLE} characters at most");
        let each = format!(r#"{{"start_ms": 0 to {MAX_START_MS}, "text": {text}}}"#);
        BadParameter::new("subtitles", found, format!("an array of {MAX_SUBTITLES} at most, each {each}"))
    };
    let subtitles: Vec<RawSubtitle> = serde_json::from_str(raw).map_err(|_| bad(raw))?;
    if subtitles.len() > MAX_SUBTITLES {
        return Err(bad(&format!("{} of them", subtitles.len())));
    }
    let checked = |RawSubtitle { start_ms, text }| {
        let length = text.chars().count();
        if start_ms.fract() != 0.0 || !(0.0..=f64::from(MAX_START_MS)).contains(&start_ms) {
            Err(bad(&format!("start_ms {start_ms}")))
        } else if length > MAX_SUBTITLE {
            Err(bad(&format!("a text of {length} characters")))
        } else {
            Ok(Subtitle { start_ms: start_ms as u32, text })
        }
    };
    subtitles.into_iter().map(checked).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<NotifyRequest, String> {
        NotifyRequest::parse(&Members::of_body(body).unwrap()).map_err(|bad| bad.to_string())
    }

    fn parse_query(query: &str) -> Result<NotifyRequest, String> {
        NotifyRequest::parse_query(query).map_err(|bad| bad.to_string())
    }

    #[test]
    fn the_messages_are_those_of_the_firmware() {
        let words = parse(r#"{"text":"你好"}"#).unwrap();
        let alert = r#"{"emotion":"neutral","message":"你好","status":"Notification","type":"alert"}"#;
        assert_eq!((words.audio_url.as_deref(), words.alert_message().as_deref()), (None, Some(alert)));
        let titled = parse(r#"{"text":"a","title":"门铃","fallback":null}"#).unwrap();
        assert!(titled.alert_message().unwrap().contains(r#""status":"门铃""#));
        let sound = parse(r#"{"audio_url":"https://a.example/x.ogg?k=1"}"#).unwrap();
        let url = sound.audio_url.as_deref().unwrap();
        let notify = r#"{"audio_url":"https://a.example/x.ogg?k=1","type":"notify"}"#;
        assert_eq!((sound.notify_message(url).as_str(), sound.alert_message()), (notify, None));
        let with_text = r#"{"audio_url":"u","subtitles":[{"start_ms":0,"text":"a b"}],"type":"notify"}"#;
        assert_eq!(parse_query("text=a%20b").unwrap().notify_message("u"), with_text);
        let subtitles =
            "text=t&fallback=alert&subtitles=%5B%7B%22start_ms%22%3A7%2C%22text%22%3A%22s%22%7D%5D";
        let both = parse_query(subtitles).unwrap();
        let expected = r#"{"audio_url":"u","subtitles":[{"start_ms":7,"text":"s"}],"type":"notify"}"#;
        assert_eq!((both.falls_back, both.notify_message("u").as_str()), (true, expected));
        assert_eq!(parse_query("").unwrap().notify_message("u"), r#"{"audio_url":"u","type":"notify"}"#);
    }

    #[test]
    fn what_is_not_allowed_is_said() {
        for (body, start) in [
            ("{}", "text, audio_url: found neither, allowed: one of them or both"),
            (r#"{"text":""}"#, "text: found 0 characters, allowed: 1 to 500 characters"),
            (r#"{"text":7}"#, "text: found 7, allowed: a string"),
            (r#"{"text":"a","text":"b"}"#, "text: found it more than once, allowed: one value"),
            (r#"{"text":"a","title":""}"#, "title: found 0 characters, allowed: 1 to 50 characters"),
            (r#"{"text":"a","subtitles":[]}"#, "subtitles: found [], allowed: them only with a sound"),
            (
                r#"{"text":"a","fallback":"alert"}"#,
                "fallback: found \"alert\", allowed: it only with a sound as the body",
            ),
            (r#"{"text":"a","fallback":"x"}"#, "fallback: found \"x\", allowed: \"alert\""),
        ] {
            let why = parse(body).unwrap_err();
            assert!(why.starts_with(start), "{why}");
        }
        for url in ["", "x", "ftp://a/b", "http://", "http:///x", "/x", "http://a b/", "https://a/\\u0000"] {
            let why = parse(&format!(r#"{{"audio_url":"{url}"}}"#)).unwrap_err();
            assert!(why.starts_with("audio_url: found \"") && why.contains("an http or https URL"), "{why}");
        }
        let with = |subtitles: &str| parse(&format!(r#"{{"audio_url":"http://a","subtitles":{subtitles}}}"#));
        let many = format!("[{}]", vec![r#"{"start_ms":1,"text":"a"}"#; MAX_SUBTITLES + 1].join(","));
        let long = format!(r#"[{{"start_ms":1,"text":"{}"}}]"#, "组".repeat(MAX_SUBTITLE + 1));
        for subtitles in [
            "{}",
            "7",
            "[7]",
            r#"[{"text":"a"}]"#,
            r#"[{"start_ms":-1,"text":"a"}]"#,
            r#"[{"start_ms":1.5,"text":"a"}]"#,
            r#"[{"start_ms":86400001,"text":"a"}]"#,
            &many,
            &long,
        ] {
            assert!(with(subtitles).unwrap_err().starts_with("subtitles: found "), "{subtitles}");
        }
        assert_eq!(with("[]").unwrap().subtitles, []);
        let whole = with(r#"[{"start_ms":7.0,"text":"a"},{"start_ms":1e2,"text":"b"}]"#).unwrap();
        assert_eq!(whole.subtitles.iter().map(|subtitle| subtitle.start_ms).collect::<Vec<_>>(), [7, 100]);
        for (query, start) in [
            (
                "audio_url=http://a",
                "audio_url: found \"http://a\", allowed: either it or a sound as the body",
            ),
            ("fallback=alert", "fallback: found \"alert\" without text, allowed: it with text"),
            ("text=%ff", "text: found \"%ff\", allowed: percent-encoded UTF-8"),
            ("subtitles=x", "subtitles: found x, allowed: an array of 32 at most"),
        ] {
            let why = parse_query(query).unwrap_err();
            assert!(why.starts_with(start), "{why}");
        }
    }
}
