//! Units to pixels, and text of the theme.

use super::Theme;
use plotters::prelude::*;

/// What draws on a page of a theme.
#[derive(Debug, Clone, Copy)]
pub struct Pen {
    /// Of the page.
    pub theme: Theme,
    scale: u32,
}

impl Pen {
    pub(super) fn new(theme: Theme, scale: u32) -> Self {
        Self { theme, scale }
    }

    /// So many units, in pixels.
    pub fn units(self, length: u32) -> u32 {
        length * self.scale
    }

    /// A point or a distance, in pixels.
    pub fn at(self, (x, y): (i32, i32)) -> (i32, i32) {
        (x * self.scale as i32, y * self.scale as i32)
    }

    /// Letters of the theme's color; a line of them is `size` units high.
    pub fn text(self, size: u32) -> TextStyle<'static> {
        let font = ("sans-serif", self.units(size)).into_font();
        font.color(&self.theme.text())
    }
}
