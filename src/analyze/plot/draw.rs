//! Panels with curves, axes and a legend below each.

use crate::plot::{Area, Drawn, Ink, Line, Marker, Pen, Picture};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

const WIDTH: u32 = 960;

const PANELS_PER_ROW: usize = 2;
const ROW_HEIGHT: u32 = 460;
const TITLE_HEIGHT: u32 = 40;

/// Of a line of a legend, in units.
const LEGEND_LINE: u32 = 24;

/// Panels in rows of two.
pub(super) struct Panels {
    pub(super) title: String,
    pub(super) panels: Vec<Panel>,
}

/// One of several pictures.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) x: Range<f64>,
    /// The vertical axis begins at 0.
    pub(super) y_max: f64,
    pub(super) y_unit: Unit,
    pub(super) x_ticks: usize,
    /// Ticks are whole numbers.
    pub(super) is_x_whole: bool,
    pub(super) curves: Vec<Curve>,
}

/// How the vertical axis is labeled.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// Fractions of 1, shown as percentages.
    Share,
    Number,
}

impl Unit {
    fn label(self, y: f64) -> String {
        match self {
            Self::Share => format!("{:.0} %", 100.0 * y),
            Self::Number => tick(y, false),
        }
    }
}

/// A quantity over another one.
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) ink: Ink,
    pub(super) line: Vec<(f64, f64)>,
    /// Points that are marked.
    pub(super) marks: Vec<(f64, f64)>,
    /// A curve without is dashed.
    pub(super) marker: Marker,
}

impl Curve {
    fn stroke(&self, pen: Pen) -> Line {
        let color = pen.theme.ink(self.ink);
        match self.marker {
            Marker::None => Line::dashed(color, 6, 4),
            marker => Line::solid(color, marker),
        }
    }
}

impl Picture for Panels {
    fn size(&self) -> (u32, u32) {
        (WIDTH, TITLE_HEIGHT + ROW_HEIGHT * self.num_rows() as u32)
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>, pen: Pen) -> Drawn<B> {
        let (head, body) = area.split_vertically(pen.units(TITLE_HEIGHT));
        let center = Pos::new(HPos::Center, VPos::Center);
        let (width, height) = head.dim_in_pixel();
        let middle = (width as i32 / 2, height as i32 / 2);
        head.draw_text(&self.title, &pen.text(19).pos(center), middle)?;
        let areas = body.split_evenly((self.num_rows(), PANELS_PER_ROW));
        for (panel, area) in self.panels.iter().zip(areas) {
            panel.draw(&area, pen)?;
        }
        Ok(())
    }
}

impl Panels {
    fn num_rows(&self) -> usize {
        self.panels.len().div_ceil(PANELS_PER_ROW)
    }
}

impl Panel {
    fn draw<B: DrawingBackend>(&self, area: &Area<B>, pen: Pen) -> Drawn<B> {
        let (title, rest) = area.split_vertically(pen.units(30));
        let (width, height) = rest.dim_in_pixel();
        let middle = Pos::new(HPos::Center, VPos::Center);
        let at = (width as i32 / 2, pen.units(14) as i32);
        title.draw_text(&self.title, &pen.text(17).pos(middle), at)?;
        // Two lines, also where one is enough: the axes of both panels align.
        let (chart, legend) = rest.split_vertically(height - pen.units(2 * LEGEND_LINE + 8));
        self.chart(&chart, pen)?;
        self.legend(&legend, pen)
    }

    fn chart<B: DrawingBackend>(&self, area: &Area<B>, pen: Pen) -> Drawn<B> {
        let mut chart = ChartBuilder::on(area)
            .margin(pen.units(8))
            .margin_right(pen.units(26))
            .x_label_area_size(pen.units(48))
            .y_label_area_size(pen.units(74))
            .build_cartesian_2d(self.x.clone(), 0.0..self.y_max)?;
        chart
            .configure_mesh()
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .x_labels(self.x_ticks)
            .y_labels(11)
            .x_label_formatter(&|x| tick(*x, self.is_x_whole))
            .y_label_formatter(&|y| self.y_unit.label(*y))
            .axis_style(pen.theme.axis().stroke_width(pen.units(1)))
            .bold_line_style(pen.theme.grid().stroke_width(pen.units(1)))
            .light_line_style(TRANSPARENT)
            .axis_desc_style(pen.text(16))
            .label_style(pen.text(15))
            .set_all_tick_mark_size(pen.units(6))
            .draw()?;
        let plane = chart.plotting_area();
        for curve in &self.curves {
            let stroke = curve.stroke(pen);
            stroke.draw(plane, &curve.line, pen)?;
            for &point in &curve.marks {
                stroke.mark(plane, point, pen)?;
            }
        }
        Ok(())
    }

    /// Samples of the curves and their names, in the middle, in as many lines as they need. One
    /// curve is named by the panel.
    fn legend<B: DrawingBackend>(&self, area: &Area<B>, pen: Pen) -> Drawn<B> {
        if self.curves.len() < 2 {
            return Ok(());
        }
        let text = pen.text(15).pos(Pos::new(HPos::Left, VPos::Center));
        let (sample, gap, space) = (pen.units(28), pen.units(6), pen.units(18));
        let (width, _) = area.dim_in_pixel();
        let mut lines: Vec<(u32, Vec<(&Curve, u32)>)> = vec![];
        for curve in &self.curves {
            let (name_width, _) = area.estimate_text_size(&curve.name, &text)?;
            let entry = sample + gap + name_width;
            match lines.last_mut() {
                Some((taken, entries)) if *taken + space + entry < width => {
                    *taken += space + entry;
                    entries.push((curve, entry));
                }
                _ => lines.push((entry, vec![(curve, entry)])),
            }
        }
        for (line, (taken, entries)) in lines.iter().enumerate() {
            let mut x = (width.saturating_sub(*taken) / 2) as i32;
            let y = (pen.units(LEGEND_LINE) * line as u32 + pen.units(LEGEND_LINE / 2)) as i32;
            for (curve, entry) in entries {
                let stroke = curve.stroke(pen);
                stroke.sample(area, (x, y), sample as i32, pen)?;
                area.draw_text(&curve.name, &text, (x + (sample + gap) as i32, y))?;
                x += (entry + space) as i32;
            }
        }
        Ok(())
    }
}

fn tick(x: f64, is_whole: bool) -> String {
    if is_whole {
        return if x.fract() == 0.0 {
            format!("{x}")
        } else {
            String::new()
        };
    }
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}
