"""`walrelay config asyncapi` for each format, checked by the parser of the AsyncAPI initiative (npm @asyncapi/parser), and real
messages against its schemas (npm ajv)."""

import asyncio
import json
import os
import subprocess
import sys

import nats

from lab import HERE, Lab, wait_for

COLUMNS = "{ tenant = 'tenant' }"
FORMATS = ["envelope", "payload", "payload_string", "cloudevents", "cloudevents_json"]


async def stored(url, stream, count):
    client = await nats.connect(url)
    jetstream = client.jetstream()
    last = (await jetstream.stream_info(stream)).state.last_seq
    found = [await jetstream.get_msg(stream, sequence) for sequence in range(1, last + 1)]
    await client.close()
    return found if len(found) == count else None


def shown(message, form, fields):
    """A message as its schema sees it: JSON where the content type says so."""
    is_json = form in ("envelope", "payload_string", "cloudevents_json") or (fields and form == "payload")
    body = (message.data or b"").decode()
    return {"headers": dict(message.headers), "payload": json.loads(body) if is_json else body,
            "is_dead": message.subject.startswith("walrelay.dead.")}


def main():
    with Lab() as lab:
        lab.sql("CREATE TABLE outbox (id uuid PRIMARY KEY, aggregate_id bigint NOT NULL, event_type text NOT NULL,"
                " event_version integer NOT NULL DEFAULT 2, occurred_at timestamptz NOT NULL DEFAULT '2026-11-28 07:05:32.5Z',"
                " payload_json jsonb, tenant text)")
        for number, (form, fields) in enumerate((form, fields) for form in FORMATS for fields in ("{}", COLUMNS)):
            if form == "cloudevents" and fields == "{}":
                continue
            named = {"name": f"lane{number}", "postgres_table": "public.outbox", "nats_stream": f"S{number}",
                     "nats_subject": f"s{number}.{{event_type}}.{{tenant:token}}", "message_format": form,
                     "message_fields": fields, "message_headers": "{ X-Tenant = 'tenant' }"}
            code, text = lab.run("setup", **named)
            assert code == 0, text
            relay = lab.relay("run", **named)
            lab.sql("INSERT INTO outbox (id, aggregate_id, event_type, payload_json, tenant) VALUES"
                    " (gen_random_uuid(), 1, 'order.made', '{\"n\": 1}', 'a b'), (gen_random_uuid(), 2, 'order.sent', '[]', 'x')")
            # Two that cannot be published: no version, no payload.
            lab.sql("INSERT INTO outbox (id, aggregate_id, event_type, payload_json, tenant) VALUES"
                    " (gen_random_uuid(), 3, 'a', NULL, 'x'), (gen_random_uuid(), 4, 'a b', '{}', NULL)")
            messages = wait_for("messages", lambda: asyncio.run(stored(lab.nats, f"S{number}", 4)), relay)
            relay.stop()
            lab.sql("TRUNCATE outbox")
            code, document = lab.run("config", "asyncapi", **named)
            assert code == 0, document
            folder = lab.folder / form
            folder.mkdir(exist_ok=True)
            (folder / "asyncapi.json").write_text(document)
            (folder / "messages.json").write_text(json.dumps([shown(m, form, fields != "{}") for m in messages if m.subject[0] == "s"]
                + [shown(m, "envelope", False) for m in messages if m.subject[0] == "w"]))
            done = subprocess.run(["node", HERE / "asyncapi.cjs", folder], env={**os.environ, "NODE_PATH": os.environ["NODE_MODULES"]})
            if done.returncode:
                sys.exit(f"{form}, {fields}: the document or a message is not valid")
            print(f"{form}, {'with' if fields != '{}' else 'without'} further fields: valid, and {len(messages)} messages by it", flush=True)


main()
