//! The dashboard that `GET /` answers: one response without external resources.

use std::sync::LazyLock;

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

use crate::compressed_texts;

mod page;

pub use page::HTML;

/// Its media type.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// What a browser may do for the page (Content Security Policy Level 3): run its one script, use its one style sheet, and
/// call this gateway. Nothing that gets into the page by way of a device's name runs.
pub fn content_security_policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| policy_for(&compressed_texts::DASHBOARD.text()));
    &POLICY
}

fn policy_for(page: &str) -> String {
    let hash = |element: &str| {
        let text = page.split_once(&format!("<{element}>")).map_or("", |(_, behind)| behind);
        let text = text.split_once(&format!("</{element}>")).map_or("", |(text, _)| text);
        BASE64.encode(&Sha256::digest(text))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'self'",
        hash("script"),
        hash("style"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::recent_errors::RecentErrorKind;
    use super::*;
    use crate::session::Verdict;

    /// The texts in English and Chinese, by key.
    fn words() -> BTreeMap<String, [String; 2]> {
        serde_json::from_str(include_str!("dashboard/words.json")).unwrap()
    }

    #[test]
    fn the_dashboard_loads_no_external_resources() {
        assert_eq!((HTML.matches("<script").count(), HTML.matches("<style").count()), (1, 1));
        let texts = words();
        let in_texts =
            |what: &str| texts.values().flatten().map(|text| text.matches(what).count()).sum::<usize>();
        for outside in [" src=", "@import", "url(", "https://", "import(", "style=", " onclick", " onload"] {
            assert_eq!(HTML.matches(outside).count(), in_texts(outside), "{outside}");
        }
        // The namespace of SVG is a name, not a place.
        let names = HTML.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(HTML.matches("http://").count(), names + in_texts("http://"));
    }

    #[test]
    fn device_text_cannot_become_markup() {
        for dangerous in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
        {
            assert!(!HTML.contains(dangerous), "{dangerous}");
        }
        let policy = content_security_policy();
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("default-src 'none'"), "{policy}");
    }

    #[test]
    fn every_text_is_in_both_languages_and_in_use() {
        let words = words();
        for (key, [english, chinese]) in &words {
            assert!(!english.is_empty() && !chinese.is_empty(), "{key}");
            let variables = |text: &str| text.matches('{').count();
            assert_eq!(variables(english), variables(chinese), "{key}");
            // A family of texts, as e_login_refused, has a code of the gateway behind the underline.
            let family = key.find('_').map(|at| format!("\"{}\"", &key[..=at]));
            let is_used = [format!("\"{key}\"")]
                .into_iter()
                .chain(family)
                .any(|name| HTML.matches(&name).count() > usize::from(name == format!("\"{key}\"")));
            assert!(is_used, "{key}");
        }
    }

    #[test]
    fn codes_of_the_gateway_have_texts() {
        let words = words();
        for kind in RecentErrorKind::ALL {
            assert!(words.contains_key(&format!("e_{}", kind.code())), "{}", kind.code());
        }
        for verdict in Verdict::ALL {
            assert!(words.contains_key(&format!("v_{}", verdict.label())), "{}", verdict.label());
        }
    }
}
