//! JSON values, as far as a trace needs them.

use std::fmt::Write;

/// A JSON value. Numbers are whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// null
    Null,
    /// true or false
    Bool(bool),
    /// A number. Viewers keep 53 bits of it: addresses are better told by [`Json::hex`].
    Number(u64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object, its keys in this order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// A text.
    pub fn text(text: impl Into<String>) -> Json {
        Json::Text(text.into())
    }

    /// An address: a text such as `0x3f8`.
    pub fn hex(number: u64) -> Json {
        Json::Text(format!("{number:#x}"))
    }

    /// An object.
    pub fn object<K: Into<String>>(fields: impl IntoIterator<Item = (K, Json)>) -> Json {
        let fields = fields.into_iter();
        Json::Object(fields.map(|(key, value)| (key.into(), value)).collect())
    }

    /// Appends the value to `out`.
    pub fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => {
                let _ = write!(out, "{number}");
            }
            Json::Text(text) => quote(text, out),
            Json::List(values) => {
                out.push('[');
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    value.write(out);
                }
                out.push(']');
            }
            Json::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| (key.as_str(), value));
                object(fields, out);
            }
        }
    }
}

/// Appends an object.
pub fn object<'a>(fields: impl Iterator<Item = (&'a str, &'a Json)>, out: &mut String) {
    out.push('{');
    for (index, (key, value)) in fields.enumerate() {
        if index > 0 {
            out.push(',');
        }
        quote(key, out);
        out.push(':');
        value.write(out);
    }
    out.push('}');
}

/// Appends `text` in quotes, with all that JSON wants escaped.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            control if u32::from(control) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            // Some readers end a line at these.
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_json_has_them() {
        let value = Json::object([
            ("a\"b\\", Json::text("x\n\u{1}\u{2028}é")),
            ("list", Json::List(vec![Json::Null, Json::Bool(true)])),
            ("n", Json::Number(u64::MAX)),
            ("at", Json::hex(0x3f8)),
        ]);
        let mut text = String::new();
        value.write(&mut text);
        let expected = r#"{"a\"b\\":"x\n\u0001\u2028é","list":[null,true],"n":18446744073709551615,"at":"0x3f8"}"#;
        assert_eq!(text, expected);
    }
}
