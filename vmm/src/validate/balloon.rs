//! A balloon beside the memory that it is to be filled from.

use memory::MemorySpec;

use super::SpecError;
use crate::spec::BalloonSpec;

/// Judges a balloon for a guest with this memory.
///
/// # Errors
/// It is larger than the memory.
pub fn balloon(spec: &BalloonSpec, memory: &MemorySpec) -> Result<(), SpecError> {
    if u64::from(spec.target_mib) > memory.size_mib {
        return Err(SpecError::BalloonTooLarge {
            asked: spec.target_mib,
            memory: memory.size_mib,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_at_most_as_large_as_the_memory() {
        let memory = MemorySpec::default();
        let of = |target_mib| {
            let spec = BalloonSpec {
                target_mib,
                ..BalloonSpec::default()
            };
            balloon(&spec, &memory).map_err(|error| error.to_string())
        };
        assert_eq!(of(128), Ok(()));
        let text = of(129).unwrap_err();
        assert!(
            text.contains("129") && text.contains("at most 128"),
            "{text}"
        );
    }
}
