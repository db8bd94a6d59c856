//! Figures of several rounds, and their medians as a table.

use super::measured_process::Subject;

/// Everything measured so far.
#[derive(Default)]
pub(crate) struct Report(Vec<(&'static str, Subject, Vec<f64>)>);

impl Report {
    pub(crate) fn add(&mut self, figure: &'static str, subject: Subject, value: f64) {
        eprintln!("  {figure}, {subject}: {}", format_value(value));
        match self.0.iter_mut().find(|(known, of, _)| (*known, *of) == (figure, subject)) {
            Some((_, _, values)) => values.push(value),
            None => self.0.push((figure, subject, vec![value])),
        }
    }

    /// One row per figure, one column per subject, and the ratio of each to the first.
    pub(crate) fn print(&self, title: &str, figures: &[&str]) {
        let mut subjects: Vec<Subject> = Vec::new();
        for (figure, subject, _) in &self.0 {
            if figures.contains(figure) && !subjects.contains(subject) {
                subjects.push(*subject);
            }
        }
        if subjects.is_empty() {
            return;
        }
        subjects.sort();
        println!(
            "\n| {title} |{}",
            subjects.iter().map(|subject| format!(" {subject} |")).collect::<String>()
        );
        println!("| --- |{}", " --- |".repeat(subjects.len()));
        for figure in figures {
            let values: Vec<_> = subjects.iter().map(|subject| self.median(figure, *subject)).collect();
            if values.iter().all(Option::is_none) {
                continue;
            }
            let first = values[0];
            let cells = values.iter().enumerate().map(|(i, value)| match (value, first) {
                (None, _) => " |".to_owned(),
                (Some(value), Some(first)) if i > 0 && first != 0.0 => {
                    format!(" {} ({:.2}) |", format_value(*value), value / first)
                }
                (Some(value), _) => format!(" {} |", format_value(*value)),
            });
            println!("| {figure} |{}", cells.collect::<String>());
        }
    }

    fn median(&self, figure: &str, subject: Subject) -> Option<f64> {
        let (.., values) = self.0.iter().find(|(known, of, _)| (*known, *of) == (figure, subject))?;
        Some(percentile(&mut values.clone(), 0.5))
    }
}

/// The quantile of this share.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Three significant digits.
fn format_value(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
