//! The chain: ordinary publishes, each expecting the last sequence and the last message id before it (nats-server 2.10).
//!
//! In: rows and answers. Out: headers, reply subjects, the number of the acknowledged row. Guarantee: behind a refused
//! message every later one is refused too, also when somebody else's message has taken its place.

use super::Window;
use super::answer::excerpt;
use super::frame::push_number_header;
use crate::pipeline::fault::Fault;

impl Window {
    pub(super) fn chained_headers(&mut self) {
        self.expect_last_sequence();
        let token = self.settings.epoch_token.as_bytes();
        // With one in flight the sequence says it all.
        if self.published > 0 && self.settings.messages_max > 1 {
            self.headers
                .extend_from_slice(b"Nats-Expected-Last-Msg-Id: ");
            self.headers.extend_from_slice(token);
            push_number_header(&mut self.headers, b".", self.published);
        }
        self.headers.extend_from_slice(b"Nats-Msg-Id: ");
        self.headers.extend_from_slice(token);
        push_number_header(&mut self.headers, b".", self.published + 1);
    }

    pub(super) fn chained_reply(&mut self) {
        self.reply.clear();
        self.reply.extend_from_slice(self.settings.inbox.as_bytes());
        self.reply.push(b'.');
        self.reply
            .extend_from_slice(itoa::Buffer::new().format(self.published + 1).as_bytes());
    }

    pub(super) fn chained_answer(
        &self,
        token: &[u8],
        status: Option<u16>,
        payload: &[u8],
    ) -> Result<u64, Fault> {
        let number = std::str::from_utf8(token)
            .ok()
            .and_then(|token| token.parse::<u64>().ok())
            .filter(|number| (1..=self.published).contains(number))
            .ok_or_else(|| Fault::Answer(excerpt(token)))?;
        let answer = self.read_answer(status, payload, number)?;
        self.check_stored(&answer, number)?;
        Ok(number)
    }
}
