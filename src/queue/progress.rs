//! How far running jobs are: written often, told now and then.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::Progress;

/// Weight of the newest measurement in the rate.
const SMOOTHING: f64 = 0.3;
/// Longest text of a step, in characters.
const STEP_CHARS: usize = 80;
/// Shortest time between two measurements of the rate.
const MEASURE: Duration = Duration::from_millis(200);

/// Takes a running job's reports and turns them into a rate and an estimate.
#[derive(Debug)]
pub(super) struct Meter {
    reading: Mutex<Reading>,
}

#[derive(Debug)]
struct Reading {
    progress: Progress,
    measured: Instant,
    measured_done: u64,
    is_told: bool,
}

impl Meter {
    pub(super) fn new(progress: Progress) -> Self {
        let measured_done = progress.done;
        Self { reading: Mutex::new(Reading { progress, measured: Instant::now(), measured_done, is_told: true }) }
    }

    pub(super) fn note(&self, step: &str, done: u64, total: Option<u64>) {
        let now = Instant::now();
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.note(step, done, total, now);
    }

    /// What was reported since the last call; none when nothing was.
    pub(super) fn news(&self) -> Option<Progress> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut reading.is_told, true) { None } else { Some(reading.progress.clone()) }
    }

    /// The last report.
    pub(super) fn current(&self) -> Progress {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).progress.clone()
    }
}

impl Reading {
    fn note(&mut self, step: &str, done: u64, total: Option<u64>, now: Instant) {
        let step: String = step.chars().take(STEP_CHARS).collect();
        if self.progress.step != step || done < self.progress.done {
            // Another step has units of its own.
            self.progress = Progress { step, ..Progress::default() };
            (self.measured, self.measured_done) = (now, done);
        }
        let elapsed = now.duration_since(self.measured);
        if elapsed >= MEASURE {
            #[expect(clippy::cast_precision_loss, reason = "a rate that people read")]
            let fresh = (done - self.measured_done) as f64 / elapsed.as_secs_f64();
            let rate = self.progress.rate.map_or(fresh, |rate| rate + SMOOTHING * (fresh - rate));
            self.progress.rate = Some(rate);
            (self.measured, self.measured_done) = (now, done);
        }
        (self.progress.done, self.progress.total) = (done, total);
        self.progress.eta_seconds = estimate(total.map(|total| total.saturating_sub(done)), self.progress.rate);
        self.is_told = false;
    }
}

/// Seconds for what is left at a rate.
fn estimate(left: Option<u64>, rate: Option<f64>) -> Option<u64> {
    let rate = rate.filter(|rate| *rate > f64::EPSILON)?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of seconds that people read; the cast saturates"
    )]
    Some((left? as f64 / rate).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_steady_job_gets_a_rate_and_an_estimate() {
        let meter = Meter::new(Progress::default());
        assert_eq!(meter.news(), None);
        for second in 0..=10 {
            meter.note("copy", second * 100, Some(2_000));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let progress = meter.news().unwrap();
        assert_eq!((progress.done, progress.total, progress.eta_seconds), (1_000, Some(2_000), Some(10)));
        assert_eq!(progress.percent(), Some(50.0));
        assert_eq!(meter.news(), None);
        meter.note("sum", 1, None);
        assert_eq!(meter.news(), Some(Progress { step: "sum".to_owned(), done: 1, ..Progress::default() }));
    }
}
