//! What every test here stands on: servers, a lane of one's own on them, the relay as a real child process, a writer
//! that knows the commit order, a reader of the whole stream, and the verdict on both.

mod fixture;
mod relay;
pub(crate) mod secure;
mod servers;
#[path = "../../site/mod.rs"]
pub(crate) mod site;
mod stream;
mod verdict;
pub(crate) mod wait;
mod writer;

pub(crate) use fixture::{Fixture, insert_sql, uuid};
pub(crate) use relay::{Output, Relay};
pub(crate) use servers::{Servers, binaries, options, start_postgres};
pub(crate) use stream::Stored;
pub(crate) use verdict::assert_exactly_once;
pub(crate) use wait::eventually;
pub(crate) use writer::Writer;
