//! Automatic K over the steps: what it was told, and what it did.

use super::MAX_STEP_POINTS;
use super::draw::{Curve, Panel, Unit};
use crate::analyze::{AutoKReplay, AutoKReplayStep};
use crate::plot::{Ink, Marker};

/// Entropy and target, and K; none where there are not two steps that can be drawn.
pub(super) fn panels(replay: &AutoKReplay) -> Vec<Panel> {
    let steps = &replay.by_step;
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return vec![];
    };
    if first.step == last.step {
        return vec![];
    }
    let per_point = steps.len().div_ceil(MAX_STEP_POINTS);
    let of = |quantity: fn(&AutoKReplayStep) -> Option<f64>| -> Vec<(f64, f64)> {
        let points = steps.chunks(per_point);
        points.filter_map(|steps| mean(steps, quantity)).collect()
    };
    let entropy = of(|step| Some(step.controller?.entropy));
    let target = of(|step| Some(step.controller?.target_entropy));
    let highest = entropy.iter().chain(&target).map(|point| point.1);
    let panel = |title: &str, y_label: &str, y_max, curves| Panel {
        title: match per_point {
            1 => format!("{title}, by step"),
            several => format!("{title}, mean of {several} steps"),
        },
        x_label: "step".to_string(),
        y_label: y_label.to_string(),
        x: first.step as f64..last.step as f64,
        y_max,
        y_unit: Unit::Number,
        x_ticks: 8,
        is_x_whole: true,
        curves,
    };
    let curve = |name: &str, ink, marker, line: Vec<_>| Curve {
        name: name.to_string(),
        ink,
        marks: line.clone(),
        line,
        marker,
    };
    let fixed = replay.config.initial_k;
    let fixed_line = vec![(first.step as f64, fixed), (last.step as f64, fixed)];
    vec![
        panel(
            "Entropy",
            "nats per token",
            round_up(highest.fold(0.0, f64::max)),
            vec![
                curve("entropy", Ink::Blue, Marker::Circle, entropy),
                curve("target", Ink::Vermilion, Marker::None, target),
            ],
        ),
        panel(
            "K that automatic K sets (a replay)",
            "K",
            1.0,
            vec![
                curve(
                    "automatic",
                    Ink::Green,
                    Marker::Triangle,
                    of(|step| Some(step.k)),
                ),
                curve(
                    &format!("K = {fixed}"),
                    Ink::Purple,
                    Marker::None,
                    fixed_line,
                ),
            ],
        ),
    ]
}

/// The middle of some steps, and the mean over those of them that have the quantity.
fn mean(
    steps: &[AutoKReplayStep],
    quantity: fn(&AutoKReplayStep) -> Option<f64>,
) -> Option<(f64, f64)> {
    let values: Vec<f64> = steps.iter().filter_map(quantity).collect();
    let middle = (steps.first()?.step as f64 + steps.last()?.step as f64) / 2.0;
    let sum: f64 = values.iter().sum();
    (!values.is_empty()).then(|| (middle, sum / values.len() as f64))
}

/// The next of 1, 2 and 5 times a power of 10, so that the axis ends at a label.
fn round_up(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(highest.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    let above = steps.into_iter().find(|&step| step >= highest);
    above.unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_or_above_the_highest_value() {
        for (highest, expected) in [
            (0.0, 1.0),
            (0.09, 0.1),
            (0.1, 0.1),
            (0.42, 0.5),
            (1.2, 2.0),
            (7.0, 10.0),
            (300.0, 500.0),
        ] {
            let found = round_up(highest);
            assert!(
                (found - expected).abs() < 1e-12 * expected,
                "{highest}: {found}"
            );
        }
    }
}
