"""A payment and its event, in one transaction.

    pip install 'psycopg[binary]'
    DATABASE_URL=postgres://localhost/app python3 examples/producers/payment.py alice 1250
"""

import os
import sys
import uuid

import psycopg
from psycopg.types.json import Jsonb


def receive(connection, account, cents):
    """Both, or neither: nothing is sent to a broker that a rollback could not take back."""
    payment = uuid.uuid4()
    with connection.transaction():
        connection.execute(
            "INSERT INTO payments VALUES (%s, %s, %s)", (payment, account, cents)
        )
        connection.execute(
            "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES (%s, %s, %s, %s)",
            (
                uuid.uuid4(),
                payment,
                "payment.received.v1",
                Jsonb({"account": account, "cents": cents}),
            ),
        )


if __name__ == "__main__":
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS payments (id uuid PRIMARY KEY, account text NOT NULL, cents bigint NOT NULL)"
        )
        receive(connection, sys.argv[1], int(sys.argv[2]))
