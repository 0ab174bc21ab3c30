"""Real messages of walrelay's two modes of CloudEvents, read by the official SDK for Python (PyPI cloudevents)."""

import asyncio
import json
import sys

import nats
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

from lab import Lab, wait_for

ROWS = [
    ("00000000-0000-0000-0000-000000000001", "ä 1%", "order.made", '{"n": 1, "big": 12345678901234567}', "acme"),
    ("00000000-0000-0000-0000-000000000002", 'a"b', "order.sent", '["x", null]', None),
]


async def stored(url, stream):
    client = await nats.connect(url)
    jetstream = client.jetstream()
    count = (await jetstream.stream_info(stream)).state.last_seq
    found = [await jetstream.get_msg(stream, sequence) for sequence in range(1, count + 1)]
    await client.close()
    return found if len(found) == len(ROWS) else None


def check(what, seen, wanted):
    print(f"{what}: {seen!r}")
    if seen != wanted:
        sys.exit(f"{what}: wanted {wanted!r}")


def main():
    with Lab() as lab:
        lab.sql("CREATE TABLE outbox (id uuid PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL,"
                " event_version smallint NOT NULL DEFAULT 2, occurred_at timestamptz NOT NULL DEFAULT '2026-11-28 07:05:32.5Z',"
                " payload_json jsonb NOT NULL, tenant text)")
        for mode in ("cloudevents", "cloudevents_json"):
            named = {"name": mode, "postgres_table": "public.outbox", "nats_stream": mode, "nats_subject": f"{mode}.{{event_type}}",
                     "message_format": mode, "message_source": "/shop", "message_fields": "{ tenant = 'tenant' }"}
            code, text = lab.run("setup", **named)
            assert code == 0, text
            relay = lab.relay("run", **named)
            for row in ROWS:
                lab.sql("INSERT INTO outbox (id, aggregate_id, event_type, payload_json, tenant) VALUES (%s, %s, %s, %s, %s)",
                        parameters=row)
            messages = wait_for("messages", lambda: asyncio.run(stored(lab.nats, mode)), relay)
            relay.stop()
            lab.sql("TRUNCATE outbox")
            for (identity, subject, kind, data, tenant), message in zip(ROWS, messages):
                event = from_http_event(HTTPMessage(headers=dict(message.headers), body=message.data))
                check(f"{mode}, id", event.get_id(), identity)
                check(f"{mode}, type and source", (event.get_type(), event.get_source()), (kind, "/shop"))
                check(f"{mode}, subject", event.get_subject(), subject)
                check(f"{mode}, time", event.get_time().isoformat(), "2026-11-28T07:05:32.500000+00:00")
                check(f"{mode}, data's type", event.get_datacontenttype(), "application/json")
                check(f"{mode}, tenant", event.get_extension("tenant"), tenant)
                check(f"{mode}, version", int(event.get_extension("eventversion")), 2)
                check(f"{mode}, data", event.get_data(), json.loads(data))


main()
