//! Two panels: a row for each prompt, a cell for each response.

use crate::batch::{Batch, K, Method};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use qae::plot::{Area, Drawn, Ink, Line, Marker, Pen, Picture};

const WIDTH: u32 = 900;
/// From a cell to the next, and its own side.
const PITCH: i32 = 17;
const CELL: i32 = 15;
/// Left edges, and the top of the rows.
const PANELS: [i32; 2] = [88, 412];
const WORDS: i32 = 706;
const TOP: i32 = 48;
/// Between hard and easy prompts.
const GAP: i32 = 10;
/// Below the rows: how many act, and the colors.
const FOOT: i32 = 84;
/// Of the strongest color, for the weakest advantage.
const FAINTEST: f64 = 0.3;

const TITLE: u32 = 18;
const LETTERS: u32 = 16;

impl Picture for Batch {
    fn size(&self) -> (u32, u32) {
        (WIDTH, (self.bottom() + FOOT) as u32)
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>, pen: Pen) -> Drawn<B> {
        let page = Page { area, pen };
        let methods = [
            ("mean baseline (GRPO)".to_string(), &self.mean),
            (format!("QAE, K = {K}"), &self.quantile),
        ];
        for (left, (title, method)) in PANELS.into_iter().zip(methods) {
            page.panel(self, left, &title, method)?;
        }
        page.row_names(self)?;
        page.regimes(self)?;
        page.colors(self)
    }
}

impl Batch {
    /// The top of a row.
    fn row(&self, row: usize) -> i32 {
        let gap = if row < self.num_hard() { 0 } else { GAP };
        TOP + PITCH * row as i32 + gap
    }

    fn bottom(&self) -> i32 {
        self.row(self.prompts.len())
    }

    /// The middle of the gap between hard and easy.
    fn split(&self) -> i32 {
        self.row(self.num_hard()) - (GAP + PITCH - CELL) / 2
    }

    fn panel_width(&self) -> i32 {
        let sizes = self.prompts.iter().map(|prompt| prompt.num_responses());
        PITCH * sizes.max().unwrap_or(0) as i32
    }
}

struct Page<'a, B: DrawingBackend> {
    area: &'a Area<B>,
    pen: Pen,
}

impl<B: DrawingBackend> Page<'_, B> {
    /// Digits are higher than what fonts call their middle.
    fn text(&self, text: &str, size: u32, side: HPos, (x, y): (i32, i32)) -> Drawn<B> {
        let style = self.pen.text(size).pos(Pos::new(side, VPos::Center));
        self.area.draw_text(text, &style, self.pen.at((x, y + 1)))
    }

    /// Nothing but a dot where the advantage is 0.
    fn cell(&self, (x, y): (i32, i32), share: f64) -> Drawn<B> {
        let (pen, theme) = (self.pen, self.pen.theme);
        if share == 0.0 {
            let middle = pen.at((x + CELL / 2, y + CELL / 2));
            let dot = Circle::new(middle, pen.units(1), theme.axis().filled());
            return self.area.draw(&dot);
        }
        let ink = if share > 0.0 {
            Ink::Blue
        } else {
            Ink::Vermilion
        };
        let strength = FAINTEST + (1.0 - FAINTEST) * share.abs();
        let color = mixed(theme.background(), theme.ink(ink), strength);
        let corners = [pen.at((x, y)), pen.at((x + CELL, y + CELL))];
        self.area.draw(&Rectangle::new(corners, color.filled()))
    }

    fn panel(&self, batch: &Batch, left: i32, title: &str, method: &Method) -> Drawn<B> {
        let middle = left + batch.panel_width() / 2;
        self.text(title, TITLE, HPos::Center, (middle, TOP / 2))?;
        for (row, prompt) in batch.prompts.iter().enumerate() {
            for (column, advantage) in prompt.advantages(method).enumerate() {
                let at = (left + PITCH * column as i32, batch.row(row));
                self.cell(at, advantage / batch.bound())?;
            }
        }
        let (active, all) = (method.num_active, batch.num_responses());
        let count = format!("{active} of {all} responses act");
        let at = (middle, batch.bottom() + 18);
        self.text(&count, LETTERS, HPos::Center, at)
    }

    fn row_names(&self, batch: &Batch) -> Drawn<B> {
        let right = PANELS[0] - 10;
        self.text("solved", LETTERS, HPos::Right, (right, TOP / 2))?;
        for (row, prompt) in batch.prompts.iter().enumerate() {
            let share = format!("{} of {}", prompt.successes, prompt.num_responses());
            let at = (right, batch.row(row) + CELL / 2);
            self.text(&share, LETTERS - 2, HPos::Right, at)?;
        }
        Ok(())
    }

    fn regimes(&self, batch: &Batch) -> Drawn<B> {
        let (pen, y) = (self.pen, batch.split());
        let ends = [pen.at((PANELS[1] - 6, y)), pen.at((WIDTH as i32 - 10, y))];
        let line = Line {
            width: 1,
            ..Line::solid(pen.theme.text(), Marker::None)
        };
        line.draw(self.area, &ends, pen)?;
        let num_hard = batch.num_hard();
        let num_easy = batch.prompts.len() - num_hard;
        for (text, offset) in [
            (format!("{num_hard} hard prompts:"), -38),
            ("only successes act".to_string(), -17),
            (format!("{num_easy} easy prompts:"), 18),
            ("only failures act".to_string(), 39),
        ] {
            self.text(&text, LETTERS, HPos::Left, (WORDS, y + offset))?;
        }
        Ok(())
    }

    /// Which color is which advantage.
    fn colors(&self, batch: &Batch) -> Drawn<B> {
        let (mut x, y) = (PANELS[0], batch.bottom() + FOOT - 28);
        self.text("advantage", LETTERS, HPos::Left, (x, y))?;
        x += 96;
        for share in [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0] {
            self.cell((x, y - CELL / 2), share)?;
            let value = (share * batch.bound()).to_string();
            self.text(&value, LETTERS, HPos::Left, (x + CELL + 6, y))?;
            x += 66;
        }
        Ok(())
    }
}

/// `share` of `b` over `a`.
fn mixed(a: RGBColor, b: RGBColor, share: f64) -> RGBColor {
    let mix = |a: u8, b: u8| (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}
