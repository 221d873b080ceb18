//! An object that is read field by field, where a refusal has to name the field, its value and what
//! is allowed.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::WireError;

/// Most characters of a value in a refusal.
const SHOWN: usize = 64;

/// The fields of one object. Each is asked for once; what nobody asked for is refused at the end.
pub struct Fields<'a> {
    place: String,
    object: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Those of `value`, which lies at `place`: "" for a whole body.
    ///
    /// # Errors
    /// It is no object.
    pub fn of(place: &str, value: &'a Value) -> Result<Fields<'a>, WireError> {
        let object = value.as_object().ok_or_else(|| {
            let place = if place.is_empty() { "the body" } else { place };
            bad(place, value, "an object in braces")
        })?;
        Ok(Fields {
            place: place.to_owned(),
            object,
            known: Vec::new(),
        })
    }

    /// Where the field lies: `restart.at_most`.
    pub fn place(&self, name: &str) -> String {
        if self.place.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.place)
        }
    }

    /// The field; `null` is absent.
    pub fn take(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A whole number in that range.
    ///
    /// # Errors
    /// It is something else.
    pub fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, WireError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value.as_u64().filter(|number| range.contains(number));
        let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
        let number = number.ok_or_else(|| bad(&self.place(name), value, allowed()))?;
        Ok(Some(number))
    }

    /// A number above 0 and up to `most`.
    ///
    /// # Errors
    /// It is something else.
    pub fn real(&mut self, name: &'static str, most: f64) -> Result<Option<f64>, WireError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let real = value.as_f64().filter(|real| *real > 0.0 && *real <= most);
        let allowed = || format!("a number above 0 and up to {most}");
        let real = real.ok_or_else(|| bad(&self.place(name), value, allowed()))?;
        Ok(Some(real))
    }

    /// Refuses what was not asked for.
    ///
    /// # Errors
    /// The first field that nobody knows.
    pub fn finish(self) -> Result<(), WireError> {
        let mut given = self.object.keys();
        match given.find(|name| !self.known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(WireError::UnknownField {
                field: self.place(&cut(name.clone())),
                known: self.known.join(", "),
            }),
        }
    }
}

/// The refusal of a value.
pub fn bad(field: &str, value: &Value, allowed: impl Into<String>) -> WireError {
    WireError::BadField {
        field: field.to_owned(),
        value: cut(value.to_string()),
        allowed: allowed.into(),
    }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}
