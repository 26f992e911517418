//! Drawing: colors of light and dark pages, letters, lines, whole files. Public only so that the
//! examples draw as `qae analyze` does; not part of the library's interface.

mod line;
mod pen;
mod theme;

pub use line::{Line, Marker};
pub use pen::Pen;
pub use theme::{Ink, Theme};

use crate::error::{Error, Result};
use crate::io::{check_place, write_whole};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use std::path::Path;

/// A PNG has this many pixels for each unit, an SVG one.
const PNG_SCALE: u32 = 2;

/// Letters, digits and some signs of DejaVu Sans, so that a PNG looks the same everywhere.
const FONT: &[u8] = include_bytes!("plot/dejavu-sans.ttf");

/// A rectangle to draw in, in pixels.
pub type Area<B> = DrawingArea<B, Shift>;

/// Drawn, or what the backend says.
pub type Drawn<B> = std::result::Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// Something that can be drawn into any file.
pub trait Picture {
    /// Width and height, in units.
    fn size(&self) -> (u32, u32);

    /// Draws it on the background.
    ///
    /// # Errors
    /// Those of the backend.
    fn draw<B: DrawingBackend>(&self, area: &Area<B>, pen: Pen) -> Drawn<B>;
}

/// The kinds of files.
#[derive(Clone, Copy)]
enum Kind {
    Svg,
    Png,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => {
                let expected = "a name that ends in .svg or .png";
                Err(Error::invalid("plot", expected, path.display()))
            }
        }
    }
}

/// Whether [`write()`] would find a place, for those who want to know before there is a picture.
///
/// # Errors
/// Those of [`write()`], but for what only writing shows.
pub fn check(path: &Path) -> Result<()> {
    Kind::of(path)?;
    check_place(path).map_err(|error| Error::file(path.display(), error))
}

/// Draws into an SVG or PNG file, all of it or nothing.
///
/// # Errors
/// [`Error::Invalid`] if the name ends in neither `.svg` nor `.png`; [`Error::File`] if the file
/// cannot be written.
pub fn write(picture: &impl Picture, path: &Path, theme: Theme) -> Result<()> {
    let bytes = match Kind::of(path)? {
        Kind::Svg => svg(picture, theme).map(String::into_bytes),
        Kind::Png => png(picture, theme),
    };
    let failed = |error: String| Error::file(path.display(), error);
    let bytes = bytes.map_err(|error| failed(format!("expected to draw, found {error}")))?;
    write_whole(path, &bytes).map_err(failed)
}

/// The text of an SVG file.
///
/// # Errors
/// What could not be drawn.
pub fn svg(picture: &impl Picture, theme: Theme) -> Result<String, String> {
    let mut text = String::new();
    let backend = SVGBackend::with_string(&mut text, picture.size());
    draw(picture, backend, Pen::new(theme, 1))?;
    Ok(text)
}

fn png(picture: &impl Picture, theme: Theme) -> Result<Vec<u8>, String> {
    let (width, height) = picture.size();
    let (width, height) = (width * PNG_SCALE, height * PNG_SCALE);
    let mut pixels = vec![0; (width * height * 3) as usize];
    let backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
    draw(picture, backend, Pen::new(theme, PNG_SCALE))?;
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&pixels));
    written.map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn draw<B: DrawingBackend>(picture: &impl Picture, backend: B, pen: Pen) -> Result<(), String> {
    let is_registered = register_font("sans-serif", FontStyle::Normal, FONT);
    is_registered.map_err(|_| "an unreadable font".to_string())?;
    let area = backend.into_drawing_area();
    area.fill(&pen.theme.background())
        .and_then(|()| picture.draw(&area, pen))
        .and_then(|()| area.present())
        .map_err(|error| error.to_string())
}
