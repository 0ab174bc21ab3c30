//! What the servers write, in bytes: pgoutput in XLogData in CopyData, written from the manual and not with the decoder.

/// One value of a row: SQL NULL, or text.
pub(crate) type Value = Option<Vec<u8>>;

/// A table as its Relation message tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// Name and type OID.
    pub(crate) columns: Vec<(String, u32)>,
}

/// `B`
pub(crate) fn begin(commit_lsn: u64, xid: u32) -> Vec<u8> {
    let mut out = vec![b'B'];
    out.extend(commit_lsn.to_be_bytes());
    out.extend(0_i64.to_be_bytes());
    out.extend(xid.to_be_bytes());
    out
}

/// `C`
pub(crate) fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
    let mut out = vec![b'C', 0];
    out.extend(commit_lsn.to_be_bytes());
    out.extend(end_lsn.to_be_bytes());
    out.extend(0_i64.to_be_bytes());
    out
}

/// `R`
pub(crate) fn relation(table: &Table) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(table.oid.to_be_bytes());
    for text in [&table.schema, &table.name] {
        out.extend(text.as_bytes());
        out.push(0);
    }
    out.push(b'd');
    out.extend((table.columns.len() as i16).to_be_bytes());
    for (name, type_oid) in &table.columns {
        out.push(0);
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(type_oid.to_be_bytes());
        out.extend((-1_i32).to_be_bytes());
    }
    out
}

/// `I`
pub(crate) fn insert(oid: u32, values: &[Value]) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend(oid.to_be_bytes());
    out.push(b'N');
    out.extend((values.len() as i16).to_be_bytes());
    for value in values {
        match value {
            None => out.push(b'n'),
            Some(text) => {
                out.push(b't');
                out.extend((text.len() as i32).to_be_bytes());
                out.extend(text);
            }
        }
    }
    out
}

/// `M`, of a transaction.
pub(crate) fn logical_message(prefix: &str, content: &[u8]) -> Vec<u8> {
    let mut out = vec![b'M', 1];
    out.extend(0_u64.to_be_bytes());
    out.extend(prefix.bytes());
    out.push(0);
    out.extend((content.len() as i32).to_be_bytes());
    out.extend(content);
    out
}

/// `w`
pub(crate) fn xlog_data(wal_start: u64, data: &[u8]) -> Vec<u8> {
    let mut out = vec![b'w'];
    out.extend(wal_start.to_be_bytes());
    out.extend(wal_start.to_be_bytes());
    out.extend(0_i64.to_be_bytes());
    out.extend(data);
    out
}

/// `k`
pub(crate) fn keepalive(wal_end: u64, reply_requested: bool) -> Vec<u8> {
    let mut out = vec![b'k'];
    out.extend(wal_end.to_be_bytes());
    out.extend(0_i64.to_be_bytes());
    out.push(reply_requested.into());
    out
}

/// `d` around a payload.
pub(crate) fn copy_data(out: &mut Vec<u8>, payload: &[u8]) {
    out.push(b'd');
    out.extend((payload.len() as i32 + 4).to_be_bytes());
    out.extend(payload);
}
