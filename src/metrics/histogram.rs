//! Times in buckets, as Prometheus reads them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper ends of the buckets, in seconds: from a commit on a fast disk to a request that is
/// given up.
pub const BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// How long something took, counted without a lock.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    longer: AtomicU64,
    micros: AtomicU64,
}

/// What it holds: each bucket with all that are shorter, as Prometheus wants them.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// By upper end.
    pub buckets: Vec<(f64, u64)>,
    /// All.
    pub count: u64,
    /// Of all, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// One more.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|end| seconds <= *end);
        let bucket = bucket.and_then(|at| self.buckets.get(at));
        bucket
            .unwrap_or(&self.longer)
            .fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What it holds now.
    pub fn counted(&self) -> Counted {
        let mut below = 0;
        let buckets = BUCKETS.iter().zip(&self.buckets);
        let buckets = buckets
            .map(|(end, bucket)| {
                below += bucket.load(Ordering::Relaxed);
                (*end, below)
            })
            .collect();
        Counted {
            buckets,
            count: below + self.longer.load(Ordering::Relaxed),
            sum: self.micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_its_bucket_and_in_all_longer_ones() {
        let histogram = Histogram::default();
        for micros in [1, 500, 501, 70_000, 31_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let Counted {
            buckets,
            count,
            sum,
        } = histogram.counted();
        assert_eq!(count, 5);
        assert!((sum - 31.071_002).abs() < 1e-9, "{sum}");
        let below = |end: f64| buckets.iter().find(|(known, _)| *known == end).unwrap().1;
        assert_eq!((below(0.0005), below(0.001), below(0.05)), (2, 3, 3));
        assert_eq!((below(0.1), below(30.0)), (4, 4));
    }
}
