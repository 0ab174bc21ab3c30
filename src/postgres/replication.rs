//! A replication session before it streams: who the server is, small queries, and the start of the stream.
//!
//! In: an authenticated connection ([`crate::postgres::startup::connect`]). Out: [`SystemIdentity`], rows as text,
//! and at last a [`CopyBoth`]. Guarantees: each command is answered, or is an error where the server has gone silent; after
//! an error other than the server's refusal the session is of no more use and its owner drops it.
//!
//! Manual: 54.4 "Streaming Replication Protocol", 54.5 "Logical Streaming Replication Protocol".

use postgres_protocol::message::frontend;
use postgres_types::PgLsn;

use crate::pipeline::history::History;
use crate::pipeline::position::Lane;
use crate::postgres::backend::{Reader, data_row, tag};
use crate::postgres::conninfo::Conninfo;
use crate::postgres::copy_both::CopyBoth;
use crate::postgres::encoding::SEND_BYTES;
use crate::postgres::error::{Problem, ProtocolError, ReplicationError, ServerError, log_notice};
use crate::postgres::pins;
use crate::postgres::silence;
use crate::postgres::wire::Wire;

/// Most rows that a query on this session may return: it asks about one slot or one setting at a time.
const QUERY_ROWS_MAX: usize = 1024;

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made at initdb; a promoted standby and a restored copy keep it.
    pub system_identifier: u64,
    /// Grows by one at each promotion.
    pub timeline: u32,
    /// End of the WAL that is on the server's disk.
    pub wal_flush_lsn: PgLsn,
    /// The database of this session.
    pub dbname: String,
}

/// What the server reported about itself during start-up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// As `SHOW server_version` prints it.
    pub server_version: String,
    /// As `SHOW server_version_num`: 180006 for 18.6; 0 if it cannot be read.
    pub server_version_num: u32,
    /// Encoding of the database.
    pub server_encoding: String,
    /// The server process of this session, by its own word; what `pg_stat_replication` calls `pid`.
    pub backend_pid: i32,
}

/// An authenticated replication connection that waits for a command.
#[derive(Debug)]
pub struct Session {
    wire: Wire,
    server: ServerInfo,
    conninfo: Conninfo,
}

impl SystemIdentity {
    /// The lane of this database and a slot.
    pub fn lane(&self, slot: &str) -> Lane {
        Lane {
            system_identifier: self.system_identifier,
            database: self.dbname.clone(),
            slot: slot.to_owned(),
        }
    }
}

impl Session {
    pub(crate) fn new(wire: Wire, conninfo: Conninfo) -> Session {
        Session {
            wire,
            server: ServerInfo::default(),
            conninfo,
        }
    }

    /// Sets what the stream depends on, and makes sure of it.
    pub(crate) async fn pin(&mut self) -> Result<(), ReplicationError> {
        let pins = [pins::SET, pins::SET_FOR_WALSENDER, pins::PID].concat();
        let rows = self.simple_query(&pins).await?;
        // By its own word: a pooler between tells a number of its own at start-up.
        let pid = rows
            .last()
            .and_then(|row| row.first()?.as_deref()?.parse().ok());
        self.server.backend_pid =
            pid.ok_or_else(|| Reader::new("SELECT", &[]).error("pg_backend_pid", Problem::Value))?;
        let names = pins::READ_BACK
            .map(|(name, _)| quote_literal(name))
            .join(", ");
        let query =
            format!("SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({names})");
        let rows = self.simple_query(&query).await?;
        for (name, wanted) in pins::READ_BACK {
            let row = rows
                .iter()
                .find(|row| row.first() == Some(&Some(name.to_owned())));
            let found = row.and_then(|row| row.get(1)?.clone()).unwrap_or_default();
            if found != wanted {
                let name = name.to_owned();
                return Err(ReplicationError::Setting {
                    name,
                    found,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// Text comes from now on as the database stores it.
    ///
    /// # Errors
    /// The server's refusal, or a broken connection.
    pub(crate) async fn send_bytes(&mut self) -> Result<(), ReplicationError> {
        self.simple_query(SEND_BYTES).await.map(|_| ())
    }

    /// What the server reported during start-up.
    pub fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// From AuthenticationOk to the first ReadyForQuery.
    pub(crate) async fn wait_until_ready(&mut self) -> Result<(), ReplicationError> {
        loop {
            let (tag, body) = self.wire.message().await?;
            match tag {
                tag::READY_FOR_QUERY => return Ok(()),
                tag::PARAMETER_STATUS => self.server.note_parameter(body)?,
                tag::BACKEND_KEY_DATA => {
                    self.server.backend_pid =
                        Reader::new("BackendKeyData", body).i32("process ID")?;
                }
                tag::NOTICE_RESPONSE => log_notice(&ServerError::parse(body)?),
                tag::ERROR_RESPONSE => return Err(ServerError::parse(body)?.into()),
                other => return Err(unexpected("start-up message", other).into()),
            }
        }
    }

    /// Who the server is: what a lane belongs to.
    ///
    /// # Errors
    /// The server's refusal, a broken connection, or an answer that is not one.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let rows = self.simple_query("IDENTIFY_SYSTEM").await?;
        let bad = |field| Reader::new("IDENTIFY_SYSTEM", &[]).error(field, Problem::Value);
        let row = rows.first().ok_or_else(|| bad("row"))?;
        let field = |index: usize, name| {
            row.get(index)
                .and_then(|value| value.as_deref())
                .ok_or_else(|| bad(name))
        };
        Ok(SystemIdentity {
            system_identifier: field(0, "systemid")?.parse().map_err(|_| bad("systemid"))?,
            timeline: field(1, "timeline")?.parse().map_err(|_| bad("timeline"))?,
            wal_flush_lsn: field(2, "xlogpos")?.parse().map_err(|_| bad("xlogpos"))?,
            dbname: field(3, "dbname")?.to_owned(),
        })
    }

    /// Where the timeline that the server is on comes from. Documentation: manual 54.4, TIMELINE_HISTORY.
    ///
    /// # Errors
    /// The server's refusal, a broken connection, or a file that cannot be read.
    pub(crate) async fn timeline_history(
        &mut self,
        timeline: u32,
    ) -> Result<History, ReplicationError> {
        // The first timeline has no history file.
        if timeline <= 1 {
            return Ok(History::first());
        }
        let query = format!("TIMELINE_HISTORY {timeline}");
        let rows = match self.simple_query(&query).await {
            Ok(rows) => rows,
            // A server without the file shares nothing with another timeline, as far as can be told.
            Err(ReplicationError::Server(_)) => return Ok(History::new(timeline, None)),
            Err(error) => return Err(error),
        };
        let bad = |problem| Reader::new("TIMELINE_HISTORY", &[]).error("content", problem);
        let content = rows
            .first()
            .and_then(|row| row.get(1)?.as_deref())
            .ok_or_else(|| bad(Problem::Value))?;
        History::parse(timeline, content).map_err(|_| bad(Problem::Value).into())
    }

    /// Runs one command or SQL statement; values as text, at most 1,024 rows.
    ///
    /// # Errors
    /// The server's refusal (after which the session can be used), or a broken connection.
    pub async fn simple_query(
        &mut self,
        query: &str,
    ) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        let (conninfo, pid) = (self.conninfo.clone(), self.server.backend_pid);
        silence::answer(&conninfo, pid, self.query_unbounded(query))
            .await
            .unwrap_or(Err(ReplicationError::Silent))
    }

    async fn query_unbounded(
        &mut self,
        query: &str,
    ) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        frontend::query(query, &mut self.wire.outbox)?;
        let mut rows = Vec::new();
        let mut refusal = None;
        loop {
            let (tag, body) = self.wire.message().await?;
            match tag {
                tag::DATA_ROW if rows.len() < QUERY_ROWS_MAX => rows.push(data_row(body)?),
                tag::DATA_ROW => {
                    return Err(Reader::new("DataRow", &[])
                        .error("row count", Problem::Length(rows.len() as i64))
                        .into());
                }
                tag::READY_FOR_QUERY => {
                    return refusal.map_or(Ok(rows), |error: ServerError| Err(error.into()));
                }
                tag::ERROR_RESPONSE => {
                    let error = ServerError::parse(body)?;
                    // After FATAL no ReadyForQuery comes.
                    if error.severity != "ERROR" {
                        return Err(error.into());
                    }
                    refusal = Some(error);
                }
                tag::NOTICE_RESPONSE => log_notice(&ServerError::parse(body)?),
                tag::PARAMETER_STATUS => self.server.note_parameter(body)?,
                tag::ROW_DESCRIPTION | tag::COMMAND_COMPLETE | tag::EMPTY_QUERY_RESPONSE => {}
                other => return Err(unexpected("query answer", other).into()),
            }
        }
    }

    /// Starts to stream the slot's changes from `start_lsn` on, as pgoutput protocol 1.
    ///
    /// The server begins at the later of `start_lsn` and the slot's confirmed_flush_lsn: a lower request is moved up,
    /// a higher one skips data, both without a word. With logical messages too from Postgres 14 on. `frame_bytes_max` bounds the frames that are gathered
    /// ([`CopyBoth::next_frame`]).
    ///
    /// # Errors
    /// [`ReplicationError::SlotActive`] while another connection reads the slot, [`ReplicationError::SlotLost`] if
    /// its WAL has been removed; 42704 (no such slot) and others as [`ReplicationError::Server`].
    pub async fn start_replication(
        mut self,
        slot: &str,
        start_lsn: PgLsn,
        publications: &[&str],
        with_messages: bool,
        frame_bytes_max: usize,
    ) -> Result<CopyBoth, ReplicationError> {
        // Protocol version 1 and publication_names are known to every server that has pgoutput (10 and later).
        let names: Vec<String> = publications
            .iter()
            .map(|name| quote_identifier(name))
            .collect();
        let messages = if with_messages {
            ", messages 'true'"
        } else {
            ""
        };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {start_lsn} (proto_version '1', publication_names {}{messages})",
            quote_identifier(slot),
            // The replication grammar takes backslashes as they are.
            format_args!("'{}'", names.join(",").replace('\'', "''")),
        );
        let (conninfo, pid) = (self.conninfo.clone(), self.server.backend_pid);
        let entered = silence::answer(&conninfo, pid, self.enter_copy_both(&command)).await;
        match entered.unwrap_or(Err(ReplicationError::Silent)) {
            Ok(()) => {
                self.wire.set_message_bytes_max(frame_bytes_max);
                Ok(CopyBoth::new(
                    self.wire,
                    frame_bytes_max,
                    self.server.backend_pid,
                ))
            }
            Err(ReplicationError::Server(refusal)) => Err(self.explain(slot, *refusal).await),
            Err(error) => Err(error),
        }
    }

    async fn enter_copy_both(&mut self, command: &str) -> Result<(), ReplicationError> {
        frontend::query(command, &mut self.wire.outbox)?;
        let mut refusal = None;
        loop {
            let (tag, body) = self.wire.message().await?;
            match tag {
                tag::COPY_BOTH_RESPONSE => {
                    let mut reader = Reader::new("CopyBothResponse", body);
                    reader.u8("format")?;
                    reader.i16("column count")?;
                    return Ok(());
                }
                tag::ERROR_RESPONSE => {
                    let error = ServerError::parse(body)?;
                    if error.severity != "ERROR" {
                        return Err(error.into());
                    }
                    refusal = Some(error);
                }
                tag::READY_FOR_QUERY => {
                    return Err(match refusal {
                        Some(error) => error.into(),
                        None => unexpected("START_REPLICATION answer", tag).into(),
                    });
                }
                tag::NOTICE_RESPONSE => log_notice(&ServerError::parse(body)?),
                tag::PARAMETER_STATUS => self.server.note_parameter(body)?,
                other => return Err(unexpected("START_REPLICATION answer", other).into()),
            }
        }
    }

    /// Gives a refused START_REPLICATION its own variant. The message is in the server's language and 55000 stands
    /// for several states, so the slot's row is asked and not the text.
    async fn explain(&mut self, slot: &str, refusal: ServerError) -> ReplicationError {
        if refusal.code != "55006" && refusal.code != "55000" {
            return refusal.into();
        }
        let query = format!(
            "SELECT active_pid, wal_status FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
            quote_literal(slot)
        );
        let row = self
            .simple_query(&query)
            .await
            .ok()
            .and_then(|rows| rows.into_iter().next());
        let (pid, wal_status) = match row.as_deref() {
            Some([pid, wal_status]) => (
                pid.as_ref().and_then(|pid| pid.parse().ok()),
                wal_status.as_deref(),
            ),
            _ => (None, None),
        };
        match refusal.code.as_str() {
            "55006" => ReplicationError::SlotActive {
                slot: slot.to_owned(),
                pid,
            },
            _ if wal_status == Some("lost") => ReplicationError::SlotLost {
                slot: slot.to_owned(),
                server: Box::new(refusal),
            },
            _ => refusal.into(),
        }
    }
}

impl ServerInfo {
    fn note_parameter(&mut self, body: &[u8]) -> Result<(), ProtocolError> {
        let mut reader = Reader::new("ParameterStatus", body);
        let name = reader.cstr("name")?;
        let value = String::from_utf8_lossy(reader.cstr("value")?);
        match name {
            b"server_version" => {
                self.server_version_num = version_num(&value);
                self.server_version = value.into_owned();
            }
            b"server_encoding" => self.server_encoding = value.into_owned(),
            _ => {}
        }
        Ok(())
    }
}

fn unexpected(message: &'static str, tag: u8) -> ProtocolError {
    Reader::new(message, &[]).error("tag", Problem::UnexpectedTag(tag))
}

/// `18.6 (Debian 18.6-1)` → 180006, `19beta1` → 190000.
fn version_num(version: &str) -> u32 {
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let major = numbers.next().unwrap_or(0);
    let has_minor = version
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .starts_with('.');
    let minor = if has_minor {
        numbers.next().unwrap_or(0)
    } else {
        0
    };
    major.saturating_mul(10_000).saturating_add(minor)
}

/// `a"b` → `"a""b"`.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `a'b` → `'a''b'`; with backslashes as an `E''` string, which reads the same whatever
/// `standard_conforming_strings` says.
pub(crate) fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_numbers() {
        for (text, number) in [
            ("18.6", 180_006),
            ("15.14 (Debian 15.14-1)", 150_014),
            ("19beta1", 190_000),
            ("", 0),
            ("99999999999.1", 1),
        ] {
            assert_eq!(version_num(text), number, "{text}");
        }
    }

    #[test]
    fn names_and_texts_cannot_leave_their_quotes() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("\"it's\""), "'\"it''s\"'");
        assert_eq!(quote_literal("\\'"), "E'\\\\'''");
    }
}
