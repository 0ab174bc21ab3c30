"""A service that keeps balances: each payment's event counts exactly once, however often it is delivered.

    pip install nats-py 'psycopg[binary]'
    DATABASE_URL=postgres://localhost/ledger NATS_URL=nats://localhost:4222 python3 examples/ledger.py

Its own database has the inbox (sql/inbox.sql) and the balances. Kill it whenever you like; start two of it.
The same in Rust: examples/ledger.rs.
"""

import asyncio
import decimal
import json
import os
import pathlib

import nats
import nats.errors
import psycopg
from nats.js.api import ConsumerConfig

SQL = pathlib.Path(__file__).resolve().parent.parent / "sql" / "inbox.sql"
STREAM = os.environ.get("STREAM", "OUTBOX")
SUBJECT = os.environ.get("SUBJECT", "outbox.payment.received.v1")


def setup(connection):
    with connection.transaction():
        # Instances that start at the same time make the tables one after the other.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('ledger'))")
        connection.execute(SQL.read_text())
        connection.execute(
            "CREATE TABLE IF NOT EXISTS balances (account text PRIMARY KEY, cents bigint NOT NULL)"
        )


def apply(connection, message):
    """The effects of one event, where they are not there yet. Ends in the transaction of the caller."""
    # parse_float: a float would round what jsonb keeps.
    envelope = json.loads(message.data, parse_float=decimal.Decimal)
    place = (message.headers or {}).get("Walrelay-Position")
    row = connection.execute(
        "SELECT inbox_take('ledger', %s, %s)", (str(envelope["id"]), place)
    ).fetchone()
    if not row[0]:
        return
    payment = envelope["payload_json"]
    connection.execute(
        "INSERT INTO balances AS b VALUES (%s, %s) "
        "ON CONFLICT (account) DO UPDATE SET cents = b.cents + excluded.cents",
        (payment["account"], payment["cents"]),
    )


async def main():
    connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    setup(connection)
    broker = await nats.connect(os.environ["NATS_URL"])
    consumer = await broker.jetstream().pull_subscribe(
        SUBJECT,
        durable="ledger",
        stream=STREAM,
        # What a killed instance had is given to the next one after so many seconds.
        config=ConsumerConfig(ack_wait=2),
    )
    while True:
        try:
            messages = await consumer.fetch(50, timeout=1)
        except nats.errors.TimeoutError:
            continue
        try:
            with connection.transaction():
                for message in messages:
                    apply(connection, message)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
            # Two instances waited for each other's accounts and Postgres refused this one.
            for message in messages:
                await message.nak()
            continue
        # Only now. Killed before it, the service is given the messages again, and leaves it at that.
        for message in messages:
            await message.ack()


if __name__ == "__main__":
    asyncio.run(main())
