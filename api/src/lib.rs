//! HTTP over a Unix socket: wire types, conversion to specs, routes
