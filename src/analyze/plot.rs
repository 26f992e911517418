//! Pictures in one: what each K does, how much of each step would train, and automatic K.

mod auto_k;
mod draw;

pub use crate::plot::Theme;

use super::{Analysis, ByK, ByStep, GroupSize, files};
use crate::config::Interpolation;
use crate::error::{Error, Result};
use crate::plot::{self, Ink, Marker};
use draw::{Curve, Panel, Panels, Unit};
use std::path::{Path, PathBuf};

/// K whose share is drawn over the steps.
const MAX_STEP_CURVES: usize = 4;

/// More steps than this would be noise: neighbors are put together.
const MAX_STEP_POINTS: usize = 40;

/// Of a curve over K.
const MAX_JUMPS: u64 = 128;

/// Whether [`write()`] could write to `path` without losing one of the files that `inputs`, files and
/// folders, name: reading them may take a while.
///
/// # Errors
/// [`Error::Invalid`] if the name ends in neither `.svg` nor `.png`, or is another name of an input;
/// [`Error::File`] if the folder does not exist, the file may not be replaced, or a folder of
/// `inputs` has no rollouts.
pub fn check(path: &Path, inputs: &[PathBuf]) -> Result<()> {
    plot::check(path)?;
    if let Some(input) = files::same_file(path, files::find(inputs)?.inputs) {
        let expected = format!("another file than the input {}", input.display());
        return Err(Error::invalid("plot", expected, path.display()));
    }
    Ok(())
}

/// Draws regimes and sparsity against K, and the active share over the steps (or the groups by
/// successes, where there is one step), into an SVG or PNG file; below them, where automatic K was
/// replayed, entropy and K over the steps.
///
/// # Errors
/// [`Error::Invalid`] if the name ends in neither `.svg` nor `.png`; [`Error::File`] if the file
/// cannot be written.
pub fn write(analysis: &Analysis, path: &Path, theme: Theme) -> Result<()> {
    let mut panels = vec![panel_of_k(analysis)?, panel_of_steps(analysis)];
    if let Some(replay) = &analysis.report.auto_k {
        panels.extend(auto_k::panels(replay));
    }
    let title = title(analysis);
    plot::write(&Panels { title, panels }, path, theme)
}

fn title(analysis: &Analysis) -> String {
    let report = &analysis.report;
    let sizes = match &report.group_sizes[..] {
        [only] => format!(" of {}", only.size),
        _ => String::new(),
    };
    format!(
        "{}: {} responses in {} groups{sizes}",
        report.format, report.responses, report.groups
    )
}

fn panel_of_k(analysis: &Analysis) -> Result<Panel> {
    let report = &analysis.report;
    let (bounds, fine) = if report.rewards.binary {
        let bounds = jumps(&report.group_sizes, analysis.options.interpolation);
        let middles: Vec<_> = bounds
            .windows(2)
            .map(|pair| (pair[0] + pair[1]) / 2.0)
            .collect();
        (bounds, analysis.by_k(&middles)?)
    } else {
        (vec![], report.by_k.clone())
    };
    let curve = |name: &str, ink, marker, share: fn(&ByK) -> f64| Curve {
        name: name.to_string(),
        ink,
        line: match &bounds[..] {
            [] => fine.iter().map(|by_k| (by_k.k, share(by_k))).collect(),
            bounds => (bounds.windows(2).zip(&fine))
                .flat_map(|(pair, by_k)| pair.iter().map(|&k| (k, share(by_k))))
                .collect(),
        },
        marks: report
            .by_k
            .iter()
            .map(|by_k| (by_k.k, share(by_k)))
            .collect(),
        marker,
    };
    // Between zeros of binary rewards and their tokens there is little to see, but much between
    // zeros with and without a gate where rewards are continuous.
    let last: (_, fn(&ByK) -> f64) = if report.rewards.binary {
        ("tokens saved", |by_k| by_k.signs.tokens_saved_share)
    } else {
        ("= 0 with two-regime gate", |by_k| {
            by_k.two_regime.zero_share
        })
    };
    let curves = vec![
        curve("hard groups", Ink::Blue, Marker::Square, |by_k| {
            by_k.hard_share
        }),
        curve("advantage > 0", Ink::Green, Marker::Triangle, |by_k| {
            by_k.signs.positive_share
        }),
        curve("advantage < 0", Ink::Vermilion, Marker::Cross, |by_k| {
            by_k.signs.negative_share
        }),
        curve("advantage = 0", Ink::Text, Marker::Circle, |by_k| {
            by_k.signs.zero_share
        }),
        curve(last.0, Ink::Purple, Marker::None, last.1),
    ];
    let interpolation = report.by_k.first().map_or("", |by_k| by_k.interpolation);
    Ok(Panel {
        title: format!("Regimes and sparsity against K ({interpolation})"),
        x_label: "K".to_string(),
        y_label: "share".to_string(),
        x: 0.0..1.0,
        y_max: 1.0,
        y_unit: Unit::Share,
        x_ticks: 11,
        is_x_whole: false,
        curves,
    })
}

/// Between two of these K nothing changes for binary rewards: the rank is ⌈K·G⌉, and linear
/// interpolation leaves a reward at multiples of 1/(G − 1).
fn jumps(sizes: &[GroupSize], interpolation: Interpolation) -> Vec<f64> {
    let mut jumps = vec![0.0, 1.0];
    for &GroupSize { size, .. } in sizes {
        let parts = match interpolation {
            Interpolation::InvertedCdf => [size, 1],
            Interpolation::Linear => [size, size.saturating_sub(1)],
        };
        for parts in parts {
            jumps.extend((1..parts.min(MAX_JUMPS + 1)).map(|i| i as f64 / parts as f64));
        }
        jumps.sort_by(f64::total_cmp);
        jumps.dedup_by(|a, b| *a - *b < 1e-9);
        if size > MAX_JUMPS || jumps.len() as u64 > MAX_JUMPS {
            // Nobody could see all of them.
            return (0..=MAX_JUMPS)
                .map(|i| i as f64 / MAX_JUMPS as f64)
                .collect();
        }
    }
    jumps
}

fn panel_of_steps(analysis: &Analysis) -> Panel {
    let report = &analysis.report;
    let steps: Vec<(f64, &ByStep)> = (report.by_step.iter())
        .filter_map(|by_step| Some((by_step.step? as f64, by_step)))
        .collect();
    let (Some((first, _)), Some((last, _))) = (steps.first(), steps.last()) else {
        return panel_of_successes(analysis);
    };
    if first == last {
        return panel_of_successes(analysis);
    }
    let looks = [
        (Ink::Blue, Marker::Square),
        (Ink::Green, Marker::Triangle),
        (Ink::Text, Marker::Circle),
        (Ink::Vermilion, Marker::Cross),
    ];
    let steps_of_point = steps.len().div_ceil(MAX_STEP_POINTS);
    let curves = step_curves(&report.by_k).into_iter().zip(looks);
    let curves = curves.map(|(i, (ink, marker))| {
        let points = steps.chunks(steps_of_point);
        let line: Vec<_> = points.map(|steps| active_share(steps, i)).collect();
        Curve {
            name: format!("K = {}", report.by_k[i].k),
            ink,
            marks: line.clone(),
            line,
            marker,
        }
    });
    let curves: Vec<_> = curves.collect();
    let points = curves.iter().flat_map(|curve| &curve.line);
    let highest = points.fold(0.0, |highest: f64, point| highest.max(point.1));
    Panel {
        title: match steps_of_point {
            1 => "Responses with an advantage, by step".to_string(),
            several => format!("Responses with an advantage, mean of {several} steps"),
        },
        x_label: "step".to_string(),
        y_label: "share".to_string(),
        x: *first..*last,
        y_max: ((10.0 * highest).floor() / 10.0 + 0.1).min(1.0),
        y_unit: Unit::Share,
        x_ticks: 8,
        is_x_whole: true,
        curves,
    }
}

/// The middle of some steps, and which share of their responses has an advantage at a K of the list.
fn active_share(steps: &[(f64, &ByStep)], k: usize) -> (f64, f64) {
    let (mut active, mut all) = (0, 0);
    for signs in (steps.iter()).filter_map(|(_, step)| Some(&step.by_k.get(k)?.signs)) {
        active += signs.positive + signs.negative;
        all += signs.positive + signs.zero + signs.negative;
    }
    let middle = (steps[0].0 + steps[steps.len() - 1].0) / 2.0;
    (middle, active as f64 / all.max(1) as f64)
}

/// K that are different methods, evenly over the list.
fn step_curves(by_k: &[ByK]) -> Vec<usize> {
    let is_first = |i: &usize| {
        by_k[..*i]
            .iter()
            .all(|earlier| !by_k[*i].same_method_as.contains(&earlier.k))
    };
    let distinct: Vec<_> = (0..by_k.len()).filter(is_first).collect();
    let num_curves = distinct.len().min(MAX_STEP_CURVES);
    // The middles of equal parts: of 0.1 to 0.9 these are 0.2, 0.4, 0.6 and 0.8.
    (0..num_curves)
        .map(|i| distinct[(2 * i + 1) * distinct.len() / (2 * num_curves)])
        .collect()
}

/// How many of the groups have at most so large a share of successes.
fn panel_of_successes(analysis: &Analysis) -> Panel {
    let report = &analysis.report;
    let mut shares: Vec<(f64, u64)> = (report.success_histogram.iter())
        .filter(|entry| entry.size > 0)
        .map(|entry| (entry.successes as f64 / entry.size as f64, entry.groups))
        .collect();
    shares.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: u64 = shares.iter().map(|(_, groups)| groups).sum();
    let (mut sum, mut line) = (0, vec![(0.0, 0.0)]);
    for (share, groups) in shares {
        let before = sum as f64 / total as f64;
        sum += groups;
        line.extend([(share, before), (share, sum as f64 / total as f64)]);
    }
    line.push((1.0, 1.0));
    Panel {
        title: "Groups by their share of successes".to_string(),
        x_label: "share of successes p".to_string(),
        y_label: "share of groups with at most p".to_string(),
        x: 0.0..1.0,
        y_max: 1.0,
        y_unit: Unit::Share,
        x_ticks: 11,
        is_x_whole: false,
        curves: vec![Curve {
            name: "groups".to_string(),
            ink: Ink::Blue,
            line,
            marks: vec![],
            marker: Marker::Circle,
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::{Options, analyze};
    use std::io::Write;

    #[test]
    fn steps_put_together_weigh_by_their_responses() {
        let mut file = tempfile::Builder::new()
            .suffix(".jsonl")
            .tempfile()
            .unwrap();
        // In turns 8 of 16 responses that act, and none of 8.
        for step in 0..80 {
            let is_mixed = step % 2 == 0;
            for i in 0..if is_mixed { 16 } else { 8 } {
                let score = u8::from(is_mixed && i % 2 == 0);
                let row = r#""input": "", "output": """#;
                writeln!(file, r#"{{{row}, "score": {score}, "step": {step}}}"#).unwrap();
            }
        }
        let paths = [file.path().to_path_buf()];
        let analysis = analyze(&paths, &Options::default(), &()).unwrap();
        let panel = panel_of_steps(&analysis);
        assert!(panel.title.ends_with("mean of 2 steps"));
        assert_eq!(panel.curves.len(), MAX_STEP_CURVES);
        for curve in &panel.curves {
            let expected: Vec<_> = (0..40)
                .map(|i| (f64::from(2 * i) + 0.5, 1.0 / 3.0))
                .collect();
            assert_eq!((&curve.line, &curve.marks), (&expected, &expected));
        }
    }
}
