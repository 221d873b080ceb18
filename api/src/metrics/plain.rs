//! The Prometheus text format, version 0.0.4, for those who do not ask for OpenMetrics.
//!
//! The samples are the same. In OpenMetrics a family is named without the `_total` or `_info` of
//! its samples; here its name is theirs, and facts are a gauge. `# UNIT` and `# EOF` mean nothing
//! here and stay as comments.

/// The content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics text as plain text.
pub fn of(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + openmetrics.len() / 16);
    let mut suffix = "";
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        let (hash, keyword) = (words.next(), words.next());
        match (hash, keyword, words.next(), words.next()) {
            (Some("#"), Some(keyword @ ("TYPE" | "UNIT" | "HELP")), Some(name), rest) => {
                let mut rest = rest.unwrap_or_default();
                if keyword == "TYPE" {
                    (suffix, rest) = match rest {
                        "counter" => ("_total", rest),
                        "info" => ("_info", "gauge"),
                        _ => ("", rest),
                    };
                }
                // Only here are quotes in a help not escaped.
                let rest = rest.replace("\\\"", "\"");
                text.extend(["# ", keyword, " ", name, suffix, " ", &rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_as_their_samples() {
        let openmetrics = "\
# TYPE a counter\n# UNIT a seconds\n# HELP a Time in a b.\na_total{vm=\"x\"} 1.5\n\
# TYPE b info\n# HELP b .\nb_info{v=\"# TYPE a counter\"} 1\n\
# TYPE c histogram\n# HELP c A \\\"c\\\".\nc_bucket{le=\"+Inf\"} 1\n# EOF\n";
        let plain = "\
# TYPE a_total counter\n# UNIT a_total seconds\n# HELP a_total Time in a b.\n\
a_total{vm=\"x\"} 1.5\n# TYPE b_info gauge\n# HELP b_info .\n\
b_info{v=\"# TYPE a counter\"} 1\n# TYPE c histogram\n# HELP c A \"c\".\n\
c_bucket{le=\"+Inf\"} 1\n# EOF\n";
        assert_eq!(of(openmetrics), plain);
    }
}
