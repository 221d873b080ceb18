//! `/logger`.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Where logs go and what is in them. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerWire {
    /// A file, made if absent, or a FIFO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// The least severe level that is logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LevelWire>,
    /// Whether lines tell their level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether lines tell the source file and line that they come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only modules whose path begins so are logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// A level, in any case; `Warn` and `Warning` are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum LevelWire {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What an operator should look at.
    Warning,
    /// What happened.
    Info,
    /// How it happened.
    Debug,
    /// Everything.
    Trace,
}

/// A text that is no level.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a log level; give Error, Warning, Info, Debug, Trace or Off")]
pub struct LevelError(String);

impl FromStr for LevelWire {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "off" => LevelWire::Off,
            "error" => LevelWire::Error,
            "warn" | "warning" => LevelWire::Warning,
            "info" => LevelWire::Info,
            "debug" => LevelWire::Debug,
            "trace" => LevelWire::Trace,
            _ => return Err(LevelError(text.to_owned())),
        })
    }
}

impl<'de> Deserialize<'de> for LevelWire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
