//! Plain SQL.
//!
//! In: a `Conninfo`. Out: a [`Client`]. Guarantees: every statement ends where the server has gone silent
//! ([`crate::postgres::silence`]); what statements depend on is set, whatever role and database say.

use std::ops::Deref;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, SimpleQueryMessage};

use crate::postgres::attempts::{Peer, reopen};
use crate::postgres::conninfo::Conninfo;
use crate::postgres::pins;
pub use crate::postgres::session::SqlError;
use crate::postgres::session::{self, session};
use crate::postgres::silence;

/// A session for plain SQL.
///
/// Statements that are only there by the dereference, such as those of a load generator, wait as long as they must.
pub struct Client {
    client: tokio_postgres::Client,
    conninfo: Conninfo,
    peer: Peer,
    pid: i32,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client(process {} at {})", self.pid, self.conninfo)
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.client
    }
}

/// What a statement takes.
type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Client {
    /// The server process of this session.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for an answer of the server, however long it works on it.
    ///
    /// # Errors
    /// [`SqlError::Silent`] where none will come, or the answer's own.
    pub async fn answer<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SqlError> {
        match silence::answer(&self.conninfo, self.pid, answer).await {
            Some(answer) => Ok(answer?),
            None => Err(SqlError::Silent),
        }
    }

    /// Asks the server to cancel the statement that runs.
    ///
    /// # Errors
    /// [`SqlError::Timeout`] where nobody takes the request.
    pub(crate) async fn cancel(&self) -> Result<(), SqlError> {
        let after = self.conninfo.connect_timeout;
        let token = self.client.cancel_token();
        let cancelled = async {
            let socket = reopen(&self.conninfo, &self.peer).await?;
            session::cancel(token, socket).await
        };
        tokio::time::timeout(after, cancelled)
            .await
            .unwrap_or(Err(SqlError::Timeout { after }))
    }

    /// As tokio-postgres' own, through [`Client::answer`]; so are the following.
    ///
    /// # Errors
    /// As [`Client::answer`].
    pub async fn query(
        &self,
        query: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, SqlError> {
        self.answer(self.client.query(query, parameters)).await
    }

    /// Exactly one row.
    ///
    /// # Errors
    /// As [`Client::answer`].
    pub async fn query_one(
        &self,
        query: &str,
        parameters: Parameters<'_>,
    ) -> Result<Row, SqlError> {
        self.answer(self.client.query_one(query, parameters)).await
    }

    /// At most one row.
    ///
    /// # Errors
    /// As [`Client::answer`].
    pub async fn query_opt(
        &self,
        query: &str,
        parameters: Parameters<'_>,
    ) -> Result<Option<Row>, SqlError> {
        self.answer(self.client.query_opt(query, parameters)).await
    }

    /// Statements without an answer of interest.
    ///
    /// # Errors
    /// As [`Client::answer`].
    pub async fn batch_execute(&self, statements: &str) -> Result<(), SqlError> {
        self.answer(self.client.batch_execute(statements)).await
    }
}

/// Connects for plain SQL. The connection lives in a task of its own, as tokio-postgres wants it, and ends when the
/// client is dropped.
///
/// # Errors
/// [`SqlError`].
pub async fn connect(conninfo: &Conninfo) -> Result<Client, SqlError> {
    let (client, peer) = session(conninfo).await?;
    let pins = [pins::SET, pins::PID].concat();
    let pinned = silence::answer(conninfo, 0, client.simple_query(&pins)).await;
    let pid = pinned
        .ok_or(SqlError::Silent)??
        .iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get("pg_backend_pid").ok()??.parse().ok(),
            _ => None,
        });
    Ok(Client {
        client,
        conninfo: conninfo.clone(),
        peer,
        // No process has this number, so that silence is never taken for work.
        pid: pid.unwrap_or(0),
    })
}
