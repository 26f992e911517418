//! Colors: Okabe and Ito's, which people tell apart who see fewer of them.

use plotters::style::RGBColor;

/// The colors of a plot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Theme {
    /// On white.
    #[default]
    Light,
    /// On nearly black.
    Dark,
}

impl Theme {
    pub(super) fn background(self) -> RGBColor {
        match self {
            Self::Light => RGBColor(255, 255, 255),
            Self::Dark => RGBColor(17, 20, 24),
        }
    }

    pub(super) fn text(self) -> RGBColor {
        match self {
            Self::Light => RGBColor(30, 30, 30),
            Self::Dark => RGBColor(225, 225, 225),
        }
    }

    pub(super) fn grid(self) -> RGBColor {
        match self {
            Self::Light => RGBColor(222, 222, 222),
            Self::Dark => RGBColor(56, 60, 66),
        }
    }

    /// Blue, green, vermilion, the text's own, purple; lighter on the dark.
    pub(super) fn curve(self, index: usize) -> RGBColor {
        let colors = match self {
            Self::Light => [
                RGBColor(0, 114, 178),
                RGBColor(0, 158, 115),
                RGBColor(213, 94, 0),
                self.text(),
                RGBColor(178, 90, 150),
            ],
            Self::Dark => [
                RGBColor(86, 180, 233),
                RGBColor(0, 190, 140),
                RGBColor(240, 130, 50),
                self.text(),
                RGBColor(220, 150, 195),
            ],
        };
        colors[index % colors.len()]
    }
}
