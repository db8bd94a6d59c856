//! Statistics and random numbers.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Least squares: the growth of `y` per unit of `x`. 0 for less than two points.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (mean_x, mean_y) = (
        points.iter().map(|point| point.0).sum::<f64>() / n,
        points.iter().map(|point| point.1).sum::<f64>() / n,
    );
    let both: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let square: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if square > 0.0 { both / square } else { 0.0 }
}

/// Durations, by the quarter of the run in which each was measured.
pub(crate) struct Latencies {
    start: Instant,
    total: Duration,
    micros: [Mutex<Vec<u32>>; 4],
}

impl Latencies {
    pub(crate) fn new(start: Instant, total: Duration) -> Self {
        Self { start, total, micros: Default::default() }
    }

    pub(crate) fn add(&self, latency: Duration) {
        let quarter = 4.0 * self.start.elapsed().as_secs_f64() / self.total.as_secs_f64();
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.micros[(quarter as usize).min(3)].lock().expect("nobody panics with it").push(micros);
    }

    pub(crate) fn quarters(&self) -> [Quantiles; 4] {
        std::array::from_fn(|i| {
            let mut sorted = self.micros[i].lock().expect("nobody panics with it").clone();
            sorted.sort_unstable();
            let at = |share: f64| {
                let i = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
                Duration::from_micros(sorted.get(i).copied().unwrap_or(0).into())
            };
            Quantiles { p50: at(0.5), p99: at(0.99) }
        })
    }
}

/// The median and the 99th percentile.
pub(crate) struct Quantiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}/{:.2}", self.p50.as_secs_f64() * 1e3, self.p99.as_secs_f64() * 1e3)
    }
}

/// splitmix64: the same faults for the same seed, as far as thread timing allows.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Between two numbers of milliseconds.
    pub(crate) fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}
