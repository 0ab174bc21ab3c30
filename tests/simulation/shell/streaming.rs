//! The turns of `relay::drive`.

use super::*;

impl Streaming {
    /// One turn of `relay::drive`; true when stopped.
    pub(super) fn turn(&mut self, world: &mut World) -> Result<bool, Stop> {
        let now = world.now;
        self.take_answers(now)?;
        self.take_wal(world)?;
        self.engine.handle_time(now)?;
        if let Some(request) = self.engine.poll_request(now) {
            self.send(request);
        }
        self.send_status(world);
        while let Some(note) = self.engine.poll_note() {
            world.note(|| format!("{note:?}"));
        }
        self.keep_alive(now)?;
        if self.engine.is_stopped(now) || self.stop_by.is_some_and(|by| now >= by) {
            return Ok(true);
        }
        if !self.connection.exchange(world) {
            return Err(Fault::Broker("the server closed the connection".into()).into());
        }
        Ok(false)
    }

    pub(super) fn next_time(&mut self, world: &World) -> Duration {
        let now = world.now;
        if self.connection.has_read || !self.connection.outgoing.is_empty() {
            return now + Duration::from_micros(50);
        }
        let mut until = self.engine.next_time(now).min(self.ping_at);
        if let Some(by) = self.stop_by {
            until = until.min(by);
        }
        until.max(now + Duration::from_micros(1))
    }

    fn take_answers(&mut self, now: Duration) -> Result<(), Stop> {
        while let Some(op) = self.connection.next_op() {
            match op {
                Op::Msg(msg) => self.take_answer(&msg, now)?,
                Op::Pong => self.ping_unanswered = false,
                op => panic!("the broker sent {op:?}"),
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, msg: &Msg, now: Duration) -> Result<(), Stop> {
        let token = self.connection.token(msg);
        let engine = &mut self.engine;
        let next = match token {
            b"q.record" => {
                self.record_sequence = stored_record(&msg.payload)?;
                engine.recorded()
            }
            b"q.info" => {
                let info = StreamInfo::parse(&msg.payload).expect("stream information");
                engine.informed(&info.created, info.state.last_seq)?
            }
            b"q.message" => {
                let found = StoredMessage::parse(&msg.payload).expect("a message");
                engine.seen(found.as_ref().map(StoredMessage::for_probe).as_ref())?
            }
            [b'r', ..] => None,
            token => {
                engine.handle_answer(token, msg.status(), &msg.payload, now)?;
                None
            }
        };
        if let Some(request) = next {
            self.send(request);
        }
        Ok(())
    }

    fn take_wal(&mut self, world: &mut World) -> Result<(), Stop> {
        let mut dry = false;
        while self.engine.wants_wal() && self.connection.outgoing.len() < TURN_BYTES_MAX {
            if self.take_frame(world)? {
                // A turn may also end by its size, here at random.
                if world.random.one_in(40) {
                    break;
                }
                continue;
            }
            let link = &mut world.net.links[self.wal];
            match link.down.receive(world.now) {
                Some(bytes) => self.received.extend(bytes),
                None if link.is_at_end() => {
                    return Err(Fault::Postgres("the server closed the connection".into()).into());
                }
                None => {
                    dry = true;
                    break;
                }
            }
        }
        self.engine.end_turn(&mut self.connection.outgoing, dry);
        Ok(())
    }

    fn take_frame(&mut self, world: &mut World) -> Result<bool, Stop> {
        let Some(head) = self.received.get(1..5) else {
            return Ok(false);
        };
        let len = u32::from_be_bytes(head.try_into().expect("four bytes")) as usize;
        if self.received.len() < 1 + len {
            return Ok(false);
        }
        let frame: Vec<u8> = self.received.drain(..1 + len).collect();
        let mut payload = &frame[5..];
        let skimmed;
        if payload.len() > MESSAGE_BYTES_MAX + FRAME_OVERHEAD_BYTES {
            let mut skim = Skim::new(MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + FRAME_OVERHEAD_BYTES);
            let size = world.random.between(1, 3_000) as usize;
            payload.chunks(size).for_each(|piece| skim.chunk(piece));
            skimmed = skim.finish();
            payload = &skimmed;
        }
        self.engine
            .handle_payload(payload, &mut self.connection.outgoing, world.now)?;
        Ok(true)
    }

    fn send(&mut self, request: Request) {
        let connection = &mut self.connection;
        let api = StreamApi::new(DEFAULT_PREFIX, STREAM).expect("a name");
        let (token, request) = match request {
            Request::Record(record) => {
                let reply = format!("{}.q.record", connection.inbox);
                encode::publish_with_headers(
                    &mut connection.outgoing,
                    &lane_record_subject(STREAM, SLOT),
                    Some(&reply),
                    &record_headers(self.record_sequence),
                    &record.to_json(),
                );
                return;
            }
            Request::Info => ("q.info", api.info_request()),
            Request::Message(sequence) => ("q.message", api.message_get_request(sequence)),
        };
        let reply = format!("{}.{token}", connection.inbox);
        encode::publish(
            &mut connection.outgoing,
            &request.subject,
            Some(&reply),
            &request.payload,
        );
    }

    fn send_status(&mut self, world: &mut World) {
        while let Some(update) = self.engine.poll_status(world.now) {
            let mut payload = BytesMut::new();
            update.encode(0, &mut payload);
            let link = &mut world.net.links[self.wal];
            if link.server_open {
                link.up.send(&payload, world.now, &mut world.random);
            }
        }
    }

    fn keep_alive(&mut self, now: Duration) -> Result<(), Stop> {
        if now < self.ping_at {
            return Ok(());
        }
        if self.ping_unanswered {
            return Err(Fault::Broker("no sign of life".into()).into());
        }
        encode::ping(&mut self.connection.outgoing);
        self.ping_unanswered = true;
        self.ping_at = now + PING_INTERVAL;
        Ok(())
    }

    /// The last status update, then CopyDone: what was written arrives.
    pub(super) fn finish(&mut self, world: &mut World) {
        self.send_status(world);
        world.finish(self.wal);
        world.close(self.connection.link);
    }
}
