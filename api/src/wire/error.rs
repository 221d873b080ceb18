//! What is wrong with a request before it reaches the VM. The texts that clients match are
//! Firecracker's.

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not JSON, or JSON of another shape.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(serde_json::Error),
    /// The path ends where an id should be.
    #[error("The ID cannot be empty.")]
    EmptyId,
    /// An id with other characters.
    #[error(
        "API Resource IDs can only contain alphanumeric characters and underscores: {0:?} does not."
    )]
    BadId(String),
    /// The path names one thing and the body another.
    #[error(
        "the id in the path ({path}) and {field} in the body ({body}) differ; give the same id twice"
    )]
    IdMismatch {
        /// The path's.
        path: String,
        /// Its name in the body.
        field: &'static str,
        /// The body's.
        body: String,
    },
    /// No such route.
    #[error("Invalid request method and/or path: {method} {path}.")]
    NoRoute {
        /// The method.
        method: String,
        /// The path without its first slash.
        path: String,
    },
    /// GET with a body.
    #[error("GET request cannot have a body.")]
    GetWithBody,
    /// PUT or PATCH without one, or a PATCH that changes nothing.
    #[error("Empty {0} request.")]
    EmptyBody(String),
    /// A field that must be there.
    #[error("the field `{field}` is missing; {remedy}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What to give.
        remedy: &'static str,
    },
    /// A parameter of the query that the route does not know, or knows once.
    #[error("the query parameter `{name}` is not taken here; {remedy}")]
    UnknownParameter {
        /// Its name.
        name: String,
        /// What to give.
        remedy: String,
    },
    /// A parameter of the query with a value that it cannot have.
    #[error("the query parameter `{name}` cannot be {value:?}; {remedy}")]
    BadParameter {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What to give.
        remedy: &'static str,
    },
    /// A field of Vitrine's own with a value that it cannot have.
    #[error("`{field}` cannot be {value}; give {allowed}")]
    BadField {
        /// Where it is.
        field: String,
        /// Its value.
        value: String,
        /// What it can be.
        allowed: String,
    },
    /// A field that nobody knows.
    #[error("`{field}` is not known; give {known}, or leave it out")]
    UnknownField {
        /// Where it is.
        field: String,
        /// What is known there.
        known: String,
    },
    /// Something of the API that is to come.
    #[error("{what} is not supported by this build; {remedy}")]
    NotSupported {
        /// What.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
}

impl WireError {
    /// A field, or a value of a field, that this build does not support.
    pub fn field_not_supported(what: impl Into<String>) -> WireError {
        WireError::NotSupported {
            what: what.into(),
            remedy: "leave it out",
        }
    }
}
