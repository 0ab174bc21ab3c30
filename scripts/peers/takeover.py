"""Debezium's engine is stopped or killed in the middle, and walrelay takes over its slot, publication and stream.

Each round: the engine publishes an outbox table into JetStream while a writer commits; it ends in one way or another;
`walrelay setup`, `walrelay adopt --debezium`, `walrelay run`; the writer ends. Then the stream must have each row once,
in commit order, but for what Debezium itself has published twice.
"""

import asyncio
import signal
import sys
import threading

import nats
import psycopg

from lab import Lab, events, wait_for

ROWS = 3_000


async def make_stream(url):
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="OUTBOX", subjects=["outbox.event.>", "walrelay.dead.debezium"], storage="file")
    await client.close()


async def stored(url):
    """Id and whether walrelay published it, in the stream's order."""
    client = await nats.connect(url)
    subscription = await client.jetstream().subscribe("outbox.event.>", ordered_consumer=True)
    last = (await client.jetstream().stream_info("OUTBOX")).state.last_seq
    found = []
    while last:
        message = await subscription.next_msg(timeout=30)
        found.append((message.headers["id"].strip('"'), "Walrelay-Position" in message.headers))
        if message.metadata.num_pending == 0:
            break
    await client.close()
    return found


class Writer(threading.Thread):
    """Commits one to three rows at a time, rolls a few back, and may delete each row in the transaction that made it."""

    def __init__(self, lab, deletes):
        super().__init__(daemon=True)
        self.deletes = deletes
        self.dsn, self.committed = f"host=127.0.0.1 port={lab.port} user=postgres dbname=postgres", []

    def run(self):
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            number = 0
            while len(self.committed) < ROWS:
                number += 1
                rows = []
                with connection.transaction() as transaction:
                    for _ in range(1 + number % 3):
                        cursor = connection.execute("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES"
                                                    " ('order', %s, 'made', %s) RETURNING id::text", (str(number), '{"n": 1}'))
                        rows.append(cursor.fetchone()[0])
                    if self.deletes:
                        connection.execute("DELETE FROM outbox WHERE id = ANY(%s::uuid[])", (rows,))
                    if number % 7 == 0:
                        raise psycopg.Rollback(transaction)
                if number % 7:
                    self.committed += rows


def round_of(name, ends, restarted=False, deletes=False):
    with Lab() as lab:
        lab.sql("CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL,"
                " aggregateid text NOT NULL, type text NOT NULL, payload jsonb)")
        asyncio.run(make_stream(lab.nats))
        properties = {"slot.name": "debezium"}
        options = {"nats": lab.nats, "stop_after": 900 if ends == signal.SIGKILL else None}
        engine = lab.engine(properties, **options)
        wait_for("the engine streams", lambda: lab.slot_is_active("debezium"), engine)
        writer = Writer(lab, deletes)
        writer.start()
        if restarted:
            wait_for("the engine's end", lambda: engine.child.poll())
            engine = lab.engine(properties, **options)
        wait_for("events", lambda: True if len(events(engine)) >= 700 or engine.child.poll() is not None else None, engine)
        engine.stop(ends)
        named = {"preset": "debezium", "postgres_slot": "debezium", "postgres_publication": "dbz_publication",
                 "postgres_table": "public.outbox", "nats_stream": "OUTBOX"}
        wait_for("the slot is free", lambda: None if lab.slot_is_active("debezium") else True)
        for command in (["setup"], ["adopt", "--debezium", "--yes"]):
            code, text = lab.run(*command, **named)
            print("\n".join(f"  {line}" for line in text.splitlines()))
            assert code == 0, (command, code, text)
        relay = lab.relay("run", **named)
        writer.join()

        def all_there():
            ids = {id for id, _ in asyncio.run(stored(lab.nats))}
            return True if ids >= set(writer.committed) else None

        wait_for("every row in the stream", all_there)
        relay.stop()
        messages = asyncio.run(stored(lab.nats))
        ours = [id for id, is_ours in messages if is_ours]
        theirs = list(dict.fromkeys(id for id, is_ours in messages if not is_ours))
        again = len(messages) - len(ours) - len(theirs)
        lost = set(writer.committed) - set(ours) - set(theirs)
        doubled = (len(ours) - len(set(ours))) + len(set(ours) & set(theirs))
        code, text = lab.run("verify", **named)
        print(f"{name}: {len(theirs)} rows by Debezium ({again} of them again, by itself), {len(ours)} by walrelay, "
              f"{len(lost)} lost, {doubled} doubled, in commit order: {theirs + ours == writer.committed}; verify: {code}", flush=True)
        print("\n".join(f"  {line}" for line in text.splitlines()))
        return not lost and not doubled and theirs + ours == writer.committed


def main():
    results = [
        round_of("stopped (SIGTERM)", signal.SIGTERM),
        round_of("killed in a batch (SIGKILL)", signal.SIGKILL, deletes=True),
        round_of("killed, started, killed again", signal.SIGKILL, restarted=True),
    ]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
