//! Pictures are drawn whole, for data of every kind.

use crate::sample;
use qae::analyze::plot::{Theme, write};
use qae::analyze::{Options, analyze};
use std::fs;
use tempfile::TempDir;

#[test]
fn svg_and_png_are_written_for_every_format() {
    let folder = TempDir::new().unwrap();
    for name in [
        "trl-addition.jsonl",
        "verl",
        "trl",
        "nemo_rl",
        "verifiers",
        "prime_rl-traces",
    ] {
        let analysis = analyze(&[sample(name)], &Options::default(), &()).unwrap();
        for theme in [Theme::Light, Theme::Dark] {
            let svg = folder.path().join("plot.svg");
            write(&analysis, &svg, theme).unwrap();
            let svg = fs::read_to_string(svg).unwrap();
            assert!(
                svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"),
                "{name}"
            );
            for text in [
                "hard groups",
                "advantage = 0",
                "tokens saved",
                analysis.report.format,
            ] {
                assert!(svg.contains(text), "{name}: {text}");
            }
            let by_step = analysis.report.by_step.len() > 1;
            assert_eq!(svg.contains("by step"), by_step, "{name}");
        }
        let png = folder.path().join("plot.PNG");
        write(&analysis, &png, Theme::Light).unwrap();
        let file = std::io::BufReader::new(fs::File::open(png).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (2560, 1120));
        // Not a blank page, and nothing drawn into the corner.
        assert!(
            pixels.iter().filter(|&&value| value < 128).count() > 10_000,
            "{name}"
        );
        assert_eq!(pixels[..3], [255; 3]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn other_names_and_places_are_refused() {
    let folder = TempDir::new().unwrap();
    let analysis = analyze(&[sample("verl")], &Options::default(), &()).unwrap();
    for (name, part) in [
        ("plot.jpg", "a name that ends in .svg or .png"),
        ("plot", "a name that ends in .svg or .png"),
        ("none/plot.svg", "expected a directory"),
    ] {
        let error = write(&analysis, &folder.path().join(name), Theme::Light).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
