//! What is published outside of a lane: one command at a time, and nothing that another has published.
//!
//! In: a lane. Out: the right to publish for it, and what each message must expect of the stream. Guarantee: what a command
//! publishes that has lost this right, frozen for however long, is refused by the server.

pub mod fence;
pub mod lease;
pub mod rows;
