"""From walrelay back to Debezium's engine: the same table, slot, publication and stream, while a writer commits.

walrelay runs with a hold-back and is started once more without one, so that the slot is confirmed through all that is
published; then it is stopped, and the engine goes on. Then the stream must have each row once, in commit order. Twice:
the engine with offsets of its own from before walrelay, as one that was moved away from has them, and with none.
"""

import asyncio
import signal
import sys

from lab import Lab, events, wait_for
from takeover import Writer, make_stream, stored

TABLE = ("CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL,"
         " aggregateid text NOT NULL, type text NOT NULL, payload jsonb)")
ROW = ("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', 'first', 'made', '{}')"
       " RETURNING id::text")
SLOT = {"slot.name": "debezium"}


def by_walrelay(lab):
    return [id for id, is_ours in asyncio.run(stored(lab.nats)) if is_ours]


def stop(process):
    code = process.stop(signal.SIGTERM)
    assert code == 0, (code, process.text())


def round_of(name, keeps_offsets):
    with Lab() as lab:
        lab.sql(TABLE)
        asyncio.run(make_stream(lab.nats))
        engine = lab.engine(SLOT, nats=lab.nats)
        wait_for("the engine streams", lambda: lab.slot_is_active("debezium"), engine)
        first = lab.sql(ROW)[0][0]
        wait_for("an event", lambda: events(engine) or None, engine)
        engine.stop(signal.SIGTERM)
        wait_for("the slot is free", lambda: None if lab.slot_is_active("debezium") else True)
        named = {"preset": "debezium", "postgres_slot": "debezium", "postgres_publication": "dbz_publication",
                 "postgres_table": "public.outbox", "nats_stream": "OUTBOX"}
        for command in (["setup"], ["adopt", "--debezium", "--yes"]):
            code, text = lab.run(*command, **named)
            assert code == 0, (command, code, text)
        relay = lab.relay("run", **named)
        writer = Writer(lab, deletes=False)
        writer.start()
        wait_for("events by walrelay", lambda: True if len(by_walrelay(lab)) > 500 else None, relay)
        stop(relay)
        relay = lab.relay("run", relay_hold_back="0s", **named)
        before = len(by_walrelay(lab))
        wait_for("more events by walrelay", lambda: True if len(by_walrelay(lab)) > before + 100 else None, relay)
        stop(relay)
        wait_for("the slot is free", lambda: None if lab.slot_is_active("debezium") else True)
        if not keeps_offsets:
            (lab.folder / "offsets.dat").unlink()
        engine = lab.engine(SLOT, nats=lab.nats)
        writer.join()

        def all_there():
            if engine.child.poll() is not None:
                sys.exit(engine.text())
            return True if {id for id, _ in asyncio.run(stored(lab.nats))} >= set(writer.committed) else None

        wait_for("every row in the stream", all_there, engine)
        engine.stop(signal.SIGTERM)
        ids = [id for id, _ in asyncio.run(stored(lab.nats))]
        ours = len(by_walrelay(lab))
        print(f"{name}: {ours} rows by walrelay, {len(ids) - ours} by Debezium, {len(ids) - len(set(ids))} doubled,"
              f" {len(set(writer.committed) - set(ids))} lost, in commit order: {ids == [first, *writer.committed]}", flush=True)
        return ids == [first, *writer.committed]


if __name__ == "__main__":
    results = [round_of("with offsets of before", True), round_of("without offsets", False)]
    sys.exit(not all(results))
