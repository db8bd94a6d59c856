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

    /// One row per figure, one column per subject, and the ratio of each to what it is compared with; behind it the lowest and the
    /// highest ratio of any round, which says how much is noise.
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
            if subjects.iter().any(|subject| self.values(figure, *subject).is_some()) {
                let cells = subjects.iter().map(|subject| format!(" {} |", self.cell(figure, *subject)));
                println!("| {figure} |{}", cells.collect::<String>());
            }
        }
    }

    fn cell(&self, figure: &str, subject: Subject) -> String {
        let Some(values) = self.values(figure, subject) else { return String::new() };
        let median = percentile(&mut values.to_vec(), 0.5);
        let reference = subject.references().into_iter().find_map(|other| self.values(figure, other));
        let Some(reference) = reference.filter(|reference| !std::ptr::eq(*reference, values)) else {
            return format_value(median);
        };
        let ratio = median / percentile(&mut reference.to_vec(), 0.5);
        let mut ratios: Vec<_> = values.iter().zip(reference).map(|(value, other)| value / other).collect();
        let [lowest, highest] = [0.0, 1.0].map(|share| percentile(&mut ratios, share));
        match (ratio.is_finite(), ratios.len()) {
            (false, _) => format_value(median),
            (true, 1) => format!("{} ({ratio:.2})", format_value(median)),
            (true, _) => format!("{} ({ratio:.2}: {lowest:.2} to {highest:.2})", format_value(median)),
        }
    }

    fn values(&self, figure: &str, subject: Subject) -> Option<&[f64]> {
        let (.., values) = self.0.iter().find(|(known, of, _)| (*known, *of) == (figure, subject))?;
        Some(values)
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
