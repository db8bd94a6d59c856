//! Prometheus text (exposition format 0.0.4): families of samples, and histograms that cost no allocation to fill.

use std::fmt::Write;
use std::time::Duration;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Families of samples.
#[derive(Debug, Default)]
pub struct MetricFamilies(Vec<Family>);

/// Samples of one name.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    /// Behind the family's name: `_bucket`, `_sum`, `_count`, or nothing.
    suffix: &'static str,
    /// In braces, unless there are none.
    labels: String,
    value: f64,
}

/// A number that a sample can have.
pub trait MetricValue {
    /// Exact up to 2^53.
    fn to_f64(self) -> f64;
}

macro_rules! metric_values {
    ($($number:ty)*) => {
        $(impl MetricValue for $number {
            fn to_f64(self) -> f64 {
                self as f64
            }
        })*
    };
}
metric_values!(u8 i32 u64 i64 usize f64);

impl MetricFamilies {
    /// A family whose numbers only ever grow.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family("counter", name, help)
    }

    /// A family whose numbers go up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family("gauge", name, help)
    }

    /// A family of histograms of seconds.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family("histogram", name, help)
    }

    fn family(&mut self, kind: &'static str, name: &'static str, help: &'static str) -> &mut Family {
        let index = self.0.len();
        self.0.push(Family { name, help, kind, samples: Vec::new() });
        &mut self.0[index]
    }

    /// Adds the numbers of another worker, which has the same families or the first of them.
    pub fn add(&mut self, other: &Self) {
        for (family, more) in self.0.iter_mut().zip(&other.0) {
            for (sample, more) in family.samples.iter_mut().zip(&more.samples) {
                sample.value += more.value;
            }
        }
    }

    /// The text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for Family { name, help, kind, samples } in &self.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for Sample { suffix, labels, value } in samples {
                let _ = writeln!(text, "{name}{suffix}{labels} {value}");
            }
        }
        text
    }
}

impl Family {
    /// One number without labels.
    pub fn value(&mut self, value: impl MetricValue) {
        self.with(&[], value);
    }

    /// One number with these labels.
    pub fn with(&mut self, labels: &[(&str, &str)], value: impl MetricValue) {
        self.samples.push(Sample::new("", labels, value));
    }

    /// One number for each value of one label.
    pub fn by<'a, V: MetricValue>(&mut self, label: &str, samples: impl IntoIterator<Item = (&'a str, V)>) {
        samples.into_iter().for_each(|(of, value)| self.with(&[(label, of)], value));
    }

    /// One histogram.
    pub fn seconds<const N: usize>(&mut self, histogram: &Histogram<N>) {
        self.samples.extend(histogram.samples(&[]));
    }

    /// One histogram for each value of one label.
    pub fn seconds_by<'a, const N: usize>(
        &mut self,
        label: &str,
        histograms: impl IntoIterator<Item = (&'a str, &'a Histogram<N>)>,
    ) {
        let samples = histograms.into_iter().flat_map(|(of, histogram)| histogram.samples(&[(label, of)]));
        self.samples.extend(samples);
    }
}

impl Sample {
    fn new(suffix: &'static str, labels: &[(&str, &str)], value: impl MetricValue) -> Self {
        let mut text = String::new();
        for (index, (label, of)) in labels.iter().enumerate() {
            let of = of.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(text, "{open}{label}=\"{of}\"");
        }
        if !labels.is_empty() {
            text.push('}');
        }
        Self { suffix, labels: text, value: value.to_f64() }
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

    fn samples(&self, labels: &[(&str, &str)]) -> Vec<Sample> {
        let mut samples = Vec::with_capacity(N + 3);
        let mut bucket = |limit: &str, below: u64| {
            let labels: Vec<_> = labels.iter().copied().chain([("le", limit)]).collect();
            samples.push(Sample::new("_bucket", &labels, below));
        };
        let mut below = 0;
        for (limit, count) in self.upper_bounds.iter().zip(self.bucket_counts) {
            below += count;
            bucket(&limit.as_secs_f64().to_string(), below);
        }
        let all = below + self.overflow_count;
        bucket("+Inf", all);
        samples.push(Sample::new("_sum", labels, self.sum.as_secs_f64()));
        samples.push(Sample::new("_count", labels, all));
        samples
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_the_exposition_format() {
        let mut text = MetricFamilies::default();
        text.gauge("a", "An a.").value(1.5);
        text.counter("b_total", "Bs.").by("of", [("x", 1), ("a\\\"\n", 2)]);
        text.gauge("c", "Cs.").with(&[("one", "1"), ("two", "2")], 3);
        let mut histogram = Histogram::new([Duration::from_millis(10), Duration::from_secs(1)]);
        for ms in [10, 11, 1000, 5000] {
            histogram.observe(Duration::from_millis(ms));
        }
        text.histogram("d_seconds", "Ds.").seconds(&histogram);
        text.histogram("e_seconds", "Es.").seconds_by("of", [("x", &histogram)]);
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
# HELP e_seconds Es.
# TYPE e_seconds histogram
e_seconds_bucket{of="x",le="0.01"} 1
e_seconds_bucket{of="x",le="1"} 3
e_seconds_bucket{of="x",le="+Inf"} 4
e_seconds_sum{of="x"} 6.021
e_seconds_count{of="x"} 4
"#;
        assert_eq!(text.to_text(), expected);
    }
}
