//! What our sessions set for themselves, whatever role, database, pooler or URL say.
//!
//! In: nothing. Out: SQL for a session's first moment, and what a replication session must have afterwards. Not by the
//! start-up packet's `options`: PgBouncer keeps those back that it tracks, and no server starts a session with a
//! setting that its version does not know.

/// Sets them.
///
/// Column values arrive as text, and the first five change the text of some type. A search path that begins with
/// pg_catalog keeps functions and operators of others out, and makes the server write names with their schema. Without
/// notices, rows would be passed over in silence. Row security would hide rows from a command that compares or counts.
/// A time-out of the role would end long decoding and long waits; through the view, since `transaction_timeout` came
/// with Postgres 17. A session whose client is gone would wait on for a lock, and hold back vacuum by its snapshot: the
/// server looks for the client every two seconds, where its platform can (Linux; elsewhere it refuses the setting).
pub(crate) const SET: &str = "\
SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres';
SET extra_float_digits = 3; SET bytea_output = 'hex';
SET search_path = pg_catalog, pg_temp; SET client_min_messages = notice; SET row_security = off;
SET standard_conforming_strings = on; SET quote_all_identifiers = off;
SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN (
  'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout',
  'transaction_timeout');
SELECT pg_catalog.set_config('client_connection_check_interval', '2s', false) WHERE pg_catalog.version() LIKE '%linux%';
";

/// Sets what a walsender needs beyond that.
///
/// One that is ended while its client reads nothing waits for the client with its last words, and whoever has ended it
/// waits too: a checkpoint that gives the slot up, and all later ones. No other time-out of the server counts there. A relay
/// that runs closes the connection; one that is frozen does not. It is given the quarter of an hour after which Linux gives up a
/// peer that answers nothing at all: one that answers and reads nothing may be waiting for its broker. Where the role or the
/// server has a value, it stays.
pub(crate) const SET_FOR_WALSENDER: &str = "\
SELECT pg_catalog.set_config(name, '15min', false) FROM pg_catalog.pg_settings
WHERE name = 'tcp_user_timeout' AND setting = '0' AND pg_catalog.version() LIKE '%linux%';
";

/// Tells the server process, behind what is set.
pub(crate) const PID: &str = "SELECT pg_catalog.pg_backend_pid()";

/// What the text of columns depends on, and whether rows are passed over in silence.
pub(crate) const READ_BACK: [(&str, &str); 7] = [
    ("DateStyle", "ISO, MDY"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
];
