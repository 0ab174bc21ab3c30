"""Servers on free ports of loopback, Debezium's engine, and walrelay, for the scripts of this folder."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import psycopg

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMIT = 120
AS = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, holds, process=None):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if (value := holds()) is not None:
            return value
        time.sleep(0.05)
    said = "\n".join(process.lines[-60:]) if process else ""
    sys.exit(f"{what}: not within {LIMIT} seconds\n{said}")


class Process:
    """A program whose lines are kept, and which does not outlive the lab."""

    def __init__(self, lab, arguments, **options):
        self.lines = []
        self.child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                      errors="replace", cwd=lab.folder, **options)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        lab.stack.callback(self.stop, signal.SIGKILL)

    def read(self):
        for line in self.child.stdout:
            self.lines.append(line.rstrip("\n"))

    def stop(self, how=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(how)
        code = self.child.wait()
        self.reader.join()
        return code

    def text(self):
        return "\n".join(self.lines)


class Lab(contextlib.AbstractContextManager):
    def __init__(self):
        self.stack = contextlib.ExitStack()
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.folder.chmod(0o755)
        self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.walrelay = pathlib.Path(os.environ["WALRELAY"]).resolve()
        try:
            self.start_postgres()
            self.start_nats()
        except BaseException:
            self.stack.close()
            raise

    def __exit__(self, *_):
        self.stack.close()

    def start_postgres(self):
        binaries, data = (ROOT / ".servers/postgres/bin").resolve(), self.folder / "data"
        data.mkdir(mode=0o700)
        if AS:
            os.chown(data, 65534, 65534)
        subprocess.run([binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C",
                        "--no-sync"], check=True, stdout=subprocess.DEVNULL, **AS)
        self.port = free_port()
        with open(data / "postgresql.conf", "a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n"
                       "wal_level = logical\nmax_wal_size = 4GB\nmax_replication_slots = 30\nmax_wal_senders = 30\n")
        server = Process(self, [binaries / "postgres", "-D", data], **AS)

        def answers():
            if server.child.poll() is not None:
                sys.exit(server.text())
            with contextlib.suppress(psycopg.OperationalError):
                self.sql("SELECT 1")
                return True

        wait_for("Postgres", answers)

    def start_nats(self):
        port = free_port()
        self.nats = f"nats://127.0.0.1:{port}"
        Process(self, [ROOT / ".servers/nats/nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd",
                       self.folder / "jetstream"])

        def answers():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True

        wait_for("nats-server", answers)

    def sql(self, *statements, parameters=None):
        dsn = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else None

    def engine(self, properties, formats=("Json", "SimpleString", "Json"), **options):
        """Debezium's engine, streaming from a slot and publication that it makes as it does by default."""
        every = {
            "name": "nats-jetstream", "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "database.hostname": "127.0.0.1", "database.port": self.port, "database.user": "postgres",
            "database.password": "none", "database.dbname": "postgres", "topic.prefix": "shop",
            "plugin.name": "pgoutput", "table.include.list": "public.outbox", "offset.flush.interval.ms": 0,
            "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
            "offset.storage.file.filename": str(self.folder / "offsets.dat"), "snapshot.mode": "no_data",
            "key.converter.schemas.enable": "false", "value.converter.schemas.enable": "false",
            "header.converter.schemas.enable": "false", "transforms": "outbox",
            "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter", **properties}
        config = self.folder / f"engine-{time.monotonic_ns()}.json"
        config.write_text(json.dumps({"properties": every, "formats": formats, **options}))
        return Process(self, [sys.executable, HERE / "engine.py", config])

    def slot_is_active(self, name):
        row = self.sql(f"SELECT active FROM pg_replication_slots WHERE slot_name = '{name}'")
        return True if row and row[0][0] else None

    def relay(self, *arguments, **settings):
        return Process(self, [self.walrelay, *arguments], env=self.environment(settings))

    def run(self, *arguments, **settings):
        done = subprocess.run([self.walrelay, *arguments], env=self.environment(settings), capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def environment(self, settings):
        named = {f"WALRELAY_{name.upper()}": value for name, value in settings.items()}
        return {"PATH": os.environ["PATH"], "NATS_URL": self.nats, "WALRELAY_HTTP_LISTEN": "",
                "DATABASE_URL": f"postgres://postgres@127.0.0.1:{self.port}/postgres", **named}


def events(process):
    """What the engine has handed over, values as bytes."""
    found = [json.loads(line.removeprefix("EVENT ")) for line in process.lines if line.startswith("EVENT ")]
    for event in found:
        event["value"] = None if event["value"] is None else base64.b64decode(event["value"])
    return found
