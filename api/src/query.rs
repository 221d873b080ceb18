//! The query of a request target: `?since=4&follow=1`.

use crate::wire::WireError;

/// The parameters of one request, each known to its route and given at most once.
#[derive(Debug)]
pub struct Query<'a> {
    given: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    /// Reads the query of `target`, which may have the parameters in `known` and no others.
    ///
    /// # Errors
    /// A parameter that is unknown or given twice.
    pub fn parse(target: &'a str, known: &[&str]) -> Result<Query<'a>, WireError> {
        let target = target.split('#').next().unwrap_or_default();
        let text = target.split_once('?').map_or("", |(_, query)| query);
        let mut given: Vec<(&str, &str)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let refused = |remedy: String| {
                let name = name.to_owned();
                Err(WireError::UnknownParameter { name, remedy })
            };
            if !known.contains(&name) {
                return refused(format!("give {} or none", known.join(", ")));
            }
            if given.iter().any(|(other, _)| *other == name) {
                return refused("give it once".to_owned());
            }
            given.push((name, value));
        }
        Ok(Query { given })
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        let found = self.given.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| *value)
    }

    /// A number that is not negative; 0 when it is absent.
    ///
    /// # Errors
    /// Something else.
    pub fn number(&self, name: &'static str) -> Result<u64, WireError> {
        self.number_or(name, 0)
    }

    /// A number that is not negative; `absent` when it is absent.
    ///
    /// # Errors
    /// Something else.
    pub fn number_or(&self, name: &'static str, absent: u64) -> Result<u64, WireError> {
        let Some(value) = self.value(name) else {
            return Ok(absent);
        };
        value.parse().map_err(|_| WireError::BadParameter {
            name,
            value: value.to_owned(),
            remedy: "give a whole number from 0 on",
        })
    }

    /// 0 or 1; 0 when it is absent.
    ///
    /// # Errors
    /// Something else.
    pub fn flag(&self, name: &'static str) -> Result<bool, WireError> {
        match self.value(name) {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(value) => Err(WireError::BadParameter {
                name,
                value: value.to_owned(),
                remedy: "give 0 or 1",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_what_is_absent_is_0() {
        let query = Query::parse("/x?since=18&follow=1", &["since", "follow"]).unwrap();
        assert_eq!(query.number("since").unwrap(), 18);
        assert!(query.flag("follow").unwrap());
        assert_eq!(query.number_or("since", 7).unwrap(), 18);
        for target in ["/x", "/x?", "/x?&", "http://localhost/x#?since=2"] {
            let query = Query::parse(target, &["since"]).unwrap();
            assert_eq!(query.number("since").unwrap(), 0, "{target}");
            assert!(!query.flag("follow").unwrap());
        }
        let query = Query::parse("/x", &["ms"]).unwrap();
        assert_eq!(query.number_or("ms", 7).unwrap(), 7);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let known = ["since", "follow"];
        let parse = |target| Query::parse(target, &known);
        for (target, text) in [("/x?sinc=1", "`sinc`"), ("/x?since=1&since=1", "once")] {
            let error = parse(target).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        for value in ["", "-1", "one", "99999999999999999999"] {
            let target = format!("/x?since={value}");
            let query = Query::parse(&target, &known).unwrap();
            let error = query.number("since").unwrap_err().to_string();
            assert!(
                error.contains("`since`") && error.contains(value),
                "{error}"
            );
        }
        let query = parse("/x?follow=yes").unwrap();
        let error = query.flag("follow").unwrap_err().to_string();
        assert!(
            error.contains("`follow`") && error.contains("yes"),
            "{error}"
        );
    }
}
