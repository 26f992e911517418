//! Whether the picture shows what `qae step` computes, and the pages this picture.

use crate::batch::{Batch, K};
use crate::{CASE, Path};
use legible::assert_legible;
use qae::plot::{Theme, svg};

#[path = "../../tests/analyze/legible.rs"]
mod legible;

fn batch() -> Batch {
    Batch::read(Path::new(CASE)).unwrap()
}

/// The counts that the README quotes of `qae step`.
#[test]
fn counts_are_those_of_qae_step() {
    let batch = batch();
    assert_eq!((batch.prompts.len(), batch.num_hard()), (16, 11));
    assert_eq!(batch.num_responses(), 256);
    assert_eq!(batch.quantile.num_active, 52);
    let prompts = batch.prompts.iter();
    let drawn: Vec<f64> = prompts
        .flat_map(|prompt| prompt.advantages(&batch.quantile))
        .collect();
    let count = |is: fn(f64) -> bool| drawn.iter().filter(|&&advantage| is(advantage)).count();
    let signs = [count(|a| a > 0.0), count(|a| a == 0.0), count(|a| a < 0.0)];
    assert_eq!(signs, [38, 204, 14]);
    // All but two groups of 16 have both outcomes.
    assert_eq!(batch.mean.num_active, 224);
}

#[test]
fn one_outcome_acts_for_each_prompt() {
    let batch = batch();
    for prompt in &batch.prompts {
        let (successes, size) = (prompt.successes, prompt.num_responses());
        assert_eq!(size, 16);
        // ⌈0.4 · 16⌉ = 7.
        assert_eq!(prompt.is_hard, successes <= 16 - 7, "K = {K}");
        for (column, advantage) in prompt.advantages(&batch.quantile).enumerate() {
            let acts = if prompt.is_hard {
                column < successes
            } else {
                column >= successes
            };
            let is_uniform = successes == 0 || successes == size;
            assert_eq!(advantage != 0.0, acts && !is_uniform);
            assert!(advantage == 0.0 || (advantage > 0.0) == prompt.is_hard);
        }
        for (column, advantage) in prompt.advantages(&batch.mean).enumerate() {
            assert!(advantage == 0.0 || (advantage > 0.0) == (column < successes));
        }
    }
    let successes: Vec<_> = batch
        .prompts
        .iter()
        .map(|prompt| prompt.successes)
        .collect();
    assert!(successes.is_sorted());
    assert_eq!(batch.bound(), 4.0);
}

/// `cargo run --release --example batch_picture -- --out docs/plots` makes them.
#[test]
fn the_pages_show_this_picture() {
    let batch = batch();
    for theme in Theme::ALL {
        let drawn = svg(&batch, theme).unwrap();
        assert_legible(&drawn);
        assert!(drawn.len() < 60_000, "{}", drawn.len());
        let path = format!("docs/plots/batch-{}.svg", theme.name());
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
        let committed = std::fs::read_to_string(committed).unwrap();
        assert!(drawn == committed, "{path} is another picture");
    }
}
