//! The description in resources/openapi.yaml and the route table say the same, both ways.

use std::collections::BTreeMap;

use api::routes::{Endpoint, ROUTES};

/// (method, path) -> supported, from the file's lines: paths are indented by two, their methods by
/// four, and what is said of a method by six.
fn described() -> BTreeMap<(String, String), bool> {
    let text = include_str!("../../resources/openapi.yaml");
    let mut found = BTreeMap::new();
    let (mut path, mut method) = (String::new(), String::new());
    let within = text.lines().skip_while(|line| *line != "paths:").skip(1);
    for line in within.take_while(|line| line.starts_with(' ')) {
        let word = line.trim().trim_end_matches(':');
        match line.len() - line.trim_start().len() {
            2 => word.clone_into(&mut path),
            4 if word != "parameters" => method = word.to_uppercase(),
            6 => {
                if let Some(support) = word.strip_prefix("x-vitrine-support: ") {
                    let key = (method.clone(), path.clone());
                    assert!(
                        found.insert(key, support == "\"yes\"").is_none(),
                        "{method} {path}"
                    );
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let table: BTreeMap<(String, String), bool> = ROUTES
        .iter()
        .map(|row| {
            let supported = !matches!(row.endpoint, Endpoint::NotSupported(_));
            ((row.method.to_owned(), row.path.to_owned()), supported)
        })
        .collect();
    assert_eq!(described(), table);
}
