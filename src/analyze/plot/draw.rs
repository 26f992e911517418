//! Panels with curves, axes and a legend below each.

use super::Theme;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// Letters, digits and some signs of DejaVu Sans, so that a PNG looks the same everywhere.
const FONT: &[u8] = include_bytes!("dejavu-sans.ttf");

/// One of two pictures side by side.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) x: Range<f64>,
    /// The vertical axis begins at 0.
    pub(super) y_max: f64,
    pub(super) x_ticks: usize,
    /// Ticks are whole numbers.
    pub(super) is_x_whole: bool,
    pub(super) curves: Vec<Curve>,
}

/// Shares over something.
pub(super) struct Curve {
    pub(super) name: String,
    /// Index among the theme's.
    pub(super) color: usize,
    pub(super) line: Vec<(f64, f64)>,
    /// Points that are marked.
    pub(super) marks: Vec<(f64, f64)>,
    pub(super) marker: Marker,
}

/// Shapes, for those to whom colors say little; a curve without is dashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Triangle,
    Cross,
    None,
}

type Area<'a, B> = DrawingArea<B, Shift>;

/// Draws the panels side by side; `scale` pixels are a unit.
pub(super) fn draw<B: DrawingBackend>(
    area: &Area<'_, B>,
    title: &str,
    panels: &[Panel],
    theme: Theme,
    scale: u32,
) -> Result<(), String> {
    let is_registered = register_font("sans-serif", FontStyle::Normal, FONT);
    is_registered.map_err(|_| "an unreadable font".to_string())?;
    let pen = Pen { theme, scale };
    pen.draw(area, title, panels)
        .map_err(|error| error.to_string())
}

struct Pen {
    theme: Theme,
    scale: u32,
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

impl Pen {
    fn units(&self, length: u32) -> u32 {
        length * self.scale
    }

    fn text(&self, size: u32) -> TextStyle<'static> {
        let font = ("sans-serif", self.units(size)).into_font();
        font.color(&self.theme.text())
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &Area<'_, B>,
        title: &str,
        panels: &[Panel],
    ) -> Drawn<B> {
        area.fill(&self.theme.background())?;
        let (head, body) = area.split_vertically(self.units(44));
        let center = Pos::new(HPos::Center, VPos::Center);
        let (width, height) = head.dim_in_pixel();
        let middle = (width as i32 / 2, height as i32 / 2 + self.units(4) as i32);
        head.draw_text(title, &self.text(19).pos(center), middle)?;
        for (panel, area) in panels.iter().zip(body.split_evenly((1, panels.len()))) {
            self.panel(&area, panel)?;
        }
        Ok(())
    }

    fn panel<B: DrawingBackend>(&self, area: &Area<'_, B>, panel: &Panel) -> Drawn<B> {
        let (_, height) = area.dim_in_pixel();
        let (chart_area, legend) = area.split_vertically(height - self.units(44));
        let mut chart = ChartBuilder::on(&chart_area)
            .caption(&panel.title, self.text(16))
            .margin(self.units(10))
            .margin_right(self.units(24))
            .x_label_area_size(self.units(46))
            .y_label_area_size(self.units(66))
            .build_cartesian_2d(panel.x.clone(), 0.0..panel.y_max)?;
        let is_x_whole = panel.is_x_whole;
        chart
            .configure_mesh()
            .x_desc(&panel.x_label)
            .y_desc(&panel.y_label)
            .x_labels(panel.x_ticks)
            .y_labels(11)
            .x_label_formatter(&|x| tick(*x, is_x_whole))
            .y_label_formatter(&|y| format!("{:.0} %", 100.0 * y))
            .axis_style(self.theme.text().stroke_width(self.scale))
            .bold_line_style(self.theme.grid().stroke_width(self.scale))
            .light_line_style(TRANSPARENT)
            .axis_desc_style(self.text(14))
            .label_style(self.text(13))
            .set_all_tick_mark_size(self.units(6))
            .draw()?;
        for curve in &panel.curves {
            let line = self.theme.curve(curve.color).stroke_width(self.units(2));
            if curve.marker == Marker::None && panel.curves.len() > 1 {
                let (dash, gap) = (self.units(6), self.units(4));
                let points = curve.line.iter().copied();
                chart.draw_series(DashedLineSeries::new(points, dash, gap, line))?;
            } else {
                chart.draw_series(LineSeries::new(curve.line.iter().copied(), line))?;
            }
            let plane = chart.plotting_area();
            for point in &curve.marks {
                let (x, y) = plane.map_coordinate(point);
                let (left, top) = chart_area.get_base_pixel();
                self.marker(&chart_area, (x - left, y - top), curve)?;
            }
        }
        self.legend(&legend, &panel.curves)
    }

    /// Samples of the curves and their names, in the middle.
    fn legend<B: DrawingBackend>(&self, area: &Area<'_, B>, curves: &[Curve]) -> Drawn<B> {
        let text = self.text(13).pos(Pos::new(HPos::Left, VPos::Center));
        let (sample, gap, space) = (self.units(26), self.units(6), self.units(18));
        let mut widths = vec![];
        for curve in curves {
            let (width, _) = area.estimate_text_size(&curve.name, &text)?;
            widths.push(sample + gap + width + space);
        }
        let (width, height) = area.dim_in_pixel();
        let total = widths.iter().sum::<u32>().saturating_sub(space);
        let mut x = (width.saturating_sub(total) / 2) as i32;
        let y = height as i32 / 2;
        for (curve, width) in curves.iter().zip(widths) {
            let line = self.theme.curve(curve.color).stroke_width(self.units(2));
            let end = x + sample as i32;
            if curve.marker == Marker::None && curves.len() > 1 {
                let dash = self.units(6) as i32;
                let mut start = x;
                while start < end {
                    let stop = (start + dash).min(end);
                    area.draw(&PathElement::new([(start, y), (stop, y)], line))?;
                    start += dash + self.units(4) as i32;
                }
            } else {
                area.draw(&PathElement::new([(x, y), (end, y)], line))?;
            }
            self.marker(area, ((x + end) / 2, y), curve)?;
            area.draw_text(&curve.name, &text, (end + gap as i32, y))?;
            x += width as i32;
        }
        Ok(())
    }

    fn marker<B: DrawingBackend>(
        &self,
        area: &Area<'_, B>,
        (x, y): (i32, i32),
        curve: &Curve,
    ) -> Drawn<B> {
        let color = self.theme.curve(curve.color);
        let size = self.units(4) as i32;
        match curve.marker {
            Marker::None => Ok(()),
            Marker::Circle => area.draw(&Circle::new((x, y), size, color.filled())),
            Marker::Triangle => area.draw(&TriangleMarker::new(
                (x, y),
                size + size / 2,
                color.filled(),
            )),
            Marker::Cross => {
                area.draw(&Cross::new((x, y), size, color.stroke_width(self.units(2))))
            }
            Marker::Square => {
                let corners = [(x - size, y - size), (x + size, y + size)];
                area.draw(&Rectangle::new(corners, color.filled()))
            }
        }
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
