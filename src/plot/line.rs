//! Lines that can be told apart without their color, by dashes and markers.

use super::{Area, Drawn, Pen};
use plotters::coord::CoordTranslate;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

/// Half the width of a marker, in units.
const MARKER_SIZE: u32 = 4;

/// A shape on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// Filled.
    Circle,
    /// Filled.
    Square,
    /// Filled.
    Triangle,
    /// Two strokes.
    Cross,
    /// Nothing.
    None,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Of the stroke and the markers.
    pub color: RGBColor,
    /// Of the stroke, in units.
    pub width: u32,
    /// Length of a dash and of the gap after it, in units.
    pub dash: Option<(u32, u32)>,
    /// On its points.
    pub marker: Marker,
}

impl Line {
    /// Two units wide, solid.
    pub fn solid(color: RGBColor, marker: Marker) -> Self {
        Self {
            color,
            width: 2,
            dash: None,
            marker,
        }
    }

    /// Two units wide, of dashes so long, without markers.
    pub fn dashed(color: RGBColor, dash: u32, gap: u32) -> Self {
        Self {
            dash: Some((dash, gap)),
            ..Self::solid(color, Marker::None)
        }
    }

    /// Through `points`, without markers.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn draw<B, C>(&self, area: &DrawingArea<B, C>, points: &[C::From], pen: Pen) -> Drawn<B>
    where
        B: DrawingBackend,
        C: CoordTranslate,
        C::From: Clone,
    {
        let stroke = self.color.stroke_width(pen.units(self.width));
        match self.dash {
            None => area.draw(&PathElement::new(points.to_vec(), stroke)),
            Some((dash, gap)) => {
                let (dash, gap) = (pen.units(dash), pen.units(gap));
                let points = points.iter().cloned();
                area.draw(&DashedPathElement::new(points, dash, gap, stroke))
            }
        }
    }

    /// Its marker on a point.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn mark<B, C>(&self, area: &DrawingArea<B, C>, at: C::From, pen: Pen) -> Drawn<B>
    where
        B: DrawingBackend,
        C: CoordTranslate,
        C::From: Clone,
    {
        let (size, filled) = (pen.units(MARKER_SIZE) as i32, self.color.filled());
        match self.marker {
            Marker::None => Ok(()),
            Marker::Circle => area.draw(&Circle::new(at, size, filled)),
            Marker::Triangle => area.draw(&TriangleMarker::new(at, size * 3 / 2, filled)),
            Marker::Cross => {
                let stroke = self.color.stroke_width(pen.units(2));
                area.draw(&Cross::new(at, size, stroke))
            }
            Marker::Square => {
                let square = Rectangle::new([(-size, -size), (size, size)], filled);
                area.draw(&(EmptyElement::at(at) + square))
            }
        }
    }

    /// A piece of it, `width` pixels to the right of `at`, with one marker.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn sample<B: DrawingBackend>(
        &self,
        area: &Area<B>,
        (x, y): (i32, i32),
        width: i32,
        pen: Pen,
    ) -> Drawn<B> {
        self.draw(area, &[(x, y), (x + width, y)], pen)?;
        self.mark(area, (x + width / 2, y), pen)
    }
}
