//! What touches Postgres: the replication socket, the slot and the publication, and plain SQL about them.
//!
//! Two clients: [`replication`] is our own, on the wire format of postgres-protocol, because tokio-postgres has
//! no replication mode; everything that is ordinary SQL goes through tokio-postgres
//! ([`client`]).
//!
//! | file | in | out |
//! |---|---|---|
//! | [`socket`] | an address | bytes of a TCP or unix socket, encrypted or not |
//! | [`encryption`] | a TCP connection | TLS on it, or that the server has none |
//! | [`auth_watch`] | what the server sends at start-up | that it asks for no more than it may |
//! | [`wire`] | those bytes | whole messages, bounded buffers |
//! | [`backend`] | a message | its fields, bounds-checked |
//! | [`startup`] | a [`conninfo`] | an authenticated replication session |
//! | [`replication`] | the session | IDENTIFY_SYSTEM, queries, START_REPLICATION |
//! | [`copy_both`] | the stream | frames, and status updates back |
//! | [`client`] | a [`conninfo`] | a client for plain SQL |
//! | [`attempts`] | the hosts of a [`conninfo`] | the first session that can be made |
//! | [`session`] | a [`conninfo`] | a bare session for plain SQL |
//! | [`silence`] | an answer that is awaited | that it comes, or never will |
//! | [`server_kind`] | a new session | whether the server is of the kind that is wanted |
//! | [`pins`] | | what both kinds of session set for themselves |
//! | [`catalog`] | that client | the state of server, slot, publication, table |
//! | `named_lock` | a session, a name | a lock by that name, or who has it |
//! | `waiting` | a relay's session | that a relay waits, for who cannot ask it |
//! | `wal_end` | that client | where the server's WAL ends |
//! | `unwritten` | a slot whose beginning is not written down | what to run |
//! | `unfinished` | a slot that is still being made | what to say of it |
//! | `beginning` | the publication's comment | where the slot began |
//! | [`encoding`] | that client | how the text of its database is to be read |
//! | `occurred_at` | the table | when a row occurred, in SQL |
//! | `logical_slots` | that client | whoever may still need rows of the database |
//! | [`processes`] | that client | what our walsender does, its end |
//! | [`findings`] | that state | what stands in the way, and what mends it |
//! | `published_rows` | ids of published rows | the rows marked or deleted |
//! | `triggers` | the table | what of the application runs where rows are changed, and may keep them |
//! | `row_sizes` | the table | how large some of its rows are |
//! | [`settings`] | the configuration | which database, slot and table |
//! | [`division`] | that client | how many shares there are |
//! | [`share`] | a share's number | the row filter of its publication |
//! | `share_names` | that client | names of shares that somebody else has |
//! | [`sibling_slots`] | that client | the slots of the other shares |
//! | [`setup`] | that state | the missing parts made, or taken away |
//! | [`error`] | whatever fails | one typed error, and whether waiting can help |

pub mod attempts;
pub mod auth_watch;
pub mod backend;
pub(crate) mod beginning;
#[cfg(feature = "cli")]
pub(crate) mod cast;
pub mod catalog;
pub mod client;
pub mod conninfo;
pub mod copy_both;
#[cfg(feature = "cli")]
pub(crate) mod copy_text;
#[cfg(feature = "cli")]
pub(crate) mod detached;
pub mod division;
pub mod encoding;
pub mod encryption;
pub mod error;
pub mod findings;
pub mod health;
pub(crate) mod id_column;
#[cfg(feature = "cli")]
pub(crate) mod id_name;
#[cfg(feature = "cli")]
pub mod inserted;
pub mod locks;
#[cfg(feature = "cli")]
pub mod logical_slots;
pub(crate) mod named_lock;
#[cfg(feature = "cli")]
pub mod occurred_at;
pub mod pins;
pub mod presence;
pub mod processes;
pub mod publications;
pub(crate) mod published_rows;
pub mod replication;
pub mod row_security;
#[cfg(feature = "cli")]
pub mod row_sizes;
pub mod server_kind;
pub mod session;
pub mod settings;
pub mod setup;
pub mod share;
#[cfg(feature = "cli")]
pub mod share_names;
pub mod sibling_slots;
pub mod silence;
pub mod slot_wal;
pub mod socket;
pub mod startup;
pub(crate) mod triggers;
pub(crate) mod unfinished;
pub(crate) mod unwritten;
pub(crate) mod waiting;
#[cfg(feature = "cli")]
pub(crate) mod wal_end;
pub mod wire;
