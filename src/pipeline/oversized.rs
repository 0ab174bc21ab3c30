//! Reading a message that is too large to gather: its oversized columns are counted and left out.
//!
//! In: the payload of one CopyData frame, in pieces of any size. Out: the same payload with each column value longer
//! than `column_bytes_max` replaced by its length ([`Column::Skipped`](super::pgoutput::Column::Skipped)). Memory
//! stays within `gathered_bytes_max`: once that is full, further values are left out too.

use super::pgoutput::SKIPPED_COLUMN;
use bytes::{BufMut, BytesMut};

/// Bytes before the first column of an Insert: XLogData header (25), tag, relation OID, tuple kind, column count.
const PREFIX_BYTES: usize = 25 + 1 + 4 + 1 + 2;
/// Kind and length of a column.
const COLUMN_HEAD_BYTES: usize = 1 + 4;

#[derive(Debug, Clone, Copy)]
enum Stage {
    Prefix,
    ColumnHead,
    Keep {
        left: usize,
    },
    Skip {
        left: usize,
    },
    /// Not an insert: nothing to skip, so it is gathered as far as it may be.
    Verbatim,
}

/// One oversized frame on its way through.
#[derive(Debug)]
pub struct ColumnFilter {
    stage: Stage,
    head: Vec<u8>,
    gathered: BytesMut,
    column_bytes_max: usize,
    gathered_bytes_max: usize,
}

impl ColumnFilter {
    /// Begins a frame.
    pub fn new(column_bytes_max: usize, gathered_bytes_max: usize) -> Self {
        ColumnFilter {
            stage: Stage::Prefix,
            head: Vec::with_capacity(PREFIX_BYTES),
            gathered: BytesMut::new(),
            column_bytes_max,
            gathered_bytes_max,
        }
    }

    /// Takes the next piece.
    pub fn chunk(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let taken = match self.stage {
                Stage::Prefix => self.prefix(piece),
                Stage::ColumnHead => self.column_head(piece),
                Stage::Keep { left } => {
                    let taken = left.min(piece.len());
                    self.gathered.extend_from_slice(&piece[..taken]);
                    self.after_value(left - taken, |left| Stage::Keep { left });
                    taken
                }
                Stage::Skip { left } => {
                    let taken = left.min(piece.len());
                    self.after_value(left - taken, |left| Stage::Skip { left });
                    taken
                }
                Stage::Verbatim => {
                    let room = self.gathered_bytes_max.saturating_sub(self.gathered.len());
                    self.gathered
                        .extend_from_slice(&piece[..room.min(piece.len())]);
                    piece.len()
                }
            };
            piece = &piece[taken..];
        }
    }

    /// The frame is complete: its payload as it may be decoded.
    pub fn finish(mut self) -> BytesMut {
        self.gathered.extend_from_slice(&self.head);
        self.gathered
    }

    fn after_value(&mut self, left: usize, stage: impl Fn(usize) -> Stage) {
        self.stage = match left {
            0 => Stage::ColumnHead,
            left => stage(left),
        };
    }

    fn prefix(&mut self, piece: &[u8]) -> usize {
        let taken = (PREFIX_BYTES - self.head.len()).min(piece.len());
        self.head.extend_from_slice(&piece[..taken]);
        if self.head.len() == PREFIX_BYTES {
            let is_insert = self.head[0] == b'w' && self.head[25] == b'I';
            self.gathered.extend_from_slice(&self.head);
            self.head.clear();
            self.stage = if is_insert {
                Stage::ColumnHead
            } else {
                Stage::Verbatim
            };
        }
        taken
    }

    fn column_head(&mut self, piece: &[u8]) -> usize {
        let kind = *self.head.first().unwrap_or(&piece[0]);
        let has_value = kind == b't' || kind == b'b';
        let needed = if has_value { COLUMN_HEAD_BYTES } else { 1 };
        let taken = (needed - self.head.len()).min(piece.len());
        self.head.extend_from_slice(&piece[..taken]);
        if self.head.len() < needed {
            return taken;
        }
        if has_value {
            let len = u32::from_be_bytes([self.head[1], self.head[2], self.head[3], self.head[4]]);
            self.value(kind, len);
        } else {
            self.gathered.put_u8(kind);
        }
        self.head.clear();
        taken
    }

    fn value(&mut self, kind: u8, len: u32) {
        let left = len as usize;
        let fits =
            left <= self.column_bytes_max && self.gathered.len() + left <= self.gathered_bytes_max;
        self.gathered
            .put_u8(if fits { kind } else { SKIPPED_COLUMN });
        self.gathered.put_u32(len);
        match (left, fits) {
            (0, _) => {}
            (left, true) => self.stage = Stage::Keep { left },
            (left, false) => self.stage = Stage::Skip { left },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{copy_both, pgoutput};
    use super::*;

    fn frame(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut frame = vec![b'w'];
        frame.extend_from_slice(&[0; 24]);
        frame.push(b'I');
        frame.extend_from_slice(&7_u32.to_be_bytes());
        frame.push(b'N');
        frame.extend_from_slice(&(values.len() as i16).to_be_bytes());
        for value in values {
            match value {
                None => frame.push(b'n'),
                Some(value) => {
                    frame.push(b't');
                    frame.extend_from_slice(&(value.len() as u32).to_be_bytes());
                    frame.extend_from_slice(value);
                }
            }
        }
        frame
    }

    fn columns(frame: &[u8]) -> Vec<String> {
        let Ok(copy_both::ReplicationMessage::XLogData { data, .. }) = copy_both::decode(frame)
        else {
            panic!("not XLogData");
        };
        let Ok(pgoutput::Message::Insert { row, .. }) = pgoutput::decode(data) else {
            panic!("not an insert");
        };
        let mut found = Vec::new();
        row.for_each(|_, column| found.push(format!("{column:?}")))
            .expect("well formed");
        found
    }

    #[test]
    fn only_oversized_values_are_left_out_however_the_frame_is_cut() {
        let big = vec![b'x'; 1_000];
        let frame = frame(&[Some(b"id"), None, Some(&big), Some(b""), Some(b"end")]);
        for size in [1, 2, 3, 7, 100, frame.len()] {
            let mut filter = ColumnFilter::new(100, 10_000);
            frame.chunks(size).for_each(|piece| filter.chunk(piece));
            let found = columns(&filter.finish());
            assert_eq!(found[2], "Skipped { len: 1000 }");
            let mut expected = columns(&frame);
            expected[2].clone_from(&found[2]);
            assert_eq!(found, expected, "pieces of {size}");
        }
    }

    /// `pg_logical_emit_message(true, 'outbox', content)`
    fn logical(content: &[u8]) -> Vec<u8> {
        let mut frame = vec![b'w'];
        frame.extend_from_slice(&[0; 24]);
        frame.extend_from_slice(b"M\x01\0\0\0\0\0\0\0\0outbox\0");
        frame.extend_from_slice(&(content.len() as u32).to_be_bytes());
        frame.extend_from_slice(content);
        frame
    }

    #[test]
    fn a_message_of_the_wal_is_cut_at_what_may_be_gathered_and_tells_its_length() {
        // A content that looks like columns is none.
        let content = b"t\0\0\0\x01".repeat(200);
        let whole = logical(&content);
        for size in [1, 7, 100, whole.len()] {
            for (room, expected) in [
                (whole.len(), pgoutput::Column::Text(&content)),
                (whole.len() - 1, pgoutput::Column::Skipped { len: 1_000 }),
                (100, pgoutput::Column::Skipped { len: 1_000 }),
            ] {
                let mut filter = ColumnFilter::new(10, room);
                whole.chunks(size).for_each(|piece| filter.chunk(piece));
                let frame = filter.finish();
                assert!(frame.len() <= room, "{} of {room} bytes", frame.len());
                let Ok(copy_both::ReplicationMessage::XLogData { data, .. }) =
                    copy_both::decode(&frame)
                else {
                    panic!("not XLogData");
                };
                let Ok(pgoutput::Message::Logical(message)) = pgoutput::decode(data) else {
                    panic!("not a message");
                };
                assert_eq!(
                    message.content, expected,
                    "{room} bytes in pieces of {size}"
                );
                assert!(message.is_transactional);
                assert_eq!(message.prefix, b"outbox");
            }
        }
    }

    #[test]
    fn memory_is_bounded_by_what_may_be_gathered() {
        let value = [b'x'; 90];
        let values: Vec<Option<&[u8]>> = (0..1_000).map(|_| Some(&value[..])).collect();
        let frame = frame(&values);
        let mut filter = ColumnFilter::new(100, 1_000);
        filter.chunk(&frame);
        let found = columns(&filter.finish());
        assert_eq!(found.len(), 1_000);
        assert!(found[0].starts_with("Text"));
        assert_eq!(found[999], "Skipped { len: 90 }");
    }
}
