//! Each line can be told from the others without its color.

use plotters::style::RGBColor;
use qae::plot::{Line, Marker, Theme};

const GRAY: RGBColor = RGBColor(140, 140, 140);

/// Colors of Okabe and Ito, from blue to vermilion with K.
pub fn of(method: &str, theme: Theme) -> Line {
    match method {
        "QAE K = 0.2" => Line::solid(RGBColor(0, 114, 178), Marker::Circle),
        "QAE K = 0.4" => Line::solid(RGBColor(86, 180, 233), Marker::Triangle),
        "QAE K = 0.6" => Line::solid(RGBColor(230, 159, 0), Marker::Square),
        "QAE K = 0.8" => Line::solid(RGBColor(213, 94, 0), Marker::Cross),
        "POS-MASK" => Line::dashed(RGBColor(204, 121, 167), 7, 4),
        "NEG-MASK" => Line::dashed(RGBColor(0, 158, 115), 7, 4),
        "mean, clip high 0.28" => Line::solid(GRAY, Marker::None),
        "mean, clip high 0.20" => Line::dashed(GRAY, 3, 3),
        _ => Line {
            width: 3,
            ..Line::solid(theme.text(), Marker::None)
        },
    }
}

/// Of the entropy that automatic K steers toward.
pub fn of_target(theme: Theme) -> Line {
    Line {
        width: 1,
        ..Line::dashed(theme.text(), 1, 4)
    }
}
