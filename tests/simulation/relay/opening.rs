//! The start of an epoch: the relay's own opening, step by step.

use super::*;

/// The start of an epoch, and what it has opened so far.
pub(super) struct Start {
    opening: Opening<'static>,
    /// Once it has begun.
    engine: Option<Box<Engine>>,
    incarnation: u64,
    /// OIDs of the outboxes and the end of the WAL, when the catalog was looked at.
    catalog: ([u32; KINDS], u64),
    pub(super) broker: Option<Broker>,
    pub(super) wal: Option<Wal>,
    /// Answers that came since the slot was taken.
    pub(super) answers_since_slot: u64,
    requests: u64,
    asked: Option<(Expects, Duration)>,
}

impl Start {
    pub(super) fn links(&self) -> impl Iterator<Item = usize> {
        let nats = self.broker.as_ref().map(|broker| broker.link);
        nats.into_iter()
            .chain(self.wal.as_ref().map(|wal| wal.link))
    }
}

impl Relay {
    pub(super) fn start(&self, no_share: Option<Fault>) -> Start {
        let known = Known {
            slot: slot_of(self.settings.part),
            stream: STREAM,
            nats: "nats://broker".to_owned(),
            template: "outbox.{event_type}".parse().expect("a template"),
            shared: self.settings.shared,
            memory: self.memory.clone(),
            from: self.from.map(Into::into),
            no_share,
        };
        Start {
            opening: match self.is_resyncing() {
                true => Opening::resync(known),
                false => Opening::new(known),
            },
            engine: None,
            incarnation: 0,
            catalog: (OIDS, 0),
            broker: None,
            wal: None,
            answers_since_slot: 0,
            requests: 0,
            asked: None,
        }
    }

    pub(super) fn open(&mut self, mut start: Box<Start>, world: &mut World) -> State {
        self.wake = world.now + world.random.micros(10, 2_000);
        if start.opening.wanted() == Wanted::Catalog
            && world.postgres.up
            && world
                .postgres
                .slot(self.settings.part)
                .confirmed_lsn
                .is_none()
        {
            return match self.look_at_shares(world) {
                Err(fault) => self.ended(&fault, false, world),
                Ok(_) => self.refused("no slot".into(), world),
            };
        }
        match self.step(&mut start, world) {
            Ok(()) if start.opening.wanted() == Wanted::Nothing => self.streams(*start, world),
            Ok(()) => {
                let written = start.broker.as_ref().is_none_or(|b| !b.is_busy());
                if let Some((_, deadline)) = start.asked.filter(|_| written) {
                    self.wake = deadline;
                }
                State::Opening(start)
            }
            Err(stop) => {
                start.links().for_each(|link| world.close(link));
                let is_of_broker = match &stop {
                    NotOpened::Fault(fault) => fault.is_of_broker(),
                    NotOpened::NoMode(_) => true,
                    NotOpened::Unfit(unfit) => !unfit.drops,
                    NotOpened::Halt(_) | NotOpened::Refusal(_) => false,
                };
                match &self.waiting {
                    Some(waiting) if is_of_broker => {
                        let memory = waiting.kept.engine.memory();
                        self.memory = Some(memory);
                    }
                    _ => self.leave(world),
                }
                match stop {
                    NotOpened::Halt(halt) => self.halted(halt, world),
                    NotOpened::Fault(fault) => self.ended(&fault, false, world),
                    NotOpened::Refusal(refusal) => self.refused(refusal.to_string(), world),
                    NotOpened::NoMode(no_mode) => self.refused(no_mode.to_string(), world),
                    NotOpened::Unfit(Unfit { reason, drops }) => {
                        if let Some(memory) = self.memory.as_mut().filter(|_| drops) {
                            memory.doubt();
                        }
                        world.edit_seen = true;
                        self.refused(reason, world)
                    }
                }
            }
        }
    }

    /// The opening has come to its end.
    fn streams(&mut self, start: Start, world: &mut World) -> State {
        self.has_streamed = true;
        self.wait = None;
        world.loss_unseen = false;
        let broker = start.broker.expect("connected");
        let (turn, incarnation) = match self.waiting.take() {
            Some(mut waiting) => {
                let opened = start.opening.finish(&mut waiting.kept.engine);
                check_loss(&opened, world);
                (waiting.kept.join(broker, world.now), waiting.incarnation)
            }
            None => {
                self.watches(world);
                self.row_at = None;
                self.limit_at = None;
                let mut engine = start.engine.expect("begun");
                let opened = start.opening.finish(&mut engine);
                check_loss(&opened, world);
                let limits = Limits {
                    turn_bytes_max: world.random.pick(&[500, 20_000, TURN_BYTES_MAX]),
                    column_bytes_max: world.message_bytes_max,
                    frame_bytes_max: world.message_bytes_max + FRAME_OVERHEAD_BYTES,
                    wal_sender_timeout: Some(crate::postgres::WAL_SENDER_TIMEOUT),
                };
                let wal = start.wal.expect("taken");
                let turn = Turn::new(*engine, wal, broker, limits, world.now);
                (turn, start.incarnation)
            }
        };
        State::Streaming(Box::new(Streaming {
            turn,
            incarnation,
            began: world.now,
            stopping: false,
        }))
    }

    /// Gives the opening what it wants, as far as it is at hand.
    fn step(&mut self, start: &mut Start, world: &mut World) -> Result<(), NotOpened> {
        let gone = |what: &str| NotOpened::Fault(Fault::Postgres(what.into()));
        let sql_gone = !world.postgres.up || world.postgres.incarnation != start.incarnation;
        if let Some(waiting) = &mut self.waiting {
            let engine = &mut waiting.kept.engine;
            match start.opening.wanted() {
                Wanted::SlotPlace => return start.opening.slot_kept(engine),
                Wanted::Settings => {
                    let broker = start.broker.as_ref().expect("connected");
                    let limits = self.limits(broker.inbox(), world);
                    let engine = &mut self.waiting.as_mut().expect("above").kept.engine;
                    return start.opening.resume(engine, limits, world.now);
                }
                _ => {}
            }
        }
        match start.opening.wanted() {
            Wanted::Catalog => {
                if !world.postgres.up {
                    return Err(gone("down"));
                }
                start.incarnation = world.postgres.incarnation;
                start.catalog = (world.postgres.oids, world.postgres.end_lsn);
                start.opening.catalog_seen();
            }
            Wanted::Broker => {
                if !world.broker.up {
                    return Err(NotOpened::Fault(Fault::Broker("cannot connect".into())));
                }
                let Settings { part, shared, .. } = self.settings;
                let store = LaneStore::new(DEFAULT_PREFIX, STREAM, slot_of(part))
                    .expect("a name")
                    .judging(stream_settings(shared, part), SERVER_VERSION);
                start.broker = Some(Broker::new(world.net.open(To::Nats), store));
                start.opening.connected(Server {
                    version: (SERVER_VERSION.major, SERVER_VERSION.minor),
                    id: Some(world.broker.starts.to_string()),
                });
            }
            Wanted::Ask(request) => {
                let outgoing = match start.asked {
                    None => {
                        let broker = start.broker.as_ref().expect("connected");
                        Some(broker.store().outgoing(&request))
                    }
                    Some(_) => None,
                };
                return ask(start, outgoing, world);
            }
            Wanted::Slot(_) | Wanted::SlotPlace if sql_gone => return Err(gone("gone")),
            Wanted::Slot(start_lsn) => {
                let part = self.settings.part;
                let slot = world.postgres.slot(part);
                if slot.confirmed_lsn.is_none() {
                    return Err(gone("no slot"));
                }
                if slot.walsender.is_some() {
                    return Err(NotOpened::Fault(Fault::SlotActive {
                        slot: slot_of(part).into(),
                        pid: 1,
                    }));
                }
                let link = world.net.open(To::Postgres);
                let start_lsn = start_lsn.into();
                world
                    .postgres
                    .start_replication(part, link, start_lsn, world.now);
                let frame_bytes_max = world.message_bytes_max + FRAME_OVERHEAD_BYTES;
                start.wal = Some(Wal::new(link, frame_bytes_max, &mut world.random));
                start.opening.slot_taken();
            }
            Wanted::SlotPlace => {
                let postgres = &world.postgres;
                let part = self.settings.part;
                let slot = postgres.slot(part);
                // Where the connection was cut, somebody may have dropped it.
                let confirmed_lsn = slot.confirmed_lsn.ok_or_else(|| gone("no slot"))?;
                start.opening.slot_seen(SlotPlace {
                    lane: Lane {
                        system_identifier: postgres.system_identifier,
                        database: postgres.database.clone(),
                        slot: slot_of(part).into(),
                    },
                    history: postgres.history.clone(),
                    confirmed_flush_lsn: confirmed_lsn.into(),
                    begins_lsn: slot.begins_lsn().map(Into::into),
                    server_lsn: postgres.end_lsn.into(),
                })?;
            }
            Wanted::Settings => {
                let broker = start.broker.as_ref().expect("connected");
                let settings = self.epoch_settings(broker.inbox(), start.catalog, world);
                start.engine = Some(start.opening.begin(settings, world.now));
            }
            Wanted::Nothing => {}
        }
        Ok(())
    }

    fn epoch_settings(
        &self,
        inbox: &str,
        (oids, server_lsn): ([u32; KINDS], u64),
        world: &mut World,
    ) -> EpochSettings {
        let settings = &self.settings;
        EpochSettings {
            source: Source {
                outboxes: outboxes(&settings.further, &oids, server_lsn).collect(),
                domains: Vec::new(),
                encoding: match world.postgres.sql_ascii {
                    true => Encoding::Unchecked,
                    false => Encoding::Utf8,
                },
                messages: (!world.postgres.divides).then(|| "outbox".into()),
            },
            publications: Vec::new(),
            carrier: None,
            catalog_lsn: 0.into(),
            limits: self.limits(inbox, world),
            hold_back: settings.hold_back,
            held_bytes_max: settings.held_bytes_max,
            on_timeline: None,
            status_interval: settings.status_interval,
            halt_on_reject: settings.halt_on_reject,
            refused: self.epochs.refused().clone(),
            share: settings.part,
            limit_raised_for: self.limit_raised_for,
        }
    }

    fn limits(&self, inbox: &str, world: &mut World) -> WindowLimits {
        let settings = &self.settings;
        WindowLimits {
            inbox: inbox.to_owned(),
            epoch_token: format!("e{:016x}", world.random.next()),
            messages_max: settings.messages_max,
            one_by_one: self.epochs.one_by_one(),
            batch_messages_max: self.epochs.batch_messages_max(),
            bytes_max: settings.bytes_max,
            message_limit: SizeLimit::smaller(world.message_bytes_max, None),
            ack_timeout: settings.ack_timeout,
        }
    }
}

/// A person is told only of a loss that there was.
fn check_loss(opened: &Opened, world: &mut World) {
    let is_none = world.postgres.divides && !world.messages_lost;
    if let Some(loss) = opened.plan.loss.as_ref().filter(|_| is_none) {
        world.fail(format!("a relay tells of a loss: {loss:?}"));
    }
}

/// Sends a request, or takes the answer of the one before once it is there.
fn ask(start: &mut Start, outgoing: Option<Outgoing>, world: &mut World) -> Result<(), NotOpened> {
    let fault = |text: &str| NotOpened::Fault(Fault::Broker(text.into()));
    let broker = start.broker.as_mut().expect("connected");
    if let Some(outgoing) = outgoing {
        start.requests += 1;
        let reply = format!("{}.r{}", broker.inbox(), start.requests);
        encode::request(
            broker.outgoing(),
            &outgoing.subject,
            &reply,
            outgoing.headers.as_deref(),
            &outgoing.payload,
        );
        start.asked = Some((outgoing.expects, world.now + API_TIMEOUT));
    }
    let (expects, deadline) = start.asked.expect("asked above or before");
    let open = broker.exchange(&mut world.net, world.now, &mut world.random);
    let wanted = format!("{}.r{}", broker.inbox(), start.requests);
    while let Some(op) = broker.next_op().map_err(NotOpened::Fault)? {
        let Op::Msg(msg) = op else { continue };
        if msg.subject != wanted.as_bytes() {
            continue;
        }
        start.asked = None;
        let answer = match broker.store().read(expects, &msg.payload) {
            Ok(answer) => answer,
            Err(StoreError::NotStored(fault)) => return Err(NotOpened::Fault(fault)),
            Err(error) => panic!("the broker answers {error}"),
        };
        start.answers_since_slot += u64::from(start.wal.is_some());
        return start.opening.take(answer.reply());
    }
    if !open {
        return Err(fault("closed"));
    }
    if world.now >= deadline {
        return Err(fault("no answer"));
    }
    Ok(())
}
