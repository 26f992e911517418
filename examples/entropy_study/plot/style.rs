//! Colors, dashes and markers: each line can be told from the others without its color.

use super::{Area, Result};
use plotters::backend::DrawingBackend;
use plotters::coord::{CoordTranslate, Shift};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

/// Colors of a page.
pub struct Theme {
    pub name: &'static str,
    pub background: RGBColor,
    pub foreground: RGBColor,
    pub axis: RGBColor,
    pub grid: RGBColor,
}

pub const THEMES: &[Theme] = &[
    Theme {
        name: "light",
        background: WHITE,
        foreground: RGBColor(20, 20, 20),
        axis: RGBColor(110, 110, 110),
        grid: RGBColor(225, 225, 225),
    },
    Theme {
        name: "dark",
        background: RGBColor(13, 17, 23),
        foreground: RGBColor(235, 235, 235),
        axis: RGBColor(150, 150, 150),
        grid: RGBColor(45, 50, 58),
    },
];

impl Theme {
    pub fn text(&self, size: u32) -> TextStyle<'static> {
        ("sans-serif", size).into_font().color(&self.foreground)
    }
}

#[derive(Clone, Copy)]
enum Marker {
    None,
    Circle,
    Triangle,
    Square,
    Cross,
}

/// How a method is drawn.
pub struct Line {
    color: RGBColor,
    width: u32,
    /// Pixels of a dash, and of the gap after it.
    dash: Option<(i32, i32)>,
    marker: Marker,
}

impl Line {
    /// Colors of Okabe and Ito, from blue to vermilion with K.
    pub fn of(method: &str, theme: &Theme) -> Self {
        let solid = |color, marker| Self {
            color,
            width: 3,
            dash: None,
            marker,
        };
        let dashed = |color, dash| Self {
            color,
            width: 3,
            dash: Some(dash),
            marker: Marker::None,
        };
        match method {
            "QAE K = 0.2" => solid(RGBColor(0, 114, 178), Marker::Circle),
            "QAE K = 0.4" => solid(RGBColor(86, 180, 233), Marker::Triangle),
            "QAE K = 0.6" => solid(RGBColor(230, 159, 0), Marker::Square),
            "QAE K = 0.8" => solid(RGBColor(213, 94, 0), Marker::Cross),
            "POS-MASK" => dashed(RGBColor(204, 121, 167), (12, 6)),
            "NEG-MASK" => dashed(RGBColor(0, 158, 115), (12, 6)),
            "mean, clip high 0.28" => solid(RGBColor(140, 140, 140), Marker::None),
            "mean, clip high 0.20" => dashed(RGBColor(140, 140, 140), (4, 5)),
            _ => Self {
                width: 5,
                ..solid(theme.foreground, Marker::None)
            },
        }
    }

    /// Of the entropy that automatic K steers toward.
    pub fn of_target(theme: &Theme) -> Self {
        Self {
            color: theme.foreground,
            width: 2,
            dash: Some((2, 6)),
            marker: Marker::None,
        }
    }

    /// Draws it through `points`, with a marker on every `marker_every`-th.
    pub fn draw<B, C>(
        &self,
        area: &DrawingArea<B, C>,
        points: &[C::From],
        marker_every: usize,
    ) -> Result<()>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
        C: CoordTranslate,
        C::From: Clone,
    {
        let stroke = self.color.stroke_width(self.width);
        match self.dash {
            None => area.draw(&PathElement::new(points.to_vec(), stroke))?,
            Some((dash, gap)) => {
                let points = points.iter().cloned();
                area.draw(&DashedPathElement::new(points, dash, gap, stroke))?;
            }
        }
        for point in points.iter().skip(marker_every).step_by(marker_every) {
            self.draw_marker(area, point.clone())?;
        }
        Ok(())
    }

    fn draw_marker<B, C>(&self, area: &DrawingArea<B, C>, at: C::From) -> Result<()>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
        C: CoordTranslate,
        C::From: Clone,
    {
        let filled = self.color.filled();
        match self.marker {
            Marker::None => Ok(()),
            Marker::Circle => Ok(area.draw(&Circle::new(at, 7, filled))?),
            Marker::Triangle => Ok(area.draw(&TriangleMarker::new(at, 10, filled))?),
            Marker::Cross => Ok(area.draw(&Cross::new(at, 8, self.color.stroke_width(4)))?),
            Marker::Square => {
                let square = Rectangle::new([(-6, -6), (6, 6)], filled);
                Ok(area.draw(&(EmptyElement::at(at) + square))?)
            }
        }
    }

    /// Draws a piece of it, with one marker.
    pub fn draw_sample<B>(&self, area: &Area<B>, (x, y): (i32, i32), width: i32) -> Result<()>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        self.draw::<B, Shift>(area, &[(x, y), (x + width, y)], 2)?;
        self.draw_marker::<B, Shift>(area, (x + width / 2, y))
    }
}
