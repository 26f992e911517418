//! What a line of JSON is, and what it is not.

use super::*;

fn read(line: &str) -> Result<Vec<(String, Json<'_>)>, String> {
    let mut found = vec![];
    fields(line.as_bytes(), |key, value| {
        found.push((decode(key).unwrap(), value));
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn every_kind_of_value_is_found_whole() {
    let line = r#" {"a": -1.5e3, "b":"x\"y\\", "c":[1,[2,"]"],{"d":"}"}] , "e":{"f":[{}]},
        "g":null,"h":true,"i":NaN,"j":-Infinity,"k":[1, 2],"l":[],"m":{},"\u00e4":""}  "#;
    let values: Vec<_> = read(line).unwrap().into_iter().collect();
    let value = |key: &str| values.iter().find(|(name, _)| name == key).unwrap().1;
    assert_eq!(value("a"), Json::Number(b"-1.5e3"));
    assert_eq!(value("b"), Json::String(br#"x\"y\\"#));
    assert_eq!(value("c"), Json::Array(br#"[1,[2,"]"],{"d":"}"}]"#));
    assert_eq!(value("e"), Json::Object(br#"{"f":[{}]}"#));
    assert_eq!((value("g"), value("h")), (Json::Null, Json::Bool(true)));
    assert_eq!(value("i"), Json::Number(b"NaN"));
    assert_eq!(value("j"), Json::Number(b"-Infinity"));
    assert_eq!(value("k"), Json::Array(b"[1, 2]"));
    assert_eq!(
        (value("l"), value("m")),
        (Json::Array(b"[]"), Json::Object(b"{}"))
    );
    assert_eq!(value("ä"), Json::String(b""));
    assert_eq!(read("{}").unwrap(), []);
}

#[test]
fn elements_are_visited_in_order() {
    let mut kinds = vec![];
    elements(br#"[1, "a", [2], {"b": 3}, null , false]"#, |value| {
        kinds.push(value.kind());
        Ok(())
    })
    .unwrap();
    let expected = [
        "a number",
        "a string",
        "a list",
        "an object",
        "null",
        "a boolean",
    ];
    assert_eq!(kinds, expected);
    assert!(elements(b"[ ]", |_| Err("nothing".to_string())).is_ok());
    assert!(elements(b"[1 2]", |_| Ok(())).is_err());
}

/// Python's `json` refuses each of them as well.
#[test]
fn broken_lines_are_refused() {
    for line in [
        "",
        "{",
        "[1]",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{\"a\":1}{\"b\":2}",
        "{\"a\":1} x",
        "{a:1}",
        "{\"a\":\"x}",
        "{\"a\":\"x\\\"}",
        "{\"a\":[1}",
        "{\"a\":[1,{\"b\":2]}",
        "{\"a\":{\"b\":[1}}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":+1}",
        "{\"a\":1e}",
        "{\"a\":1e+}",
        "{\"a\":-}",
        "{\"a\":nan}",
        "{\"a\":0x10}",
        "{\"a\":True}",
        "{\"a\":[\"x]}",
        "{\"a\":[[1]}",
    ] {
        assert!(read(line).is_err(), "{line}");
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(read(&deep).unwrap_err().contains("nesting"));
}

#[test]
fn every_cut_of_a_line_is_refused() {
    let line = r#"{"a":"b\\","c":[1,{"d":"]"}],"e":{"f":-1.5e3},"g":null}"#;
    for length in 0..line.len() {
        assert!(read(&line[..length]).is_err(), "{}", &line[..length]);
    }
}

#[test]
fn lengths_are_those_of_the_decoded_text() {
    for raw in [
        "",
        "plain",
        "größe 数",
        r"a\n",
        r"\n\n",
        r#"\"\\\/\b\f\r\t"#,
        r"\\u6570",
        r"\u0041\u00e4\u6570\uFFFD",
        r"\ud83d\ude00 \uD83D\uDE00",
        r"x\\",
    ] {
        let text = decode(raw.as_bytes()).unwrap();
        assert_eq!(text_length(raw.as_bytes()), text.len() as u64, "{raw}");
    }
    for (raw, length) in [
        (r"\ud83d", 3),
        (r"\ude00\ud83d", 6),
        (r"\ud83dx", 4),
        (r"\ud83d\n", 4),
        (r"\ud83d\ud83d\ude00", 7),
        (r"\q", 1),
        (r"\u12", 3),
        (r"\u+123", 5),
        (r"\", 1),
    ] {
        assert_eq!(text_length(raw.as_bytes()), length, "{raw}");
    }
}

#[test]
fn numbers_are_those_of_json() {
    assert_eq!(number(b"0"), Some(0.0));
    assert_eq!(number(b"-0.10"), Some(-0.1));
    assert_eq!(number(b"1e400"), Some(f64::INFINITY));
    assert_eq!(
        number(b"12345678901234567890"),
        Some(12345678901234567890.0)
    );
    assert!(number(b"NaN").unwrap().is_nan());
    for text in ["", "-", "1_000", "inf", "1e5.0", "١"] {
        assert_eq!(number(text.as_bytes()), None, "{text}");
    }
}
