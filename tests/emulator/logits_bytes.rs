//! Global memory traffic from logits: every row once in, every gradient once out.
//!
//! The floor counts rows of logits alone (U: all rows once). Everything else is overhead: what the
//! tokens bring with them, their results, partial sums and the second look at the few elements that
//! stand outside of whole vectors.

use qae::params::RowPolicy;
use qae::{DType, Gradient, Groups, MetricsScope, Normalizer, Objective};
use qae_emulator::{LogitsPlacement, Options, Trace};

use crate::case::{Rows, Source};
use crate::log_probs::rows;
use crate::logits_case::LogitsCase;
use crate::random::vec_of;

/// Bytes moved over the floor that the project promises.
const MOST: f64 = 1.02;

/// A batch whose rows are as long as a model's.
struct Traffic {
    name: &'static str,
    vocab_size: usize,
    dtype: DType,
    /// 80 % of the responses have an advantage of exactly 0.
    sparse: bool,
    gradient: Gradient,
    in_place: bool,
    row_policy: RowPolicy,
    options: Options,
}

impl Traffic {
    fn new(name: &'static str, vocab_size: usize, dtype: DType) -> Self {
        Self {
            name,
            vocab_size,
            dtype,
            sparse: false,
            gradient: Gradient::ZeroFill,
            in_place: true,
            row_policy: RowPolicy::Auto,
            options: Options::default(),
        }
    }

    /// Ten responses of two tokens.
    fn case(&self) -> LogitsCase {
        let layout = Rows::padded(10, 2);
        let mut case = LogitsCase::fill(1, layout, self.vocab_size, self.dtype);
        // The successes of a hard group act alone; with groups of two every response acts.
        let (rewards, group_size) = match self.sparse {
            true => (vec_of(10, |response| f32::from(u8::from(response < 2))), 10),
            false => (vec_of(10, |response| (response % 2) as f32), 2),
        };
        case.advantage = Source::Rewards {
            rewards,
            groups: Groups::uniform(10, group_size).unwrap(),
            response_index: None,
        };
        if !self.sparse {
            case.config.advantage.baseline = qae::Baseline::Mean;
        }
        case.config.normalizer = Normalizer::Value(20.0);
        case.config.metrics_scope = MetricsScope::Active;
        case.config.gradient = self.gradient;
        case.backend.options = self.options.clone();
        case.backend.logits = LogitsPlacement {
            row_policy: self.row_policy,
            in_place: self.in_place,
            ..LogitsPlacement::default()
        };
        case
    }

    /// Bytes moved over those of the rows that have to move, which are printed.
    fn ratio(&self) -> f64 {
        let case = self.case();
        let run = case
            .backend
            .run_loss_from_logits(&case.batch(), &case.config)
            .unwrap();
        let acting = if self.sparse { 4 } else { 20 };
        assert_eq!(
            run.output.loss.metrics.active_tokens, acting,
            "{}",
            self.name
        );
        let written = match self.gradient {
            Gradient::ZeroFill => 20,
            Gradient::Untouched | Gradient::Compact => acting,
        };
        let row = (self.vocab_size * self.dtype.size()) as u64;
        let name = format!(
            "{}, {} columns, {:?}",
            self.name, self.vocab_size, self.dtype
        );
        print_ratio(&name, &run.loss_trace, (acting + written) * row)
    }
}

fn print_ratio(name: &str, trace: &Trace, floor: u64) -> f64 {
    let moved = trace.bytes_read() + trace.bytes_written();
    let sectors = 32 * (trace.sectors_read() + trace.sectors_written());
    let ratio = moved as f64 / floor as f64;
    let sector_ratio = sectors as f64 / floor as f64;
    println!("{ratio:.4} (sectors {sector_ratio:.4}) of {floor} B: {name}");
    ratio
}

const VOCABULARIES: [(usize, DType); 4] = [
    (32_000, DType::Bf16),
    (128_256, DType::Bf16),
    (151_936, DType::Bf16),
    (151_936, DType::F32),
];

#[test]
fn dense_batches() {
    for (vocab_size, dtype) in VOCABULARIES {
        for in_place in [true, false] {
            let traffic = Traffic {
                in_place,
                ..Traffic::new("dense", vocab_size, dtype)
            };
            assert!(traffic.ratio() <= MOST, "{vocab_size} {dtype:?}");
        }
    }
}

#[test]
fn sparse_batches() {
    for (vocab_size, dtype) in VOCABULARIES {
        for (name, gradient, in_place) in [
            (
                "80 % inactive, zero fill in place",
                Gradient::ZeroFill,
                true,
            ),
            ("80 % inactive, zero fill", Gradient::ZeroFill, false),
            (
                "80 % inactive, untouched in place",
                Gradient::Untouched,
                true,
            ),
            ("80 % inactive, compact", Gradient::Compact, false),
        ] {
            let traffic = Traffic {
                sparse: true,
                gradient,
                in_place,
                ..Traffic::new(name, vocab_size, dtype)
            };
            assert!(traffic.ratio() <= MOST, "{name}, {vocab_size} {dtype:?}");
        }
    }
}

/// The ratio of a response takes the log-probs of all its rows first: one more pass over the logits.
#[test]
fn gspo_reads_twice() {
    let traffic = Traffic::new("GSPO", 32_000, DType::Bf16);
    let mut case = traffic.case();
    case.config.objective = Objective::Gspo {
        low: Some(0.02),
        high: Some(0.03),
        log_ratio_max: None,
    };
    let run = case
        .backend
        .run_loss_from_logits(&case.batch(), &case.config)
        .unwrap();
    let floor = 2 * 20 * 64_000;
    let ratio = print_ratio("GSPO, 32000 columns, Bf16", &run.loss_trace, floor);
    // A response that is clipped has rows of 0, which are no less to write.
    assert!(ratio <= MOST * 1.5, "{ratio}");
}

/// Rows that start anywhere.
#[test]
fn unaligned_batches() {
    let traffic = Traffic::new("unaligned rows", 151_937, DType::Bf16);
    assert!(traffic.ratio() <= MOST);
}

/// Without clusters a row that fits into the shared memory of a block moves once as well; of a
/// longer one the part that does not fit is read twice.
#[test]
fn blocks_read_again_what_they_cannot_hold() {
    for (name, options, held) in [
        ("blocks of 163 KiB", Options::sm80(), 140 << 10),
        ("blocks of 227 KiB", Options::default(), 200 << 10),
    ] {
        for (vocab_size, dtype) in VOCABULARIES {
            let traffic = Traffic {
                row_policy: RowPolicy::Block,
                options: options.clone(),
                ..Traffic::new(name, vocab_size, dtype)
            };
            let row = (vocab_size * dtype.size()) as f64;
            let again = (row - f64::from(held)).max(0.0);
            assert!(
                traffic.ratio() <= MOST * (2.0 * row + again) / (2.0 * row),
                "{name}"
            );
        }
    }
}

#[test]
fn log_probs_read_once_and_write_next_to_nothing() {
    for (vocab_size, dtype) in VOCABULARIES {
        let rows = rows(2, 8, vocab_size, dtype);
        let run = rows
            .backend
            .run_log_probs_from_logits(&rows.input())
            .unwrap();
        let floor = (8 * vocab_size * dtype.size()) as u64;
        assert!(
            print_ratio(
                &format!("log-probs, {vocab_size} columns, {dtype:?}"),
                &run.trace,
                floor
            ) <= MOST
        );
    }
}

#[test]
fn gradients_of_log_probs_read_once_and_write_once() {
    for (vocab_size, dtype) in VOCABULARIES {
        for in_place in [true, false] {
            let mut rows = rows(3, 8, vocab_size, dtype);
            rows.backend.logits.in_place = in_place;
            let mut gradient = vec![0.25; 8];
            let run = |gradient: &[f32]| {
                let mode = Gradient::Untouched;
                let backend = &rows.backend;
                let run =
                    backend.run_log_probs_from_logits_backward(&rows.input(), gradient, None, mode);
                run.unwrap().trace
            };
            let row = (vocab_size * dtype.size()) as u64;
            let name =
                |what| format!("{what}, {vocab_size} columns, {dtype:?}, in place {in_place}");
            assert!(print_ratio(&name("gradients"), &run(&gradient), 16 * row) <= MOST);
            // Rows without a gradient move nothing.
            gradient[1..7].fill(0.0);
            let ratio = print_ratio(&name("gradients of a few"), &run(&gradient), 4 * row);
            assert!(ratio <= MOST);
        }
    }
}
