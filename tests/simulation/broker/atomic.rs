//! Atomic batches, as nats-server 2.15 was measured to take and refuse them (tests/nats_lane/atomic_batch.rs).

use super::*;

#[derive(Debug)]
pub(super) struct AtomicBatch {
    frames: Vec<Frame>,
    used_at: Duration,
}

impl Broker {
    pub(super) fn atomic(&mut self, frame: Frame, now: Duration) -> Vec<Reply> {
        let reply = frame.reply.clone();
        let answer = |value: Value| vec![(reply.clone(), None, value)];
        let id = frame
            .header(position::BATCH_HEADER)
            .expect("a batch")
            .to_owned();
        let seq = number(&frame, "Nats-Batch-Sequence").expect("a sequence");
        let commits = frame.header("Nats-Batch-Commit") == Some("1");
        self.atomic_batches
            .retain(|_, batch| now < batch.used_at + BATCH_IDLE);
        if let Some((code, err_code, text)) = self.refusal(&frame) {
            self.atomic_batches.remove(&id);
            return answer(refused(STREAM, code, err_code, &text));
        }
        if seq == 1 {
            let frames = Vec::new();
            let batch = AtomicBatch {
                frames,
                used_at: now,
            };
            self.atomic_batches.insert(id.clone(), batch);
        }
        // Also the commit of one that is gone for that.
        if seq > self.batch_messages_max {
            self.atomic_batches.remove(&id);
            let text = format!(
                "atomic publish batch is too large: {}",
                self.batch_messages_max
            );
            return answer(refused(STREAM, 400, 10_199, &text));
        }
        let batch = self.atomic_batches.get_mut(&id);
        let Some(batch) = batch.filter(|batch| batch.frames.len() as u64 + 1 == seq) else {
            self.atomic_batches.remove(&id);
            let text = "atomic publish batch is incomplete";
            return answer(refused(STREAM, 400, 10_176, text));
        };
        batch.frames.push(frame);
        batch.used_at = now;
        if !commits {
            return answer(Value::Null);
        }
        let batch = self.atomic_batches.remove(&id).expect("found above");
        let mut expectations = batch
            .frames
            .iter()
            .map(|frame| self.events.expectation(frame));
        if let Some((err_code, text)) = expectations.find_map(|refusal| refusal) {
            return answer(refused(STREAM, 400, err_code, &text));
        }
        if self.is_full() {
            return answer(refused(STREAM, 503, 10_077, "maximum bytes exceeded"));
        }
        let fence = |frame| number(frame, "Nats-Expected-Last-Subject-Sequence");
        let behind = batch.frames.iter().find_map(fence);
        let has_events = batch.frames.iter().any(|frame| frame.place().is_some());
        if has_events && behind.is_none_or(|fence| fence == 0) {
            self.events.violation = Some("a batch that is behind no fence".into());
        }
        for frame in batch.frames {
            self.events.store(frame);
        }
        answer(json!({"stream": STREAM, "seq": self.events.last_seq, "batch": id, "count": seq}))
    }
}
