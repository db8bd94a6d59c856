//! The choices of a simulation: seeded, or read from a script.

#[cfg(test)]
use std::collections::BTreeSet;

/// Seeds per `cargo test`.
#[cfg(test)]
const SEEDS: u64 = 256;

/// Where the choices of a run come from.
pub(super) enum Choices {
    /// splitmix64.
    Seed(u64),
    /// One byte per choice; zeros after the last one.
    Script { bytes: Vec<u8>, used: usize },
}

impl Choices {
    pub(super) fn next(&mut self) -> u64 {
        match self {
            Self::Seed(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
            Self::Script { bytes, used } => {
                *used += 1;
                bytes.get(*used - 1).copied().unwrap_or_default().into()
            }
        }
    }

    /// Whether every byte of a script is used.
    pub(super) fn is_exhausted(&self) -> bool {
        matches!(self, Self::Script { bytes, used } if *used >= bytes.len())
    }

    /// Uniform below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True in so many of 100 cases.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What happened in a run, step by step.
#[derive(Default)]
pub(super) struct Trace {
    /// `None`: nothing is recorded.
    lines: Option<Vec<String>>,
    /// How to repeat the run.
    replay: Option<String>,
}

impl Trace {
    pub(super) fn new(record: bool, replay: Option<String>) -> Self {
        Self { lines: record.then(Vec::new), replay }
    }

    pub(super) fn log(&mut self, at_ms: u64, what: std::fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{at_ms:>8} {what}"));
        }
    }
}

/// Shows the last steps of a run that fails.
impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.lines.iter().flat_map(|lines| &lines[lines.len().saturating_sub(80)..]) {
                eprintln!("{line}");
            }
            if let Some(replay) = &self.replay {
                eprintln!("replay with: {replay}");
            }
        }
    }
}

/// Calls `run(seed, record a trace)` for [`SEEDS`] seeds, or for `SIM_SEEDS` of them, or for `SIM_SEED` alone. Together, the runs
/// must cover all of `required`.
#[cfg(test)]
pub(super) fn run_seeds(required: &[&'static str], run: impl Fn(u64, bool) -> BTreeSet<&'static str> + Sync) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIM_SEED") {
        run(seed, true);
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let covered = std::thread::scope(|scope| {
        let run = &run;
        let work = |first| {
            move || {
                let seeds = (first..seeds).step_by(workers as usize);
                seeds.flat_map(|seed| run(seed, false)).collect::<BTreeSet<_>>()
            }
        };
        let threads: Vec<_> = (0..workers).map(|first| scope.spawn(work(first))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no seed fails")).collect::<BTreeSet<_>>()
    });
    if seeds >= SEEDS {
        let missed: Vec<_> = required.iter().filter(|what| !covered.contains(*what)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    }
}
