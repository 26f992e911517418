//! Whether the letters of an SVG file can be read: within the picture, none over others.

use std::ops::Range;

/// Of an average letter of DejaVu Sans, wider than in most fonts, over the font's size.
const LETTER_WIDTH: f64 = 0.6;

struct Text {
    text: String,
    x: Range<f64>,
    y: Range<f64>,
}

/// Checks all text of `svg`, as plotters writes it.
pub fn assert_legible(svg: &str) {
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    let (width, height) = (number(svg, "width"), number(svg, "height"));
    let texts: Vec<Text> = svg.split("<text ").skip(1).map(read).collect();
    assert_eq!(svg.matches("</text>").count(), texts.len());
    assert!(!texts.is_empty());
    for (i, text) in texts.iter().enumerate() {
        let is_within = text.x.start >= 0.0
            && text.x.end <= width
            && text.y.start >= 0.0
            && text.y.end <= height;
        assert!(is_within, "{} leaves the picture", text.text);
        for other in &texts[..i] {
            let is_apart = text.x.end <= other.x.start
                || other.x.end <= text.x.start
                || text.y.end <= other.y.start
                || other.y.end <= text.y.start;
            assert!(is_apart, "{} lies over {}", text.text, other.text);
        }
    }
}

fn read(element: &str) -> Text {
    let (attributes, rest) = element.split_once(">\n").unwrap();
    let (text, _) = rest.split_once("\n</text>").unwrap();
    assert!(!text.contains(['<', '>']), "{text}");
    let (x, y) = (number(attributes, "x"), number(attributes, "y"));
    let size = number(attributes, "font-size");
    let entities = ["&lt;", "&gt;", "&amp;"];
    let plain = entities
        .iter()
        .fold(text.to_string(), |text, entity| text.replace(entity, "_"));
    assert!(!plain.contains('&'), "{text}");
    let width = LETTER_WIDTH * size * plain.chars().count() as f64;
    let left = match attribute(attributes, "text-anchor").unwrap() {
        "start" => 0.0,
        "middle" => -width / 2.0,
        "end" => -width,
        anchor => panic!("{anchor}"),
    };
    let top = match attribute(attributes, "dy").unwrap() {
        "0.76em" => 0.0,
        "0.5ex" => -size / 2.0,
        "-0.5ex" => -size,
        shift => panic!("{shift}"),
    };
    let (along, across) = (left..left + width, top..top + size);
    let (dx, dy) = match attribute(attributes, "transform") {
        None => (along, across),
        // A quarter turn: what was downward is to the right.
        Some(turn) if turn.starts_with("rotate(270") => (across, -along.end..-along.start),
        Some(turn) => panic!("{turn}"),
    };
    Text {
        text: text.to_string(),
        x: x + dx.start..x + dx.end,
        y: y + dy.start..y + dy.end,
    }
}

fn number(attributes: &str, name: &str) -> f64 {
    attribute(attributes, name).unwrap().parse().unwrap()
}

fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = attributes.split_once(&format!("{name}=\""))?;
    Some(rest.split_once('"')?.0)
}
