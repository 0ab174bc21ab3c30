//! Faults one by one against the real program, real Postgres and real NATS: what the guarantee says of each, and how it
//! is told to a person. (`tests/chaos` has them at random, `tests/simulation` by the thousand.)

mod backfill;
mod before_setup;
mod broker_accounts;
mod broker_loses;
mod broker_says_no;
mod by_hand;
#[cfg(target_os = "linux")]
mod cable;
mod dead_gone;
mod dead_letters;
mod dead_rows;
mod dead_set;
mod dead_states;
mod doubt;
mod encodings;
mod erase_values;
mod failover;
mod fencing;
mod foreign;
mod gone;
mod half_moved;
mod halt_foreseen;
mod halt_told;
mod halts;
mod hold_back;
mod lane;
mod lease;
#[cfg(target_os = "linux")]
mod move_stuck;
mod mute;
mod other_configuration;
mod other_id;
mod postgres_says_no;
#[path = "../chaos/proxy.rs"]
#[allow(dead_code)] // The chaos tests use the rest of it.
mod proxy;
mod record_stream;
mod remedies;
mod remedies_of_nats;
mod renamed_columns;
mod resync;
mod row_security;
mod second_lane;
mod set_back;
mod shared_streams;
mod silence;
#[path = "../integration/slow.rs"]
mod slow;
mod standby;
#[path = "../statements/mod.rs"]
mod statements;
mod stream_edited;
#[path = "../integration/support/mod.rs"]
#[allow(dead_code, unused_imports)] // The integration tests use the rest of it.
mod support;
mod tables;
mod takeover;
mod timelines;
mod torn_tables;
mod two_services;
mod unlogged;
mod unread;
mod upgrade;
