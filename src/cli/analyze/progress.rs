//! A bar on the terminal, for work that takes long enough to wonder.

use crate::analyze::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(300);

/// Draws nothing where standard error is no terminal.
pub(super) struct Bar {
    bar: ProgressBar,
    start: Instant,
    is_shown: AtomicBool,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self {
            bar,
            start: Instant::now(),
            is_shown: AtomicBool::new(false),
        }
    }
}

impl Progress for Bar {
    fn begin(&self, num_bytes: u64) {
        let template = match num_bytes {
            // Nobody knows how much a pipe holds.
            0 => "{bytes} read, {bytes_per_sec}",
            _ => "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_length(num_bytes);
    }

    fn advance(&self, num_bytes: u64) {
        self.bar.inc(num_bytes);
        let is_late = self.start.elapsed() > PATIENCE;
        if is_late && !self.is_shown.swap(true, Ordering::Relaxed) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Also where reading failed: the error stands alone.
impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
