//! The alerting rules for Prometheus, checked and run by its own `promtool`.
//!
//! Needs promtool (Debian: `apt-get install prometheus`, as `./setup.sh test` does); without it the test prints a message and passes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn text(path: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{path}")).unwrap()
}

#[test]
fn promtool_accepts_the_alerts_and_each_fires_for_its_fault_only() {
    for arguments in
        [&["check", "rules", "config/alerts.yml"][..], &["test", "rules", "tests/data/alerts_test.yml"]]
    {
        let output = match Command::new("promtool").args(arguments).current_dir(ROOT).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return eprintln!("skipped: promtool is not installed");
            }
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn every_metric_in_an_alert_exists_and_every_alert_is_described() {
    let rules = text("config/alerts.yml");
    let collect = text("src/net/admin/collect.rs") + &text("src/net/admin/collect_cluster.rs");
    let words = rules.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let metrics: Vec<_> =
        words.filter(|word| word.starts_with("gateway_") || word.starts_with("process_")).collect();
    assert!(metrics.len() > 10, "{metrics:?}");
    for name in metrics {
        assert!(collect.contains(&format!("\"{name}\"")), "{name}");
    }
    let (cases, pages) = (
        text("tests/data/alerts_test.yml"),
        ["", ".zh-CN"].map(|language| text(&format!("docs/monitoring{language}.md"))),
    );
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 7);
    for alert in alerts {
        assert!(cases.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
        assert!(pages.iter().all(|page| page.contains(&format!("`{alert}`"))), "{alert} is not described");
    }
}
