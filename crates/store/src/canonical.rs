//! One text per JSON value, so that equal values have equal digests: members sorted by name, no spaces, and
//! a whole number written without a point. Metadata is found by these digests on every engine, rather
//! than by each engine's own notion of JSON.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Up to here every whole number has a floating-point value of its own.
const WHOLE: f64 = 9_007_199_254_740_992.0;

/// The digest of one member of an object.
pub(crate) fn pair_digest(name: &str, value: &Value) -> [u8; 32] {
    let mut text = String::new();
    string(name, &mut text);
    text.push(':');
    write(value, &mut text);
    Sha256::digest(text.as_bytes()).into()
}

fn string(value: &str, out: &mut String) {
    // Value's own Display is its JSON text, and cannot fail for a string.
    out.push_str(&Value::from(value).to_string());
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
        Value::Number(number) => match number.as_f64() {
            #[allow(clippy::cast_possible_truncation, reason = "whole and within 53 bits")]
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= WHOLE => {
                out.push_str(&(float as i64).to_string());
            }
            _ => out.push_str(&number.to_string()),
        },
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            // The map's own order depends on a feature that any crate of the build may turn on.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                string(name, out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(one: &str, other: &str) -> bool {
        let read = |text| serde_json::from_str::<Value>(text).unwrap();
        pair_digest("k", &read(one)) == pair_digest("k", &read(other))
    }

    #[test]
    fn equal_values_have_equal_digests_however_they_are_spelled() {
        for (one, other) in [
            (r#"{"a":1,"b":[true,null]}"#, r#"{ "b" : [true, null], "a" : 1.0 }"#),
            (r#""\u0041""#, r#""A""#),
            ("1e2", "100"),
            ("-0.0", "0"),
        ] {
            assert!(same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn different_values_have_different_digests() {
        for (one, other) in [
            ("1", r#""1""#),
            ("[1,2]", "[2,1]"),
            ("null", "false"),
            ("{}", "[]"),
            ("0.1", "0.10000001"),
            ("\"a\"", "\"A\""),
        ] {
            assert!(!same(one, other), "{one} {other}");
        }
        assert_ne!(pair_digest("a", &Value::Null), pair_digest("b", &Value::Null));
        assert_ne!(pair_digest("a\":1,\"b", &Value::Null), pair_digest("a", &Value::from("1,\"b")));
    }
}
