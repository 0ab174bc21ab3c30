//! The verdict: what the database committed, in commit order, against what the stream holds, in its order.
//!
//! It knows nothing of positions, slots or acknowledgements.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

/// # Panics
/// Unless each committed event is in the stream once, in commit order, and nothing else is.
pub(crate) fn assert_exactly_once(committed: &[Uuid], stored: &[Uuid]) {
    let ranks: HashMap<Uuid, usize> = committed
        .iter()
        .enumerate()
        .map(|(rank, id)| (*id, rank))
        .collect();
    assert_eq!(ranks.len(), committed.len(), "the test's own ids repeat");
    let mut seen = HashSet::new();
    let (mut doubled, mut phantom, mut reordered) = (Vec::new(), Vec::new(), Vec::new());
    let mut highest = None;
    for id in stored {
        match ranks.get(id) {
            None => phantom.push(id),
            Some(_) if !seen.insert(*id) => doubled.push(id),
            Some(rank) if Some(rank) < highest => reordered.push(id),
            Some(rank) => highest = Some(rank),
        }
    }
    let lost: Vec<&Uuid> = committed.iter().filter(|id| !seen.contains(id)).collect();
    let flawless =
        lost.is_empty() && doubled.is_empty() && phantom.is_empty() && reordered.is_empty();
    assert!(
        flawless,
        "{} committed, {} in the stream; {}, {}, {}, {}",
        committed.len(),
        stored.len(),
        some("lost", &lost),
        some("doubled", &doubled),
        some("out of order", &reordered),
        some("never committed", &phantom),
    );
    assert!(!committed.is_empty(), "nothing proves nothing");
}

/// How many, and the first few of them.
fn some(what: &str, ids: &[&Uuid]) -> String {
    let first: Vec<String> = ids.iter().take(3).map(ToString::to_string).collect();
    format!("{} {what} ({})", ids.len(), first.join(" "))
}

mod tests {
    use super::*;

    fn judge(committed: &[u128], stored: &[u128]) {
        let ids = |numbers: &[u128]| {
            numbers
                .iter()
                .copied()
                .map(Uuid::from_u128)
                .collect::<Vec<_>>()
        };
        assert_exactly_once(&ids(committed), &ids(stored));
    }

    #[test]
    fn what_is_right_passes() {
        judge(&[3, 1, 2], &[3, 1, 2]);
    }

    #[test]
    #[should_panic(expected = "1 lost")]
    fn a_loss_is_seen() {
        judge(&[3, 1, 2], &[3, 2]);
    }

    #[test]
    #[should_panic(expected = "1 doubled")]
    fn a_double_is_seen() {
        judge(&[3, 1, 2], &[3, 1, 2, 1]);
    }

    #[test]
    #[should_panic(expected = "1 out of order")]
    fn another_order_is_seen() {
        judge(&[3, 1, 2], &[3, 2, 1]);
    }

    #[test]
    #[should_panic(expected = "1 never committed")]
    fn a_phantom_is_seen() {
        judge(&[3, 1, 2], &[3, 1, 9, 2]);
    }

    #[test]
    #[should_panic(expected = "nothing proves nothing")]
    fn an_empty_trial_is_seen() {
        judge(&[], &[]);
    }
}
