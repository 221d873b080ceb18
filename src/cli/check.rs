//! `vitrine check`.

use api::vmm::host::{self, Weight};

use super::Failure;

/// Says what this host offers guests, one finding a line.
///
/// # Errors
/// Something keeps guests from running.
pub fn check() -> Result<(), Failure> {
    let findings = host::check();
    let width = findings
        .iter()
        .map(|finding| finding.subject.len())
        .max()
        .unwrap_or(0);
    for finding in &findings {
        let mark = match finding.weight {
            Weight::Fine => "ok   ",
            Weight::Note => "note ",
            Weight::Blocks => "BLOCK",
        };
        println!("{mark}  {:width$}  {}", finding.subject, finding.text);
    }
    let blocking = findings
        .iter()
        .filter(|finding| finding.weight == Weight::Blocks)
        .count();
    if blocking == 0 {
        println!("This host can run guests.");
        return Ok(());
    }
    Err(Failure::failed(refusal(blocking)))
}

fn refusal(blocking: usize) -> String {
    let lines = match blocking {
        1 => "line".to_owned(),
        many => format!("{many} lines"),
    };
    format!("this host cannot run stock guests: see the {lines} marked BLOCK")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_no_lines() {
        assert!(refusal(1).ends_with("see the line marked BLOCK"));
        assert!(refusal(2).ends_with("see the 2 lines marked BLOCK"));
    }
}
