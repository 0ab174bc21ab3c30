"""A backlog of Debezium's outbox table: how fast the engine hands it to a function that only counts, and how fast walrelay
has it in a stream.

The same rows, one after the other, on one machine: only the ratio means something. The engine's time begins with its first
event, without its start; walrelay's begins with its process.
"""

import asyncio
import json
import sys
import time

import nats

from lab import Lab, wait_for

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000


async def until(url, stream, last):
    client = await nats.connect(url)
    end = time.monotonic() + 300
    while time.monotonic() < end and (await client.jetstream().stream_info(stream)).state.last_seq < last:
        await asyncio.sleep(0.02)
    await client.close()


def main():
    with Lab() as lab:
        lab.sql("CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL,"
                " type text NOT NULL, payload jsonb)", "CREATE PUBLICATION rows FOR TABLE outbox")
        for slot in ("theirs", "ours"):
            lab.sql(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
        lab.sql(f"""DO $$ BEGIN FOR batch IN 1..{ROWS // 10} LOOP
            INSERT INTO outbox SELECT gen_random_uuid(), 'order', n::text, 'OrderMade', jsonb_build_object('text', repeat('x', 300), 'n', n)
                FROM generate_series(1, 10) AS n;
            COMMIT; END LOOP; END $$""")
        engine = lab.engine({"slot.name": "theirs", "publication.name": "rows", "publication.autocreate.mode": "disabled",
                             "max.batch.size": 20480, "max.queue.size": 81920}, count_only=True, stop_after=ROWS)
        said = wait_for("the engine's events", lambda: next((line for line in engine.lines if line.startswith("STOPPED")), None))
        theirs = json.loads(said.removeprefix("STOPPED "))["seconds"]
        named = {"preset": "debezium", "postgres_table": "public.outbox", "postgres_slot": "ours",
                 "postgres_publication": "rows", "nats_stream": "OURS"}
        code, text = lab.run("setup", **named)
        assert code == 1 and "begins at" in text, text  # Nobody has written down where a slot of one's own begins.
        begin = time.monotonic()
        relay = lab.relay("run", **named)
        asyncio.run(until(lab.nats, "OURS", ROWS))
        ours = time.monotonic() - begin
        relay.stop()
        print(f"engine, to a counter: {ROWS / theirs:,.0f} events/s; walrelay, into JetStream: {ROWS / ours:,.0f} events/s; "
              f"ratio {theirs / ours:.1f}")


main()
