//! The steps of `relay::open`, one wake each.

use super::*;
use walrelay::postgres::settings::default_columns;

impl Opening {
    pub(super) fn new() -> Self {
        Opening {
            step: Step::Inspect,
            incarnation: 0,
            connection: None,
            wal: None,
            started_at: 0,
            before: None,
            after: None,
            stream: None,
            record: None,
            search: None,
            fence_sequence: 0,
            tail: None,
            planned: None,
            engine: None,
            requests: 0,
            deadline: None,
        }
    }

    pub(super) fn close(&self, world: &mut World) {
        let nats = self.connection.as_ref().map(|connection| connection.link);
        for link in nats.into_iter().chain(self.wal) {
            world.close(link);
        }
    }

    pub(super) fn step(
        &mut self,
        relay: &Relay,
        world: &mut World,
    ) -> Result<Option<Box<Streaming>>, OpenStop> {
        let sql_gone = !world.postgres.up
            || (self.step != Step::Inspect && world.postgres.incarnation != self.incarnation);
        match self.step {
            Step::Inspect | Step::TakeSlot | Step::Plan if sql_gone => {
                Err(Fault::Postgres("gone".into()).into())
            }
            Step::Inspect => {
                self.incarnation = world.postgres.incarnation;
                if world.postgres.confirmed_lsn.is_none() {
                    return Err(OpenStop::Permanent("no slot".into()));
                }
                self.check_slot(world)?;
                self.step = Step::Connect;
                Ok(None)
            }
            Step::Connect => {
                if !world.broker.up {
                    return Err(Fault::Broker("cannot connect".into()).into());
                }
                let link = world.net.open(To::Nats);
                self.connection = Some(Connection {
                    link,
                    inbox: format!("_INBOX.c{link}"),
                    parser: Parser::default(),
                    received: BytesMut::new(),
                    outgoing: BytesMut::new(),
                    has_read: false,
                });
                self.step = Step::Info;
                Ok(None)
            }
            Step::Info | Step::Record | Step::Tail | Step::Again => self.ask(relay, world),
            Step::TakeSlot => self.take_slot(relay, world),
            Step::Plan => self.plan(relay, world),
            Step::WriteFence => self.write_fence(relay, world),
            Step::WriteRecord => self.write_record(world),
        }
    }

    fn check_slot(&self, world: &World) -> Result<(), OpenStop> {
        if world.postgres.walsender.is_some() {
            return Err(Fault::SlotActive {
                slot: SLOT.into(),
                pid: 1,
            }
            .into());
        }
        Ok(())
    }

    /// Sends a request, or takes its answer; None while there is none.
    fn request(
        &mut self,
        subject: &str,
        headers: Option<&[u8]>,
        payload: &[u8],
        world: &mut World,
    ) -> Result<Option<Msg>, OpenStop> {
        let connection = self.connection.as_mut().expect("connected");
        if self.deadline.is_none() {
            self.requests += 1;
            let reply = format!("{}.r{}", connection.inbox, self.requests);
            match headers {
                Some(headers) => encode::publish_with_headers(
                    &mut connection.outgoing,
                    subject,
                    Some(&reply),
                    headers,
                    payload,
                ),
                None => encode::publish(&mut connection.outgoing, subject, Some(&reply), payload),
            }
            self.deadline = Some(world.now + API_TIMEOUT);
        }
        let open = connection.exchange(world);
        let wanted = format!("r{}", self.requests);
        while let Some(op) = connection.next_op() {
            if let Op::Msg(msg) = op
                && connection.token(&msg) == wanted.as_bytes()
            {
                self.deadline = None;
                return Ok(Some(msg));
            }
        }
        if !open {
            return Err(Fault::Broker("closed".into()).into());
        }
        let deadline = self.deadline.expect("set above");
        if world.now >= deadline {
            return Err(Fault::Broker("no answer".into()).into());
        }
        Ok(None)
    }

    fn ask(
        &mut self,
        relay: &Relay,
        world: &mut World,
    ) -> Result<Option<Box<Streaming>>, OpenStop> {
        let api = |name| StreamApi::new(DEFAULT_PREFIX, name).expect("a name");
        let request = match self.step {
            Step::Info | Step::Again => api(STREAM).info_request(),
            Step::Record => {
                api(RECORDS).last_by_subject_request(&lane_record_subject(STREAM, SLOT))
            }
            _ => {
                let wanted = match self.search.as_ref().expect("a search") {
                    Search::Own(search) => search.wanted(),
                    Search::Shared(search) => search.wanted(),
                };
                match wanted {
                    Some(lookup) => api(STREAM).lookup_request(lookup),
                    None => {
                        let tail = match self.search.take().expect("seen above") {
                            Search::Own(search) => search.end(),
                            Search::Shared(search) => search.end(),
                        };
                        self.found(tail);
                        return Ok(None);
                    }
                }
            }
        };
        let Some(msg) = self.request(&request.subject, None, &request.payload, world)? else {
            return Ok(None);
        };
        match self.step {
            Step::Info => {
                self.stream = Some(StreamInfo::parse(&msg.payload).expect("stream information"));
                self.step = Step::Record;
            }
            Step::Again => {
                let again = StreamInfo::parse(&msg.payload).expect("stream information");
                return self.seen(&again);
            }
            Step::Record => {
                let found = StoredMessage::parse(&msg.payload).expect("a record");
                let record = found.map_or((None, 0), |message| {
                    let record = LaneRecord::from_json(&message.data).expect("a record");
                    (Some(record), message.seq)
                });
                let stream = self.stream.as_ref().expect("asked before");
                let (last_sequence, created) = (stream.state.last_seq, stream.created.as_str());
                let (known, memory) = (record.0.as_ref(), relay.memory.as_ref());
                self.search = Some(if relay.settings.shared {
                    let filter = template().filter();
                    let subjects = SharedSubjects {
                        fence: fence_subject(STREAM, SLOT),
                        filters: [filter, dead_letter::subject(SLOT)],
                    };
                    let end = StreamEnd {
                        created,
                        last_sequence,
                        messages: stream.state.messages,
                    };
                    let search = SharedTailSearch::new(SLOT, subjects, end, known, memory);
                    Search::Shared(search)
                } else {
                    let search = TailSearch::new(SLOT, last_sequence, created, known, memory);
                    Search::Own(search)
                });
                self.record = Some(record);
                self.step = Step::Tail;
            }
            _ => {
                let message = StoredMessage::parse(&msg.payload).expect("a message");
                let found = message.as_ref().map(StoredMessage::for_search);
                let tail = match self.search.as_mut().expect("a search") {
                    Search::Own(search) => search.take(found),
                    Search::Shared(search) => {
                        let tail = search.take(found);
                        self.fence_sequence = search.fence_sequence();
                        tail
                    }
                };
                if let Some(tail) = tail {
                    self.found(tail);
                }
            }
        }
        Ok(None)
    }

    fn found(&mut self, tail: Tail) {
        self.tail = Some(tail);
        self.step = Step::Again;
    }

    /// A view is complete.
    fn seen(&mut self, again: &StreamInfo) -> Result<Option<Box<Streaming>>, OpenStop> {
        let stream = self.stream.as_ref().expect("asked before");
        if again.created != stream.created || again.state.last_seq < stream.state.last_seq {
            return Err(Fault::StreamLost("it changed while it was looked at".into()).into());
        }
        let (record, record_sequence) = self.record.take().expect("asked before");
        let view = View {
            stream: self.stream.take().expect("asked before"),
            record,
            record_sequence,
            tail: self.tail.take().expect("found before"),
        };
        if self.before.is_none() {
            self.before = Some(view);
            self.step = Step::TakeSlot;
        } else {
            self.after = Some(view);
            self.step = Step::Plan;
        }
        Ok(None)
    }

    fn take_slot(
        &mut self,
        relay: &Relay,
        world: &mut World,
    ) -> Result<Option<Box<Streaming>>, OpenStop> {
        self.check_slot(world)?;
        let before = self.before.as_ref().expect("seen before");
        self.started_at = continuity::provisional_start_lsn(
            &before.tail,
            before.record.as_ref(),
            relay.from.map(Into::into),
        )
        .into();
        if world.postgres.confirmed_lsn.is_none() {
            return Err(OpenStop::Permanent("no slot".into()));
        }
        let link = world.net.open(To::Postgres);
        world
            .postgres
            .start_replication(link, self.started_at, world.now);
        self.wal = Some(link);
        self.step = Step::Info;
        Ok(None)
    }

    fn plan(
        &mut self,
        relay: &Relay,
        world: &mut World,
    ) -> Result<Option<Box<Streaming>>, OpenStop> {
        let after = self.after.as_ref().expect("seen before");
        let settings = &relay.settings;
        let confirmed = world.postgres.confirmed_lsn.expect("taken");
        let lane = Lane {
            system_identifier: world.postgres.system_identifier,
            database: world.postgres.database.clone(),
            slot: SLOT.into(),
        };
        let plan = continuity::plan(&StartView {
            lane: &lane,
            confirmed_flush_lsn: confirmed.into(),
            server_lsn: world.postgres.end_lsn.into(),
            history: &world.postgres.history,
            stream: STREAM,
            created: &after.stream.created,
            last_sequence: after.stream.state.last_seq,
            tail: &after.tail,
            record: after.record.as_ref(),
            memory: relay.memory.as_ref(),
            from: relay.from.map(Into::into),
        })
        .map_err(|refusal| match refusal {
            Refusal::Halt(halt) => OpenStop::Halt(halt),
            refusal => OpenStop::Permanent(refusal.to_string()),
        });
        let plan = match plan {
            Err(OpenStop::Halt(halt)) => {
                let connection = self.connection.as_ref().expect("connected");
                connection.keep_halt(&halt, &after.stream.created, world);
                return Err(OpenStop::Halt(halt));
            }
            plan => plan?,
        };
        if self.started_at > plan.start_lsn.into() {
            return Err(Fault::StreamLost("it ended further on before".into()).into());
        }
        world.note(|| format!("relay {} plans {plan:?}, confirmed {confirmed:X}", relay.id));
        self.planned = Some(Planned {
            plan,
            lane,
            confirmed_lsn: confirmed,
        });
        if settings.shared {
            self.step = Step::WriteFence;
        } else {
            self.begin(relay, world);
        }
        Ok(None)
    }

    fn write_fence(
        &mut self,
        relay: &Relay,
        world: &mut World,
    ) -> Result<Option<Box<Streaming>>, OpenStop> {
        let planned = self.planned.as_ref().expect("planned before");
        let headers = fence_headers(
            STREAM,
            SLOT,
            planned.plan.tail.as_ref(),
            self.fence_sequence,
        );
        let subject = fence_subject(STREAM, SLOT);
        let Some(msg) = self.request(&subject, Some(&headers), b"", world)? else {
            return Ok(None);
        };
        let sequence = stored_own(&msg.payload, Fault::Sequence)?;
        let planned = self.planned.as_mut().expect("planned before");
        planned.plan.last_sequence = sequence;
        planned.plan.foreign_messages = 0;
        self.begin(relay, world);
        Ok(None)
    }

    /// Everything is known: the engine begins.
    fn begin(&mut self, relay: &Relay, world: &mut World) {
        let Planned {
            plan,
            lane,
            confirmed_lsn,
        } = self.planned.take().expect("planned before");
        let settings = &relay.settings;
        let after = self.after.as_ref().expect("seen before");
        let connection = self.connection.as_ref().expect("connected");
        let engine_settings = EngineSettings {
            lane,
            timeline: world.postgres.history.timeline(),
            created: after.stream.created.clone(),
            epoch: after.record.as_ref().map_or(1, |record| record.epoch + 1),
            record: after.record.clone(),
            source: Source {
                schema: "public".into(),
                table: "outbox_events".into(),
                oid: crate::postgres::OUTBOX_OID,
                columns: default_columns(),
            },
            template: template(),
            window: WindowSettings {
                mode: Mode::pick(&Offer {
                    server: (2, 14),
                    allow_batched: after.stream.config.allow_batched,
                    allow_atomic: after.stream.config.allow_atomic,
                    shared: settings.shared,
                })
                .expect("the broker has atomic batches"),
                stream: STREAM.into(),
                slot: SLOT.into(),
                fence_subject: fence_subject(STREAM, SLOT),
                inbox: connection.inbox.clone(),
                epoch_token: format!("e{:016x}", world.random.next()),
                messages_max: settings.messages_max,
                one_by_one: relay.epochs.one_by_one(),
                bytes_max: settings.bytes_max,
                message_bytes_max: MESSAGE_BYTES_MAX,
                ack_timeout: settings.ack_timeout,
            },
            confirmed_flush_lsn: confirmed_lsn.into(),
            hold_back: settings.hold_back,
            held_bytes_max: settings.held_bytes_max,
            status_interval: settings.status_interval,
            halt_on_reject: settings.halt_on_reject,
            skips: Vec::new(),
            refused: relay.epochs.refused().clone(),
            carrier: None,
        };
        self.engine = Some((
            Box::new(Engine::new(engine_settings, &plan, world.now)),
            plan,
        ));
        self.step = Step::WriteRecord;
    }

    fn write_record(&mut self, world: &mut World) -> Result<Option<Box<Streaming>>, OpenStop> {
        let after = self.after.as_ref().expect("seen before");
        let (engine, _) = self.engine.as_ref().expect("planned before");
        let confirmed = engine.confirmed_lsn();
        let recorded = after
            .record
            .as_ref()
            .map_or(confirmed, |record| record.confirmed_lsn.max(confirmed));
        let payload = engine.lane_record(recorded).to_json();
        let headers = record_headers(after.record_sequence);
        let subject = lane_record_subject(STREAM, SLOT);
        let Some(msg) = self.request(&subject, Some(&headers), &payload, world)? else {
            return Ok(None);
        };
        let record_sequence = stored_record(&msg.payload)?;
        let (engine, plan) = self.engine.take().expect("planned before");
        Ok(Some(Box::new(Streaming {
            engine,
            plan,
            connection: self.connection.take().expect("connected"),
            wal: self.wal.take().expect("taken"),
            received: Vec::new(),
            record_sequence,
            ping_at: world.now + PING_INTERVAL,
            ping_unanswered: false,
            began: world.now,
            stop_by: None,
        })))
    }
}

fn template() -> SubjectTemplate {
    "outbox.{event_type}".parse().expect("a template")
}
