//! Fast ingest with gap `fail`, as nats-server 2.15 was measured to take and refuse it (tests/nats_lane/fast_ingest.rs).

use super::*;

#[derive(Debug)]
pub(super) struct Batch {
    /// Sequence that the next message must have.
    next: u64,
    granted: u64,
    used_at: Duration,
}

impl Broker {
    /// `<inbox>.<batch>.<flow>.fail.<seq>.<op>.$FI`
    pub(super) fn fast(&mut self, frame: Frame, now: Duration) -> Vec<Reply> {
        let reply = frame.reply.clone();
        let mut tokens = reply.rsplit('.').skip(1);
        let op = tokens.next().expect("an operation").to_owned();
        let seq: u64 = tokens
            .next()
            .expect("a sequence")
            .parse()
            .expect("a number");
        assert_eq!(tokens.next(), Some("fail"));
        let flow: u64 = tokens.next().expect("a flow").parse().expect("a number");
        let id = tokens.next().expect("a batch").to_owned();
        self.batches
            .retain(|_, batch| now < batch.used_at + BATCH_IDLE);
        let answer = |value: Value| (reply.clone(), None, value);
        if !self.allow_batched {
            return vec![answer(refused(
                STREAM,
                400,
                10_205,
                "batch publish not enabled",
            ))];
        }
        if let Some((code, err_code, text)) = self.refusal(&frame) {
            // Before the batch is looked at: it neither begins nor ends by it.
            return vec![answer(refused(STREAM, code, err_code, &text))];
        }
        let mut answers = Vec::new();
        let begins = op == "0" || (op == "2" && seq == 1);
        if begins {
            let granted = flow.clamp(1, self.granted_max);
            let batch = Batch {
                next: 1,
                granted,
                used_at: now,
            };
            self.batches.insert(id.clone(), batch);
            if op == "0" {
                answers.push(answer(json!({"type": "ack", "seq": 0, "msgs": granted})));
            }
        }
        let Some(batch) = self.batches.get_mut(&id) else {
            let text = "batch publish ID unknown";
            answers.push(answer(refused(STREAM, 400, 10_208, text)));
            return answers;
        };
        batch.used_at = now;
        let (expected, granted) = (batch.next, batch.granted);
        let last_seq = self.events.last_seq;
        let commit = |count: u64, seq: u64| json!({"stream": STREAM, "seq": seq, "batch": id, "count": count});
        if seq != expected {
            self.batches.remove(&id);
            answers.push(answer(
                json!({"type": "gap", "last_seq": expected, "seq": seq}),
            ));
            answers.push(answer(commit(expected - 1, last_seq)));
            return answers;
        }
        if op == "3" {
            self.batches.remove(&id);
            answers.push(answer(commit(seq - 1, last_seq)));
            return answers;
        }
        let refusal = match self.events.expectation(&frame) {
            Some((err_code, text)) => Some((400, err_code, text)),
            None if self.is_full() => Some((503, 10_077, "maximum bytes exceeded".into())),
            None => None,
        };
        if let Some((code, err_code, text)) = refusal {
            self.batches.remove(&id);
            if seq == 1 {
                answers.push(answer(refused(STREAM, code, err_code, &text)));
                return answers;
            }
            let error = json!({"code": code, "err_code": err_code, "description": text});
            answers.push(answer(json!({"type": "err", "seq": seq, "error": error})));
            answers.push(answer(commit(seq - 1, last_seq)));
            return answers;
        }
        let stored = self.events.store(frame);
        if op == "2" {
            self.batches.remove(&id);
            answers.push(answer(commit(seq, stored)));
        } else {
            batch_step(&mut self.batches, &id);
            if seq.is_multiple_of(granted) {
                answers.push(answer(json!({"type": "ack", "seq": seq, "msgs": granted})));
            }
        }
        answers
    }
}

fn batch_step(batches: &mut HashMap<String, Batch>, id: &str) {
    if let Some(batch) = batches.get_mut(id) {
        batch.next += 1;
    }
}
