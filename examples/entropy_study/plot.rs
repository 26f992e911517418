//! Entropy and success over the rollouts, one column a setting.

mod style;

use crate::Result;
use crate::method::Method;
use crate::study::{Spread, Study};
use crate::training::Run;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use qae::plot::{Area, Drawn, Pen, Picture, Theme, write as write_picture};
use std::path::{Path, PathBuf};

const SIZE: (u32, u32) = (1000, 600);
const LEGEND_WIDTH: u32 = 205;
/// Markers on each line.
const MARKERS: usize = 5;

/// What a row of panels shows.
struct Quantity {
    name: &'static str,
    range: std::ops::Range<f64>,
    of: fn(&Run) -> &[f64],
}

const QUANTITIES: [Quantity; 2] = [
    Quantity {
        name: "entropy (nats per token)",
        range: 0.0..1.2,
        of: |run| &run.entropy,
    },
    Quantity {
        name: "success rate",
        range: 0.0..1.0,
        of: |run| &run.success,
    },
];

/// Writes the plot for light and dark pages, as SVG and as PNG.
pub fn write(study: &Study, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut written = vec![];
    for theme in Theme::ALL {
        for extension in ["svg", "png"] {
            let path = directory.join(format!("entropy-study-{}.{extension}", theme.name()));
            write_picture(study, &path, theme)?;
            written.push(path);
        }
    }
    Ok(written)
}

impl Picture for Study {
    fn size(&self) -> (u32, u32) {
        SIZE
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>, pen: Pen) -> Drawn<B> {
        let (panels, legend) = area.split_horizontally(pen.units(SIZE.0 - LEGEND_WIDTH));
        let columns = self.settings.len();
        for (index, panel) in panels
            .split_evenly((QUANTITIES.len(), columns))
            .iter()
            .enumerate()
        {
            draw_panel(self, panel, index / columns, index % columns, pen)?;
        }
        draw_legend(self, &legend, pen)
    }
}

fn draw_panel<B: DrawingBackend>(
    study: &Study,
    panel: &Area<B>,
    row: usize,
    column: usize,
    pen: Pen,
) -> Drawn<B> {
    let quantity = &QUANTITIES[row];
    // Of the same size in all, so that panels align.
    let title = if row == 0 {
        study.settings[column].name
    } else {
        " "
    };
    let description = if column == 0 { quantity.name } else { "" };
    let mut chart = ChartBuilder::on(panel)
        .margin(pen.units(6))
        .margin_right(pen.units(16))
        .caption(title, pen.text(18))
        .x_label_area_size(pen.units(42))
        .y_label_area_size(pen.units(54))
        .build_cartesian_2d(0..study.rollouts, quantity.range.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(pen.theme.grid().stroke_width(pen.units(1)))
        .axis_style(pen.theme.axis().stroke_width(pen.units(1)))
        .label_style(pen.text(15))
        .x_labels(7)
        .y_labels(7)
        .y_label_formatter(&|y| format!("{y:.1}"))
        .axis_desc_style(pen.text(16))
        .x_desc("rollout")
        .y_desc(description)
        .draw()?;
    let plane = chart.plotting_area();
    if row == 0
        && let Some(target) = target_entropy(study, column)
    {
        let ends = [(0, target), (study.rollouts, target)];
        style::of_target(pen.theme).draw(plane, &ends, pen)?;
    }
    for (index, method) in drawn(study) {
        let runs = study.runs(column, index);
        let points: Vec<(usize, f64)> = (0..=study.rollouts)
            .map(|rollout| {
                let values = runs.iter().map(|run| (quantity.of)(run)[rollout]);
                (rollout, Spread::of(values).mean)
            })
            .collect();
        let line = style::of(&method.name, pen.theme);
        line.draw(plane, &points, pen)?;
        let spacing = (study.rollouts / MARKERS).max(1);
        for &point in points.iter().skip(spacing).step_by(spacing) {
            line.mark(plane, point, pen)?;
        }
    }
    Ok(())
}

/// Those with a line of their own: of several automatic K the first.
fn drawn(study: &Study) -> impl Iterator<Item = (usize, &Method)> {
    let is_automatic = |method: &Method| method.auto_k.is_some();
    let first = study.methods.iter().position(is_automatic);
    let methods = study.methods.iter().enumerate();
    methods.filter(move |(index, method)| !is_automatic(method) || Some(*index) == first)
}

fn draw_legend<B: DrawingBackend>(study: &Study, area: &Area<B>, pen: Pen) -> Drawn<B> {
    let text = pen.text(15).pos(Pos::new(HPos::Left, VPos::Center));
    let (top, spacing) = (44, 27);
    let entries = drawn(study)
        .map(|(_, method)| (method.name.as_str(), style::of(&method.name, pen.theme)))
        .chain([("its target", style::of_target(pen.theme))]);
    let mut y = top;
    for (name, line) in entries {
        line.sample(area, pen.at((4, y)), pen.units(38) as i32, pen)?;
        area.draw_text(name, &text, pen.at((50, y)))?;
        y += spacing;
    }
    let seeds = format!("mean of {} seeds", study.seeds);
    area.draw_text(&seeds, &text, pen.at((4, y + spacing / 2)))
}

/// What automatic K steers toward in each run, in nats.
fn target_entropy(study: &Study, setting: usize) -> Option<f64> {
    let methods = 0..study.methods.len();
    let runs = methods.flat_map(|method| study.runs(setting, method));
    let targets: Vec<f64> = runs.filter_map(|run| run.target_entropy).collect();
    (!targets.is_empty()).then(|| Spread::of(targets.iter().copied()).mean)
}
