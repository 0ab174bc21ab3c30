"""Debezium's embedded engine with the outbox event router, as Debezium Server configures it.

usage: engine.py CONFIG.json

CONFIG: {"properties": {…}, "formats": [key, value, header], "nats": URL or null, "stop_after": events or null,
"confirm": bool, "count_only": bool}. Each event is one JSON line on standard output; with a NATS URL it is also published
as Debezium Server's sink publishes it: subject = destination, the SMT's headers, one acknowledgement at a time, no event
without a value. `stop_after` kills the process in the middle of a batch, behind that many events and before it has
marked them as processed. SIGTERM stops the engine in order.
"""

import asyncio
import base64
import json
import os
import signal
import sys
import threading
import time

import jpype
from pydbzengine import BasePythonChangeHandler
from pydbzengine.engine.jvm import ensure_jvm_started


class Sink:
    """A JetStream publisher that waits for each acknowledgement."""

    def __init__(self, url):
        import nats

        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.client = self.wait(nats.connect(url))
        self.jetstream = self.client.jetstream()

    def wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def publish(self, event):
        self.wait(self.jetstream.publish(event["destination"], event["bytes"], headers=event["headers"] or None))


def plain(value):
    """A Java value as text, or as base64 with its own key."""
    if value is None:
        return None
    if isinstance(value, jpype.JArray(jpype.JByte)):
        return bytes(byte & 0xFF for byte in value)
    return str(value).encode()


class Handler(BasePythonChangeHandler):
    def __init__(self, config):
        self.config, self.count, self.first = config, 0, None
        self.sink = Sink(config["nats"]) if config.get("nats") else None

    def handleJsonBatch(self, records):
        if self.config.get("count_only"):
            return self.tick(len(records))
        for record in records:
            event = {
                "destination": str(record.destination()),
                "key": (plain(record.key()) or b"").decode(),
                "headers": {str(h.getKey()): (plain(h.getValue()) or b"").decode() for h in record.headers()},
                "bytes": plain(record.value()),
            }
            if self.sink and event["bytes"] is not None:
                self.sink.publish(event)
            shown = dict(event)
            value = shown.pop("bytes")
            shown["value"] = None if value is None else base64.b64encode(value).decode()
            print("EVENT", json.dumps(shown), flush=True)
            self.tick(1)

    def tick(self, events):
        self.first = self.first or time.monotonic()
        self.count += events
        if self.config.get("stop_after") and self.count >= self.config["stop_after"]:
            print("STOPPED", json.dumps({"events": self.count, "seconds": time.monotonic() - self.first}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    config = json.load(open(sys.argv[1]))
    ensure_jvm_started(jvm_opts=None, extra_classpaths=None, jvm_path=None)
    from pydbzengine.engine._jvm import JDebeziumEngine, JProperties, PythonChangeConsumer

    formats = [jpype.JClass(f"io.debezium.engine.format.{name}") for name in config["formats"]]
    together = jpype.JClass("io.debezium.engine.format.KeyValueHeaderChangeEventFormat").of(*formats)
    properties = JProperties()
    for key, value in config["properties"].items():
        properties.setProperty(key, str(value))
    consumer = PythonChangeConsumer()
    consumer.set_change_handler(Handler(config))
    engine = JDebeziumEngine.create(together).using(properties).notifying(consumer).build()
    thread = threading.Thread(target=engine.run)
    thread.start()
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    engine.close()
    thread.join(20)
    os._exit(0)


main()
