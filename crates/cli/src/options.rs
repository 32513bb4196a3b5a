//! Values that several commands take in the same form.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use nullspace_types::event::{EventStatus, Operation};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// A JSON object as the value of an option.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

/// Seconds, as milliseconds.
pub(crate) fn seconds(text: &str) -> Result<i64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    // Whether it is in bounds is the server's to say; beyond this it is no number of seconds.
    if !(-1e12..=1e12).contains(&seconds) {
        return Err("expected a number of seconds".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked just above")]
    Ok((seconds * 1000.0).round() as i64)
}

/// Seconds, more than none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "expected a number of seconds above 0".to_owned())
}

/// How long something is good, in whole seconds: `120`, `90s`, `10m`, `1h`.
pub(crate) fn span(text: &str) -> Result<i64, String> {
    let wrong = || "expected seconds, or such as 90s, 10m or 1h".to_owned();
    let (digits, each) = match text.char_indices().next_back() {
        Some((end, 's')) => (&text[..end], 1),
        Some((end, 'm')) => (&text[..end], 60),
        Some((end, 'h')) => (&text[..end], 3600),
        _ => (text, 1),
    };
    let count: i64 = digits.parse().ok().filter(|count| *count > 0).ok_or_else(wrong)?;
    count.checked_mul(each).ok_or_else(wrong)
}

/// A lifecycle operation.
pub(crate) fn operation() -> impl clap::builder::TypedValueParser<Value = Operation> {
    let words = PossibleValuesParser::new(Operation::ALL.iter().map(|operation| operation.as_str()));
    words.try_map(|word| word.to_lowercase().parse())
}

/// How far a lifecycle operation came.
pub(crate) fn event_status() -> impl clap::builder::TypedValueParser<Value = EventStatus> {
    let words = PossibleValuesParser::new(EventStatus::ALL.iter().map(|status| status.as_str()));
    words.try_map(|word| word.to_lowercase().parse())
}

/// A filter by metadata, as the API takes it: a JSON object, and pairs beside it. None for an empty one.
pub(crate) fn metadata(json: Option<Map<String, Value>>, pairs: Vec<(String, String)>) -> Option<String> {
    let metadata = merged(json, pairs);
    (!metadata.is_empty()).then(|| Value::Object(metadata).to_string())
}

/// The most that is read in the place of an argument.
const TEXT_MAX: u64 = 64 << 20;

/// A text as it stands; `@FILE` and `-`, standard input, are where it is to be read.
pub(crate) fn text(argument: &str) -> Result<String, Failure> {
    match argument.strip_prefix('@') {
        _ if argument == "-" => whole("standard input", std::io::stdin().lock()),
        Some(path) => file(path.as_ref()),
        None => Ok(argument.to_owned()),
    }
}

/// The text in a file.
pub(crate) fn file(path: &Path) -> Result<String, Failure> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(Failure::io(format!("read {name}")))?;
    whole(&name, file)
}

fn whole(what: &str, source: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    source.take(TEXT_MAX + 1).read_to_end(&mut bytes).map_err(Failure::io(format!("read {what}")))?;
    if bytes.len() as u64 > TEXT_MAX {
        return Err(Failure::usage(format!("{what} has more than {TEXT_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{what} is not UTF-8 text")))
}

/// Names separated by commas: trimmed, each once, in their order.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields: Vec<String> = Vec::new();
    for field in text.split(',').map(str::trim).filter(|field| !field.is_empty()) {
        if !fields.iter().any(|known| known == field) {
            fields.push(field.to_owned());
        }
    }
    if fields.is_empty() { Err("expected at least one field".to_owned()) } else { Ok(fields) }
}

/// A JSON object and pairs beside it; a pair wins over the object.
pub(crate) fn merged(json: Option<Map<String, Value>>, pairs: Vec<(String, String)>) -> Map<String, Value> {
    let mut map = json.unwrap_or_default();
    map.extend(pairs.into_iter().map(|(key, value)| (key, Value::String(value))));
    map
}

/// As [`merged`], for environments: every value is text.
pub(crate) fn merged_text(
    option: &str,
    json: Option<Map<String, Value>>,
    pairs: Vec<(String, String)>,
) -> Result<BTreeMap<String, String>, Failure> {
    merged(json, pairs)
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            _ => Err(Failure::usage(format!("{option}: the value of {key:?} must be a string"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_trimmed_and_named_once() {
        assert_eq!(fields(" id, status,,id ").unwrap(), ["id", "status"]);
        assert!(fields(" , ").is_err());
    }

    #[test]
    fn a_span_has_a_unit_or_is_seconds() {
        assert_eq!(["120", "90s", "10m", "1h"].map(|text| span(text).unwrap()), [120, 90, 600, 3600]);
        for text in ["", "m", "0", "-5m", "1.5h", "10 m", "1d", "9223372036854775807h"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_become_milliseconds() {
        assert_eq!(seconds("300"), Ok(300_000));
        assert_eq!(seconds("0.25"), Ok(250));
        for text in ["", "abc", "nan", "inf", "1e300"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
