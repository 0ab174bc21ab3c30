//! How the text of a database is to be read.
//!
//! In: a client. Out: an [`Encoding`], and [`SEND_BYTES`] for the session that is to read text so. What a byte means is
//! asked of the server, so that the same text comes as from its own conversion. Documentation: Postgres manual 23.3.

use crate::pipeline::encoding::Encoding;
use crate::postgres::client::{Client, SqlError};

/// Text comes from then on as the database stores it: neither converted nor checked.
pub const SEND_BYTES: &str = "SET client_encoding = 'SQL_ASCII'";
/// As every session begins.
pub const SEND_UTF8: &str = "SET client_encoding = 'UTF8'";

/// SQLSTATEs of a character that the other encoding does not have, and of one that is none.
const NO_CHARACTER: [&str; 2] = ["22P05", "22021"];

/// How the text of the client's database is to be read. Of encodings with several bytes a character the server converts it;
/// and also where the publication's name needs conversion, which it is sent without otherwise.
///
/// # Errors
/// A failed query.
pub(crate) async fn of_database(client: &Client, publication: &str) -> Result<Encoding, SqlError> {
    let query = "SELECT current_setting('server_encoding'), \
         pg_encoding_max_length(pg_char_to_encoding(current_setting('server_encoding')))";
    let row = client.query_one(query, &[]).await?;
    let (name, bytes_max): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
    match (name.as_str(), bytes_max) {
        ("SQL_ASCII", _) => Ok(Encoding::Unchecked),
        (_, 1) if publication.is_ascii() => Ok(Encoding::SingleByte(table(client, &name).await?)),
        _ => Ok(Encoding::Utf8),
    }
}

/// What the bytes from 0x80 on mean.
async fn table(client: &Client, encoding: &str) -> Result<Box<[Option<char>; 128]>, SqlError> {
    let query = "SELECT convert($1::bytea, $2::text::name, 'UTF8')";
    let mut table = Box::new([None; 128]);
    let mut unknown = vec![0x80..=0xff_u8];
    while let Some(range) = unknown.pop() {
        let bytes: Vec<u8> = range.clone().collect();
        match client.query_one(query, &[&bytes, &encoding]).await {
            Ok(row) => {
                let text = String::from_utf8_lossy(row.try_get(0)?).into_owned();
                for (byte, character) in range.zip(text.chars()) {
                    table[usize::from(byte - 0x80)] = Some(character);
                }
            }
            Err(error)
                if error
                    .code()
                    .is_some_and(|code| NO_CHARACTER.contains(&code)) =>
            {
                let (first, last) = range.into_inner();
                let middle = first + (last - first) / 2;
                if first < last {
                    unknown.extend([first..=middle, middle + 1..=last]);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(table)
}
