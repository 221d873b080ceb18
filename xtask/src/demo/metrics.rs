//! A digest of Vitrine's metrics for people: counters by reason, device and queue.

use std::collections::BTreeMap;

/// One sample of an OpenMetrics text.
#[derive(Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A table of the counters that are not zero and say what happened at what: exits by reason,
/// requests by device and queue.
pub fn digest(text: &str) -> String {
    let mut sums: BTreeMap<(String, String), f64> = BTreeMap::new();
    for sample in text.lines().filter_map(parse) {
        let Some(name) = sample.name.strip_suffix("_total") else {
            continue;
        };
        let told = ["device", "queue", "reason", "operation", "op"]
            .iter()
            .filter_map(|label| Some(format!("{label}={}", sample.labels.get(*label)?)))
            .collect::<Vec<_>>()
            .join(" ");
        if sample.value > 0.0 && !told.is_empty() {
            let name = name.strip_prefix("vitrine_").unwrap_or(name).to_owned();
            *sums.entry((name, told)).or_default() += sample.value;
        }
    }
    let mut table = format!("  {:<34} {:<38} {:>14}\n", "counter", "of", "value");
    for ((name, told), value) in &sums {
        let shown = if value.fract() == 0.0 {
            format!("{value}")
        } else {
            format!("{value:.6}")
        };
        table.push_str(&format!("  {name:<34} {told:<38} {shown:>14}\n"));
    }
    if sums.is_empty() {
        "  (no counters)\n".to_owned()
    } else {
        table
    }
}

fn parse(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (head, value) = line.rsplit_once(' ')?;
    let (name, labels) = match head.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}')?),
        None => (head, ""),
    };
    let mut found = BTreeMap::new();
    let mut rest = labels;
    while let Some((label, after)) = rest.split_once("=\"") {
        let (content, after) = after.split_once('"')?;
        found.insert(label.trim_start_matches(',').to_owned(), content.to_owned());
        rest = after;
    }
    Some(Sample {
        name: name.to_owned(),
        labels: found,
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_vcpus_add_up() {
        let text = "# TYPE vitrine_vcpu_exits counter\n\
            vitrine_vcpu_exits_total{vm=\"x\",vcpu=\"0\",reason=\"io_out\"} 3\n\
            vitrine_vcpu_exits_total{vm=\"x\",vcpu=\"1\",reason=\"io_out\"} 4\n\
            vitrine_vcpu_exits_total{vm=\"x\",vcpu=\"1\",reason=\"hlt\"} 0\n\
            vitrine_queue_requests_total{vm=\"x\",device=\"rootfs\",queue=\"0\"} 9\n\
            vitrine_up{vm=\"x\"} 1\n# EOF\n";
        let table = digest(text);
        let row = |of: &str| {
            table
                .lines()
                .find(|line| line.contains(of))
                .unwrap_or_default()
        };
        assert!(row("reason=io_out").ends_with(" 7"), "{table}");
        assert!(row("device=rootfs queue=0").ends_with(" 9"), "{table}");
        assert!(!table.contains("hlt") && !table.contains("up"), "{table}");
    }
}
