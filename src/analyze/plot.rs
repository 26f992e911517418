//! Two pictures in one: what each K does, and how much of each step would train.

mod draw;
mod theme;

pub use theme::Theme;

use super::{Analysis, ByK, ByStep, GroupSize, files};
use crate::config::Interpolation;
use crate::error::{Error, Result};
use crate::io::{check_place, write_whole};
use draw::{Curve, Marker, Panel, draw};
use plotters::prelude::{BitMapBackend, IntoDrawingArea, SVGBackend};
use std::path::{Path, PathBuf};

/// In units of the drawing: pixels of an SVG, half as many as a PNG has.
const SIZE: (u32, u32) = (1280, 560);

/// A PNG has this many pixels for each unit.
const PNG_SCALE: u32 = 2;

/// K whose share is drawn over the steps.
const MAX_STEP_CURVES: usize = 4;

/// Steps beyond this many have no room for markers.
const MAX_MARKED_STEPS: usize = 40;

/// Of a curve over K.
const MAX_JUMPS: u64 = 128;

/// The kinds of pictures.
#[derive(Clone, Copy)]
enum Kind {
    Svg,
    Png,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => {
                let expected = "a name that ends in .svg or .png";
                Err(Error::invalid("--plot", expected, path.display()))
            }
        }
    }
}

/// Whether [`write`] could write to `path` without losing one of the files that `inputs`, files and
/// folders, name: reading them may take a while.
///
/// # Errors
/// [`Error::Invalid`] if the name ends in neither `.svg` nor `.png`, or is another name of an input;
/// [`Error::File`] if the folder does not exist, the file may not be replaced, or a folder of
/// `inputs` has no rollouts.
pub fn check(path: &Path, inputs: &[PathBuf]) -> Result<()> {
    Kind::of(path)?;
    if let Some(input) = files::same_file(path, files::find(inputs)?.inputs) {
        let expected = format!("another file than the input {}", input.display());
        return Err(Error::invalid("--plot", expected, path.display()));
    }
    check_place(path).map_err(|error| Error::file(path.display(), error))
}

/// Draws regimes and sparsity against K, and the active share over the steps (or the groups by
/// successes, where there is one step), into an SVG or PNG file.
///
/// # Errors
/// [`Error::Invalid`] if the name ends in neither `.svg` nor `.png`; [`Error::File`] if the file
/// cannot be written.
pub fn write(analysis: &Analysis, path: &Path, theme: Theme) -> Result<()> {
    let kind = Kind::of(path)?;
    let panels = [panel_of_k(analysis)?, panel_of_steps(analysis)];
    let title = title(analysis);
    let failed = |error: String| Error::file(path.display(), error);
    let bytes = match kind {
        Kind::Svg => svg(&title, &panels, theme),
        Kind::Png => png(&title, &panels, theme),
    };
    let bytes = bytes.map_err(|error| failed(format!("expected to draw, found {error}")))?;
    write_whole(path, &bytes).map_err(failed)
}

fn svg(title: &str, panels: &[Panel], theme: Theme) -> Result<Vec<u8>, String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area, title, panels, theme, 1)?;
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(text.into_bytes())
}

fn png(title: &str, panels: &[Panel], theme: Theme) -> Result<Vec<u8>, String> {
    let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        let backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
        let area = backend.into_drawing_area();
        draw(&area, title, panels, theme, PNG_SCALE)?;
        area.present().map_err(|error| error.to_string())?;
    }
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&pixels));
    written.map_err(|error| error.to_string())?;
    Ok(bytes)
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
    let curve = |name: &str, color, marker, share: fn(&ByK) -> f64| Curve {
        name: name.to_string(),
        color,
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
    let interpolation = report.by_k.first().map_or("", |by_k| by_k.interpolation);
    Ok(Panel {
        title: format!("Regimes and sparsity against K ({interpolation})"),
        x_label: "K".to_string(),
        y_label: "share".to_string(),
        x: 0.0..1.0,
        y_max: 1.0,
        x_ticks: 11,
        is_x_whole: false,
        curves: vec![
            curve("hard groups", 0, Marker::Square, |by_k| by_k.hard_share),
            curve("advantage > 0", 1, Marker::Triangle, |by_k| {
                by_k.signs.positive_share
            }),
            curve("advantage < 0", 2, Marker::Cross, |by_k| {
                by_k.signs.negative_share
            }),
            curve("advantage = 0", 3, Marker::Circle, |by_k| {
                by_k.signs.zero_share
            }),
            curve("tokens saved", 4, Marker::None, |by_k| {
                by_k.signs.tokens_saved_share
            }),
        ],
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
    let markers = [
        Marker::Square,
        Marker::Triangle,
        Marker::Circle,
        Marker::Cross,
    ];
    let colors = [0, 1, 3, 2];
    let chosen = step_curves(&report.by_k);
    let curves = chosen.iter().enumerate().map(|(place, &i)| {
        let line: Vec<_> = (steps.iter())
            .filter_map(|(x, step)| Some((*x, 1.0 - step.by_k.get(i)?.signs.zero_share)))
            .collect();
        Curve {
            name: format!("K = {}", report.by_k[i].k),
            color: colors[place],
            marks: if line.len() > MAX_MARKED_STEPS {
                vec![]
            } else {
                line.clone()
            },
            line,
            marker: markers[place],
        }
    });
    let curves: Vec<_> = curves.collect();
    let points = curves.iter().flat_map(|curve| &curve.line);
    let highest = points.fold(0.0, |highest: f64, point| highest.max(point.1));
    Panel {
        title: "Responses with an advantage, by step".to_string(),
        x_label: "step".to_string(),
        y_label: "share".to_string(),
        x: *first..*last,
        y_max: ((10.0 * highest).floor() / 10.0 + 0.1).min(1.0),
        x_ticks: 8,
        is_x_whole: true,
        curves,
    }
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
        x_ticks: 11,
        is_x_whole: false,
        curves: vec![Curve {
            name: "groups".to_string(),
            color: 0,
            line,
            marks: vec![],
            marker: Marker::None,
        }],
    }
}
