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

/// One of those that are told apart best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// The text's own.
    Text,
    /// Cold.
    Blue,
    /// Bluish.
    Green,
    /// Warm.
    Vermilion,
    /// Reddish.
    Purple,
}

impl Theme {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Light, Self::Dark];

    /// As in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    /// Of the page.
    pub fn background(self) -> RGBColor {
        match self {
            Self::Light => RGBColor(255, 255, 255),
            Self::Dark => RGBColor(13, 17, 23),
        }
    }

    /// Of letters.
    pub fn text(self) -> RGBColor {
        match self {
            Self::Light => RGBColor(20, 20, 20),
            Self::Dark => RGBColor(235, 235, 235),
        }
    }

    /// Of axes, and of marks that say nothing.
    pub fn axis(self) -> RGBColor {
        match self {
            Self::Light => RGBColor(110, 110, 110),
            Self::Dark => RGBColor(150, 150, 150),
        }
    }

    /// Of grid lines.
    pub fn grid(self) -> RGBColor {
        match self {
            Self::Light => RGBColor(225, 225, 225),
            Self::Dark => RGBColor(45, 50, 58),
        }
    }

    /// Lighter on the dark.
    pub fn ink(self, ink: Ink) -> RGBColor {
        match (ink, self) {
            (Ink::Text, _) => self.text(),
            (Ink::Blue, Self::Light) => RGBColor(0, 114, 178),
            (Ink::Blue, Self::Dark) => RGBColor(86, 180, 233),
            (Ink::Green, Self::Light) => RGBColor(0, 158, 115),
            (Ink::Green, Self::Dark) => RGBColor(0, 190, 140),
            (Ink::Vermilion, Self::Light) => RGBColor(213, 94, 0),
            (Ink::Vermilion, Self::Dark) => RGBColor(240, 130, 50),
            (Ink::Purple, Self::Light) => RGBColor(178, 90, 150),
            (Ink::Purple, Self::Dark) => RGBColor(220, 150, 195),
        }
    }
}
