//! Guest memory: layout, backing, placement
