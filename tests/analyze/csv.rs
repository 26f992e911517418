//! CSV as people and programs write it, and where it is broken.

use crate::Files;
use qae::analyze::{Columns, Options, Report};

fn options() -> Options {
    Options {
        columns: Columns {
            group: Some("g".to_string()),
            rewards: vec!["r".parse().unwrap()],
            ..Columns::default()
        },
        ..Options::default()
    }
}

fn read(content: &[u8], options: &Options) -> Result<Report, String> {
    Files::new(&[("a.csv", content)]).report(options)
}

#[test]
fn rows_that_do_not_fit_are_broken_lines() {
    let mut options = options();
    options.skip_bad = true;
    let content = b"g,r,text\na,1,x\na,0\na,2,\"many\nlines\"\na,x,y\n\xff,1,z\na,,w\na,nan,v\n";
    let report = read(content, &options).unwrap();
    assert_eq!(
        (
            report.responses,
            report.broken_lines,
            report.rewards.nonfinite
        ),
        (4, 3, 2)
    );
    let message = &report.warnings[0].message;
    for place in [
        "a.csv:3: expected 3 columns, found 2",
        "a.csv:6: column `r`",
        "a.csv:7: expected UTF-8",
    ] {
        assert!(message.contains(place), "{message}");
    }
    options.skip_bad = false;
    let error = read(content, &options).unwrap_err();
    assert!(
        error.contains("a.csv:3: expected 3 columns, found 2"),
        "{error}"
    );
    // All rows behind an open quote would be one field.
    let error = read(b"g,r,text\na,1,x\na,0,\"open\na,1,y\na,1,z\n", &options).unwrap_err();
    assert!(
        error.contains("a.csv:3: expected the end of the quoted field"),
        "{error}"
    );
    for (content, rows) in [
        (b"g,r\r\na,1\r\nb,0\r\n" as &[u8], 2),
        (b"\xef\xbb\xbfg,r\na,1", 1),
        (b"\"g\",\"r\"\na,1\n\n\nb,0\n", 2),
        (b"g,r\n5\" disk,1\n3\" disk,0\n2\" disk,0\n", 3),
    ] {
        assert_eq!(read(content, &options).unwrap().responses, rows);
    }
    let error = read(b"g,r\n", &options).unwrap_err();
    assert!(error.contains("found none in 1 files"), "{error}");
}

/// The last line may be the one that was cut off.
#[test]
fn a_quote_that_the_end_of_the_file_leaves_open_breaks_its_line() {
    let mut options = options();
    for content in [
        &b"g,r,text\na,1,\"x\"\na,0,\"y"[..],
        b"g,r,text\na,1,\"x\ny\"\na,0,\"",
        b"r,text,g\n1,\"x\",a\n0,y,\"a",
    ] {
        options.skip_bad = false;
        let error = read(content, &options).unwrap_err();
        assert!(
            error.contains("expected the end of the quoted field, found the end of the file"),
            "{error}"
        );
        options.skip_bad = true;
        let report = read(content, &options).unwrap();
        assert_eq!((report.responses, report.broken_lines), (1, 1));
    }
    for end in ["", "\n", "\r\n", "\n\n"] {
        let content = format!("g,r,text\na,1,x\na,0,\"y\n\"{end}");
        assert_eq!(read(content.as_bytes(), &options).unwrap().responses, 2);
    }
}

#[test]
fn two_columns_of_one_name_are_refused_where_they_are_wanted() {
    let error = read(b"g,r,r\na,1,0\n", &options()).unwrap_err();
    assert!(
        error.contains("a.csv: expected one column `r`, found 2"),
        "{error}"
    );
    let report = read(b"g,r,x,x\na,1,0,0\n", &options()).unwrap();
    assert_eq!(report.rewards.mean, Some(1.0));
}

#[test]
fn the_header_tells_what_stands_between_columns() {
    for between in [",", ";", "\t", "|"] {
        let rows = ["g|r|text", "a|1|x", "a|0|\"x,y;z\""];
        let content = rows.map(|row| row.replace('|', between)).join("\n");
        let report = read(content.as_bytes(), &options()).unwrap();
        assert_eq!(report.rewards.mean, Some(0.5), "{between:?}");
    }
    let content = b"g;r;\"a, b, and\nc\td, e\"\na;1;x\n";
    assert_eq!(read(content, &options()).unwrap().responses, 1);
}

#[test]
fn numbers_may_be_written_in_other_ways() {
    for (text, value) in [
        (".5", 0.5),
        ("1.", 1.0),
        ("+1", 1.0),
        ("01", 1.0),
        ("-.5e1", -5.0),
    ] {
        let content = format!("g,r,step\na,{text},+07\n");
        let report = read(content.as_bytes(), &options()).unwrap();
        assert_eq!(report.rewards.mean, Some(value), "{text}");
        assert_eq!(report.by_step[0].step, Some(7));
    }
    for text in ["+inf", "infinity", "NAN", "1_0", "0x1", "1,5e"] {
        let content = format!("g,r\na,\"{text}\"\n");
        let error = read(content.as_bytes(), &options()).unwrap_err();
        assert!(error.contains("column `r`: expected a number"), "{error}");
    }
    // As names they differ.
    let report = read(b"g,r\n1,1\n01,1\n+1,1\n", &options()).unwrap();
    assert_eq!(report.groups, 3);
}
