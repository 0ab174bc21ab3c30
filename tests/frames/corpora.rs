//! What reads bytes of others, on the corpora of `fuzz/` and on copies that are cut and damaged: nothing panics, nothing hangs.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use targets::TARGETS;

/// Damaged copies of each input.
const DAMAGED: u32 = 200;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    assert!(paths.len() >= 4, "{name} has a corpus of {}", paths.len());
    paths
        .iter()
        .map(|path| fs::read(path).expect("a file"))
        .collect()
}

/// As a fuzzer damages: bytes that are flipped, taken out, put twice, or of another input.
fn damage(input: &[u8], others: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..9)).min(bytes.len());
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let other = &others[random.random_range(0..others.len())];
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

#[test]
fn no_input_of_the_corpora_cut_or_damaged_makes_a_reader_panic() {
    for (name, read) in TARGETS {
        let inputs = corpus(name);
        // The same in each run: what is found stays found.
        let mut random = StdRng::seed_from_u64(7);
        for input in &inputs {
            for end in 0..=input.len() {
                read(&input[..end]);
            }
            for _ in 0..DAMAGED {
                read(&damage(input, &inputs, &mut random));
            }
        }
    }
}
