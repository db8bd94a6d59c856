//! Prometheus text (exposition format 0.0.4): families of samples, and histograms that cost no allocation to fill.

use std::fmt::{Display, Write};
use std::time::Duration;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's numbers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// Only ever grow.
    Counter,
    /// Go up and down.
    Gauge,
}

/// The text under construction.
#[derive(Debug, Default)]
pub struct TextEncoder(String);

impl TextEncoder {
    /// One number without labels.
    pub fn scalar(&mut self, kind: MetricType, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help, [(&[] as &[(&str, &str)], value)]);
    }

    /// One number for each value of one label.
    pub fn labelled<'a, V: Display>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        label: &str,
        samples: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        let samples = samples.into_iter().map(|(of, value)| ([(label, of)], value));
        self.family(kind, name, help, samples);
    }

    /// Numbers under one name, each with its labels.
    pub fn family<'a, L: AsRef<[(&'a str, &'a str)]>, V: Display>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) {
        let kind = match kind {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
        };
        self.help_and_type(name, help, kind);
        for (labels, value) in samples {
            self.sample(name, labels.as_ref(), value);
        }
    }

    /// A histogram of seconds.
    pub fn histogram<const N: usize>(&mut self, name: &str, help: &str, histogram: &Histogram<N>) {
        self.help_and_type(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (limit, count) in histogram.upper_bounds.iter().zip(histogram.bucket_counts) {
            below += count;
            self.sample(&bucket, &[("le", &limit.as_secs_f64().to_string())], below);
        }
        let all = below + histogram.overflow_count;
        self.sample(&bucket, &[("le", "+Inf")], all);
        self.sample(&format!("{name}_sum"), &[], histogram.sum.as_secs_f64());
        self.sample(&format!("{name}_count"), &[], all);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.0
    }

    fn help_and_type(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, of)) in labels.iter().enumerate() {
            let of = of.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{of}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }
}

/// How often something took how long.
#[derive(Clone, Debug)]
pub struct Histogram<const N: usize> {
    /// Upper ends of the buckets, inclusive, in ascending order.
    upper_bounds: [Duration; N],
    bucket_counts: [u64; N],
    overflow_count: u64,
    sum: Duration,
}

impl<const N: usize> Histogram<N> {
    /// An empty one with buckets up to each of these limits, in ascending order.
    pub const fn new(limits: [Duration; N]) -> Self {
        Self { upper_bounds: limits, bucket_counts: [0; N], overflow_count: 0, sum: Duration::ZERO }
    }

    /// One more.
    pub fn observe(&mut self, took: Duration) {
        let bucket = self.upper_bounds.iter().position(|limit| took <= *limit);
        *bucket.map_or(&mut self.overflow_count, |bucket| &mut self.bucket_counts[bucket]) += 1;
        self.sum += took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_the_exposition_format() {
        let mut text = TextEncoder::default();
        text.scalar(MetricType::Gauge, "a", "An a.", 1.5);
        text.labelled(MetricType::Counter, "b_total", "Bs.", "of", [("x", 1), ("a\\\"\n", 2)]);
        text.family(MetricType::Gauge, "c", "Cs.", [([("one", "1"), ("two", "2")], 3)]);
        let mut histogram = Histogram::new([Duration::from_millis(10), Duration::from_secs(1)]);
        for ms in [10, 11, 1000, 5000] {
            histogram.observe(Duration::from_millis(ms));
        }
        text.histogram("d_seconds", "Ds.", &histogram);
        let expected = r#"# HELP a An a.
# TYPE a gauge
a 1.5
# HELP b_total Bs.
# TYPE b_total counter
b_total{of="x"} 1
b_total{of="a\\\"\n"} 2
# HELP c Cs.
# TYPE c gauge
c{one="1",two="2"} 3
# HELP d_seconds Ds.
# TYPE d_seconds histogram
d_seconds_bucket{le="0.01"} 1
d_seconds_bucket{le="1"} 3
d_seconds_bucket{le="+Inf"} 4
d_seconds_sum 6.021
d_seconds_count 4
"#;
        assert_eq!(text.finish(), expected);
    }
}
