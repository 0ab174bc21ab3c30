"""The same rows of Debezium's outbox table through Debezium's engine and through walrelay: what differs, as a table.

Each case is one way that Debezium Server can be set, with the settings of walrelay that stand for it. Printed is a line
for each row and case where subject, body or a header differs. Debezium's `__debezium.context.…` headers and walrelay's
`Walrelay-…` headers are left out.
"""

import asyncio
import contextlib
import time

import nats

from lab import Lab, events, wait_for

TABLE = """CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255),
    type varchar(255), payload {type}, tenant text, amount numeric, seq bigint, paid boolean, at timestamptz, day date)"""
ROUTER = "transforms.outbox."
STRING, JSON, BINARY = ("Json", "SimpleString", "Json"), ("Json", "Json", "Json"), ("Json", "Binary", "Json")
PLACED = ["type:{}:eventType", "tenant:{}", "amount:{}", "seq:{}", "paid:{}", "at:{}", "day:{}"]
COLUMNS = "{ eventType = 'type', tenant = 'tenant', amount = 'amount', seq = 'seq', paid = 'paid', at = 'at', day = 'day' }"


def placed(where):
    return {ROUTER + "table.fields.additional.placement": ",".join(PLACED).format(*[where] * len(PLACED))}


EXPANDED = {ROUTER + "table.expand.json.payload": "true"}
# payload's type, what it is, Debezium's properties and formats, walrelay's settings
CASES = [
    ("jsonb", "value=simplestring", {}, STRING, {}),
    ("jsonb", "value=json", {}, JSON, {"message_format": "payload_string"}),
    ("jsonb", "value=json, expanded", EXPANDED, JSON, {}),
    ("jsonb", "columns placed in headers", placed("header"), STRING, {"message_headers": COLUMNS}),
    ("jsonb", "columns placed in the envelope", {**EXPANDED, **placed("envelope")}, JSON, {"message_fields": COLUMNS}),
    ("jsonb", "tombstones, value=json", {ROUTER + "route.tombstone.on.empty.payload": "true"}, JSON,
     {"message_format": "payload_string"}),
    ("jsonb", "routed by another column",
     {ROUTER + "route.by.field": "tenant", ROUTER + "route.topic.replacement": "shop.${routedByValue}.v1"}, STRING,
     {"nats_subject": "shop.{tenant}.v1"}),
    ("json", "value=simplestring", {}, STRING, {}),
    ("text", "value=simplestring", {}, STRING, {}),
    ("text", "value=json", {}, JSON, {"message_format": "payload_string"}),
    ("bytea", "value=binary", {}, BINARY, {}),
    ("bytea", "value=json", {}, JSON, {"message_format": "payload_string"}),
]
JSON_ROWS = {
    "an object": """'{"id": "own", "n": 1}'""",
    "text beyond ASCII": """'{"d": "é 漢 \\u00e9"}'""",
    "big numbers": """'{"i": 9007199254740993, "d": 12345678901234567.25, "e": 1.50}'""",
    "empty array, null member": """'{"a": [], "b": null, "c": 1}'""",
    "mixed array": """'{"a": ["x", 1]}'""",
    "a string": """'"x"'""",
    "NULL": "NULL",
}
ROWS = {
    "jsonb": JSON_ROWS,
    "json": {**JSON_ROWS, "white space": """'{ "b" : 1,\n "a":2 }'"""},
    "text": {"JSON": """'{"a": 1}'""", "no JSON": """'é "quoted"\n'""", "empty": "''", "NULL": "NULL"},
    "bytea": {"bytes": "'\\x00ff10'", "empty": "''", "NULL": "NULL"},
}


def insert(lab, payload, number):
    lab.sql("INSERT INTO outbox VALUES (%s, 'order', 'k-1', CASE WHEN %s %% 2 = 0 THEN 'OrderMade' END, " + payload.replace("%", "%%") +
            ", 'acme', 1.50, 9007199254740993, true, '2026-11-28 07:05:32Z', '2026-11-28')",
            parameters=(f"00000000-0000-0000-0000-{number:012}", number))


async def stored(url, stream):
    client = await nats.connect(url)
    jetstream = client.jetstream()
    messages = {}
    with contextlib.suppress(nats.js.errors.NotFoundError):
        last = (await jetstream.stream_info(stream)).state.last_seq
        for sequence in range(1, last + 1):
            message = await jetstream.get_msg(stream, sequence)
            headers = {name: value for name, value in (message.headers or {}).items()
                       if not name.lower().startswith(("walrelay-", "nats-"))}
            messages[headers.get("id", f"dead letter {sequence}")] = (message.subject, headers, message.data or b"")
    await client.close()
    return messages


def of_debezium(lab, slot, properties, formats, count):
    engine = lab.engine({"slot.name": slot, "publication.name": "rows", "publication.autocreate.mode": "disabled",
                         "offset.storage.file.filename": str(lab.folder / slot), **properties}, formats)

    def all_there():
        return events(engine) if engine.child.poll() is not None or len(events(engine)) >= count else None

    found = wait_for("the engine's events", all_there)
    engine.stop()
    return {event["headers"]["id"]: (
        event["destination"],
        {name: value for name, value in event["headers"].items() if not name.startswith("__debezium.")},
        event["value"]) for event in found}


def of_walrelay(lab, slot, settings, count):
    stream, root = slot.upper(), settings.get("nats_subject", "outbox.event.{aggregatetype}")
    named = {"preset": "debezium", "nats_stream": stream, "postgres_table": "public.outbox", "postgres_slot": f"{slot}_w",
             "postgres_publication": "rows", **settings, "nats_subject": f"{slot}.{root}"}
    code, text = lab.run("setup", **named)
    assert code == 1 and "begins at" in text, text  # Nobody has written down where a slot of one's own begins.
    relay = lab.relay("run", **named)

    def all_there():
        found = asyncio.run(stored(lab.nats, stream))
        return found if len(found) >= count else None

    found = wait_for(f"walrelay's messages\n{relay.text()}", all_there)
    relay.stop()
    return {key: (subject.removeprefix(f"{slot}."), headers, body) for key, (subject, headers, body) in found.items()}


def shown(value):
    if value is None:
        return "none"
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return f"`{text}`" if text else "empty"


def differences(theirs, ours):
    """What differs in two messages: subject, body and each header. The sink publishes nothing where there is no value."""
    if theirs is None or ours is None:
        return [("message", "none" if theirs is None else "there", "none" if ours is None else "there")]
    if theirs[2] is None:
        return [("message", "not published", f"body {shown(ours[2])}")]
    pairs = [("subject", theirs[0], ours[0]), ("body", theirs[2], ours[2])]
    pairs += [(f"header {name}", theirs[1].get(name), ours[1].get(name)) for name in sorted({**theirs[1], **ours[1]})]
    return [(what, shown(a), shown(b)) for what, a, b in pairs if a != b]


def main():
    print("| payload | Debezium Server | row | what | Debezium | walrelay |\n|---|---|---|---|---|---|")
    same = compared = 0
    for kind, rows in ROWS.items():
        cases = [case for case in CASES if case[0] == kind]
        with Lab() as lab:
            lab.sql(TABLE.format(type=kind), "CREATE PUBLICATION rows FOR TABLE outbox")
            slots = [f"case_{number}" for number in range(len(cases))]
            for slot in slots:
                for name in (slot, f"{slot}_w"):
                    lab.sql(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
            for number, payload in enumerate(rows.values()):
                insert(lab, payload, number)
            lab.sql("UPDATE outbox SET tenant = 'other'", "DELETE FROM outbox WHERE tenant = 'other'")
            for slot, (_, name, properties, formats, settings) in zip(slots, cases):
                theirs = of_debezium(lab, slot, properties, formats, len(rows))
                ours = of_walrelay(lab, slot, settings, len(rows))
                lines = {}
                for number, row in enumerate(rows):
                    key = f'"00000000-0000-0000-0000-{number:012}"'
                    found = differences(theirs.get(key), ours.get(key))
                    compared, same = compared + 1, same + (not found)
                    for difference in found:
                        lines.setdefault(difference, []).append(row)
                for (what, a, b), which in lines.items():
                    all_or_some = "all" if len(which) == len(rows) else ", ".join(which)
                    print("|", " | ".join((kind, name, all_or_some, what, a, b)), "|", flush=True)
    print(f"\n{same} of {compared} messages are the same in subject, headers and bytes.")


main()
