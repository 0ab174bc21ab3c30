//! A model of the lane, checked exhaustively: epoch, acknowledgement, hold-back, record, probe, takeover.
//!
//! In: a [`Case`], what may happen how often and which rule is left out. Out: every reachable state, with the lane's
//! promises (`Case::properties`) checked in each; about 2.4 million states in all, within a minute unoptimised.
//! LSNs are half steps: row `n` commits at `2n`, `2n + 1` is idle WAL behind it.
//!
//! The world is an adversary's: a delivery, an answer, a sync or a step of a relay may come at any time, what a dead,
//! ended or frozen epoch has sent stays on the way and may still be stored, and a power failure of the broker cuts no
//! connection unless the case says so, as in a cluster that elects another node. Event stream and record stream are
//! synced apart. The hold-back is modelled by what it is for: a row is old enough once the broker has synced, or lost,
//! everything since its acknowledgement. A purge is synced at once. Atomic batches on shared streams are not modelled.
//!
//! What it found:
//! - The rules are needed, each by a counterexample below: ids beside sequences in the chain, nothing behind a commit
//!   under way, the record before the confirmation, the probe, the hold-back, idle WAL held back with the tail.
//! - The first message of an epoch expects a sequence alone, having no predecessor to name. So one that a power failure
//!   of a cluster leaves on the way can be stored behind its own row, published again, if a foreign message in the lost
//!   end had moved the sequences by just so much: a double. A single server takes what is on the way down with it.
//! - A foreign message in the place of one that a power failure took, purged before the relay has looked, is taken for
//!   the relay's own, which record or memory name at that very sequence: the row is not published again.
//! - A row may be published by an epoch before the newest after a power failure, from a message left on the way; it is
//!   the right row in the right place, so order and once hold, but "fenced" holds only without a power failure.

mod lane;
mod relay;
mod state;

use lane::{Budget, CONFIRMED_IS_DURABLE, Case, NO_NEEDLESS_HALT, ONCE_IN_ORDER, Rule, Way};
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeSet;

/// Checks a case that must keep every promise, see `Case::properties`.
fn keeps(case: Case) {
    let checker = case.clone().checker().threads(2).spawn_bfs().join();
    eprintln!(
        "{} states, depth {}: {case:?}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    assert!(checker.is_done());
    checker.assert_properties();
}

/// Checks that a case breaks `promise`: the model can tell, and the rule is needed.
fn breaks(promise: &'static str, case: Case) {
    let found = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
    let checker = case.clone().checker().finish_when(found).spawn_bfs().join();
    let path = checker
        .discovery(promise)
        .unwrap_or_else(|| panic!("no counterexample to {promise:?}: {case:?}"));
    eprintln!("{case:?} breaks {promise:?}:");
    for action in path.into_actions() {
        eprintln!("  {action:?}");
    }
}

const QUIET: Budget = Budget {
    relay_crashes: 0,
    power_failures: 0,
    freezes: 0,
    foreign_messages: 0,
    purges: 0,
    lost_connections: 0,
};

fn case(way: Way, budget: Budget) -> Case {
    Case {
        way,
        rows: 3,
        // A second one only where the first can be frozen: a dead relay and its successor are one.
        relays: 1 + budget.freezes,
        budget,
        cuts: false,
        idle_wal: false,
        window: 2,
        without: None,
    }
}

fn without(rule: Rule, way: Way, budget: Budget) -> Case {
    Case {
        without: Some(rule),
        ..case(way, budget)
    }
}

const CRASH: Budget = Budget {
    relay_crashes: 1,
    ..QUIET
};
const CRASH_AND_FOREIGN_MESSAGE: Budget = Budget {
    foreign_messages: 1,
    ..CRASH
};
const CRASH_AND_PURGE: Budget = Budget { purges: 1, ..CRASH };
const CRASH_AND_POWER_FAILURE: Budget = Budget {
    power_failures: 1,
    ..CRASH
};
const POWER_FAILURE: Budget = Budget {
    power_failures: 1,
    ..QUIET
};
const TAKEOVER: Budget = Budget {
    freezes: 1,
    ..QUIET
};

#[test]
fn a_chain_keeps_through_a_crash_and_a_foreign_message() {
    keeps(case(Way::Chain, CRASH_AND_FOREIGN_MESSAGE));
}

#[test]
fn a_chain_keeps_through_a_crash_and_a_purge() {
    keeps(case(Way::Chain, CRASH_AND_PURGE));
}

#[test]
fn a_chain_keeps_through_a_crash_and_a_power_failure() {
    keeps(case(Way::Chain, CRASH_AND_POWER_FAILURE));
}

#[test]
fn a_chain_keeps_through_a_power_failure_and_a_foreign_message() {
    let budget = Budget {
        foreign_messages: 1,
        ..POWER_FAILURE
    };
    keeps(Case {
        cuts: true,
        ..case(Way::Chain, budget)
    });
}

#[test]
fn a_chain_keeps_through_a_crash_a_power_failure_and_a_purge() {
    let budget = Budget {
        purges: 1,
        ..CRASH_AND_POWER_FAILURE
    };
    keeps(Case {
        rows: 2,
        cuts: true,
        ..case(Way::Chain, budget)
    });
}

#[test]
fn idle_wal_keeps_through_a_crash_and_a_power_failure() {
    keeps(Case {
        rows: 2,
        idle_wal: true,
        ..case(Way::Chain, CRASH_AND_POWER_FAILURE)
    });
}

#[test]
fn a_chain_keeps_through_a_takeover() {
    keeps(case(Way::Chain, TAKEOVER));
}

#[test]
fn idle_wal_keeps_through_a_crash() {
    keeps(Case {
        idle_wal: true,
        ..case(Way::Chain, CRASH)
    });
}

#[test]
fn fast_ingest_keeps_through_a_crash_and_a_foreign_message() {
    keeps(case(Way::FastIngest, CRASH_AND_FOREIGN_MESSAGE));
}

#[test]
fn fast_ingest_keeps_through_a_crash_and_a_purge() {
    keeps(case(Way::FastIngest, CRASH_AND_PURGE));
}

#[test]
fn fast_ingest_keeps_through_a_power_failure() {
    keeps(case(Way::FastIngest, POWER_FAILURE));
}

#[test]
fn fast_ingest_keeps_through_a_crash_and_a_power_failure() {
    keeps(Case {
        rows: 2,
        ..case(Way::FastIngest, CRASH_AND_POWER_FAILURE)
    });
}

#[test]
fn fast_ingest_keeps_through_a_takeover() {
    keeps(Case {
        rows: 2,
        ..case(Way::FastIngest, TAKEOVER)
    });
}

const LOST_CONNECTION: Budget = Budget {
    lost_connections: 1,
    ..QUIET
};

#[test]
fn a_resync_keeps_through_a_foreign_message_and_a_crash() {
    for way in [Way::Chain, Way::FastIngest] {
        let budget = Budget {
            foreign_messages: 1,
            relay_crashes: 1,
            ..LOST_CONNECTION
        };
        keeps(Case {
            rows: 2,
            ..case(way, budget)
        });
    }
}

#[test]
fn a_resync_keeps_through_a_power_failure() {
    for way in [Way::Chain, Way::FastIngest] {
        let budget = Budget {
            power_failures: 1,
            ..LOST_CONNECTION
        };
        keeps(Case {
            rows: 2,
            ..case(way, budget)
        });
    }
}

#[test]
fn a_resync_keeps_through_a_purge() {
    let budget = Budget {
        purges: 1,
        ..LOST_CONNECTION
    };
    keeps(case(Way::Chain, budget));
}

#[test]
fn a_resync_keeps_through_a_takeover() {
    let budget = Budget {
        freezes: 1,
        ..LOST_CONNECTION
    };
    keeps(Case {
        rows: 2,
        ..case(Way::Chain, budget)
    });
}

#[test]
fn a_resync_behind_what_is_not_kept_skips_a_row() {
    let budget = Budget {
        power_failures: 1,
        ..LOST_CONNECTION
    };
    breaks(
        ONCE_IN_ORDER,
        without(Rule::ResyncInFlight, Way::Chain, budget),
    );
}

#[test]
fn sequences_without_ids_skip_a_row_behind_a_foreign_message() {
    let foreign = Budget {
        foreign_messages: 1,
        ..QUIET
    };
    breaks(ONCE_IN_ORDER, without(Rule::ChainIds, Way::Chain, foreign));
}

#[test]
fn a_batch_behind_an_unanswered_commit_skips_a_row() {
    let foreign = Budget {
        foreign_messages: 1,
        ..QUIET
    };
    breaks(
        ONCE_IN_ORDER,
        without(Rule::WaitForCommit, Way::FastIngest, foreign),
    );
}

#[test]
fn a_confirmation_before_its_record_halts_the_next_relay() {
    let case = without(Rule::RecordFirst, Way::Chain, CRASH);
    breaks(
        NO_NEEDLESS_HALT,
        Case {
            idle_wal: true,
            ..case
        },
    );
}

#[test]
fn idle_wal_in_front_of_the_tail_confirms_what_is_held_back() {
    breaks(
        CONFIRMED_IS_DURABLE,
        without(Rule::HoldIdleWal, Way::Chain, CRASH_AND_POWER_FAILURE),
    );
}

#[test]
fn a_confirmation_at_the_acknowledgement_is_lost_with_the_power() {
    breaks(
        CONFIRMED_IS_DURABLE,
        without(Rule::HoldBack, Way::Chain, POWER_FAILURE),
    );
}

#[test]
fn a_confirmation_without_a_probe_misses_what_the_broker_lost() {
    breaks(
        CONFIRMED_IS_DURABLE,
        without(Rule::Probe, Way::Chain, POWER_FAILURE),
    );
}

/// A limit of the guarantee: the first message of an epoch expects a sequence alone.
#[test]
fn limit_a_message_on_the_way_outlives_a_power_failure_in_front_of_a_foreign_message() {
    let budget = Budget {
        foreign_messages: 1,
        ..POWER_FAILURE
    };
    breaks(ONCE_IN_ORDER, case(Way::Chain, budget));
}

/// A limit of the guarantee: nothing tells any more that the purged message was not ours.
#[test]
fn limit_a_foreign_message_in_place_of_a_lost_one_is_purged_before_the_relay_looks() {
    let budget = Budget {
        foreign_messages: 1,
        purges: 1,
        ..POWER_FAILURE
    };
    breaks(
        ONCE_IN_ORDER,
        Case {
            cuts: true,
            ..case(Way::Chain, budget)
        },
    );
}

#[test]
fn a_takeover_keeps_through_a_power_failure() {
    let budget = Budget {
        freezes: 1,
        ..POWER_FAILURE
    };
    keeps(Case {
        rows: 2,
        window: 1,
        ..case(Way::Chain, budget)
    });
}
