//! The dashboard that `GET /` answers: one file without external resources.

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

/// The page.
pub const HTML: &str = include_str!("dashboard.html");
/// Its media type.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// What a browser may do for the page (Content Security Policy Level 3): run its one script, use its one style sheet, and
/// call this gateway. Nothing that gets into the page by way of a device's name runs.
pub fn content_security_policy() -> String {
    let hash = |tag: &str| {
        let (start, end) = (format!("<{tag}>"), format!("</{tag}>"));
        let text =
            HTML.split_once(&start).and_then(|(_, rest)| rest.split_once(&end)).map_or("", |(text, _)| text);
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
mod tests {
    use super::super::recent_errors::RecentErrorKind;
    use super::*;

    #[test]
    fn the_dashboard_loads_no_external_resources() {
        assert_eq!((HTML.matches("<script").count(), HTML.matches("<style").count()), (1, 1));
        for outside in [" src=", "@import", "url(", "https://", "import(", "style=", " onclick", " onload"] {
            assert!(!HTML.contains(outside), "{outside}");
        }
        // The namespace of SVG is a name, not a place.
        assert_eq!(HTML.matches("http://").count(), HTML.matches("http://www.w3.org/2000/svg").count());
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
    fn every_error_kind_has_a_text_in_both_languages() {
        for kind in RecentErrorKind::ALL {
            assert_eq!(HTML.matches(&format!(" e_{}:", kind.code())).count(), 2, "{}", kind.code());
            assert!(HTML.contains(&format!(" a_{}:", kind.code())), "{}", kind.code());
        }
    }
}
