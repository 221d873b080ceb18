//! Ids of drives and network interfaces.

use super::WireError;

/// Judges the id in a path, and that the body's is the same.
///
/// # Errors
/// Empty, of other characters than `[A-Za-z0-9_]`, or not the body's.
pub fn check(path: &str, field: &'static str, body: &str) -> Result<(), WireError> {
    if path.is_empty() || body.is_empty() {
        return Err(WireError::EmptyId);
    }
    if !path
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return Err(WireError::BadId(path.to_owned()));
    }
    if path == body {
        return Ok(());
    }
    Err(WireError::IdMismatch {
        path: path.to_owned(),
        field,
        body: body.to_owned(),
    })
}
