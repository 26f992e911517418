//! Entropy and success over the rollouts, one column a setting.

mod style;

use crate::Result;
use crate::study::{Spread, Study};
use crate::training::Run;
use plotters::backend::DrawingBackend;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use style::{Line, Theme};

const SIZE: (u32, u32) = (1800, 1000);
const LEGEND_WIDTH: u32 = 330;
/// Markers on each line.
const MARKERS: usize = 5;
/// DejaVu Sans with the characters that plots need.
const FONT: &[u8] = include_bytes!("plot/dejavu-sans.ttf");

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
    register_font("sans-serif", FontStyle::Normal, FONT).map_err(|_| "dejavu-sans.ttf: no font")?;
    let mut written = vec![];
    for theme in style::THEMES {
        let path = |extension| directory.join(format!("entropy-study-{}.{extension}", theme.name));
        let svg = path("svg");
        let area = SVGBackend::new(&svg, SIZE).into_drawing_area();
        draw(study, theme, &area)?;
        drop(area);
        let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
        let area = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
        draw(study, theme, &area)?;
        drop(area);
        let png = path("png");
        write_png(&png, &pixels)?;
        written.extend([svg, png]);
    }
    Ok(written)
}

fn write_png(path: &Path, pixels: &[u8]) -> Result<()> {
    let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    Ok(writer.finish()?)
}

type Area<B> = DrawingArea<B, Shift>;

fn draw<B: DrawingBackend>(study: &Study, theme: &Theme, area: &Area<B>) -> Result<()>
where
    B::ErrorType: 'static,
{
    area.fill(&theme.background)?;
    let (panels, legend) = area.split_horizontally(SIZE.0 - LEGEND_WIDTH);
    let columns = study.settings.len();
    for (index, panel) in panels
        .split_evenly((QUANTITIES.len(), columns))
        .iter()
        .enumerate()
    {
        draw_panel(study, theme, panel, index / columns, index % columns)?;
    }
    draw_legend(study, theme, &legend)?;
    Ok(area.present()?)
}

fn draw_panel<B: DrawingBackend>(
    study: &Study,
    theme: &Theme,
    panel: &Area<B>,
    row: usize,
    column: usize,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let quantity = &QUANTITIES[row];
    // Of the same size in all, so that panels align.
    let title = if row == 0 {
        study.settings[column].name
    } else {
        " "
    };
    let description = if column == 0 { quantity.name } else { "" };
    let mut chart = ChartBuilder::on(panel)
        .margin(12)
        .margin_right(16)
        .caption(title, theme.text(30))
        .x_label_area_size(64)
        .y_label_area_size(84)
        .build_cartesian_2d(0..study.rollouts, quantity.range.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(theme.grid)
        .axis_style(theme.axis)
        .label_style(theme.text(22))
        .x_labels(7)
        .y_labels(7)
        .y_label_formatter(&|y| format!("{y:.1}"))
        .axis_desc_style(theme.text(24))
        .x_desc("rollout")
        .y_desc(description)
        .draw()?;
    if row == 0
        && let Some(target) = target_entropy(study, column)
    {
        let ends = [(0, target), (study.rollouts, target)];
        Line::of_target(theme).draw(chart.plotting_area(), &ends, 2)?;
    }
    for (index, method) in study.methods.iter().enumerate() {
        let runs = study.runs(column, index);
        let points: Vec<(usize, f64)> = (0..=study.rollouts)
            .map(|rollout| {
                let values = runs.iter().map(|run| (quantity.of)(run)[rollout]);
                (rollout, Spread::of(values).mean)
            })
            .collect();
        let spacing = (study.rollouts / MARKERS).max(1);
        Line::of(method.name, theme).draw(chart.plotting_area(), &points, spacing)?;
    }
    Ok(())
}

fn draw_legend<B: DrawingBackend>(study: &Study, theme: &Theme, area: &Area<B>) -> Result<()>
where
    B::ErrorType: 'static,
{
    let text = theme.text(24).pos(Pos::new(HPos::Left, VPos::Center));
    let (top, spacing) = (80, 46);
    let methods = study.methods.iter().map(|method| method.name);
    let entries = methods
        .map(|name| (name, Line::of(name, theme)))
        .chain([("its target", Line::of_target(theme))]);
    let mut y = top;
    for (name, line) in entries {
        line.draw_sample(area, (10, y), 70)?;
        area.draw_text(name, &text, (92, y))?;
        y += spacing;
    }
    let seeds = format!("mean of {} seeds", study.seeds);
    Ok(area.draw_text(&seeds, &text, (10, y + spacing / 2))?)
}

/// What automatic K steers toward in each run, in nats.
fn target_entropy(study: &Study, setting: usize) -> Option<f64> {
    let methods = 0..study.methods.len();
    let runs = methods.flat_map(|method| study.runs(setting, method));
    let targets: Vec<f64> = runs.filter_map(|run| run.target_entropy).collect();
    (!targets.is_empty()).then(|| Spread::of(targets.iter().copied()).mean)
}
