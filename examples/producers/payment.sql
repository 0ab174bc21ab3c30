-- A payment and its event, in one transaction: here in one statement. As psql runs it:
--
--     psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f examples/producers/payment.sql
--
-- The same in Python, TypeScript, Go and Java beside this file, and in Rust in examples/publish_lesson.rs. examples/ledger.py and
-- examples/ledger.rs consume the event. Nothing is sent from here: walrelay reads the row from the write-ahead log.

CREATE TABLE IF NOT EXISTS payments (id uuid PRIMARY KEY, account text NOT NULL, cents bigint NOT NULL);

WITH paid AS (
    INSERT INTO payments VALUES (gen_random_uuid(), 'alice', 1250) RETURNING *
)
INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
SELECT gen_random_uuid(), id, 'payment.received.v1', jsonb_build_object('account', account, 'cents', cents)
FROM paid;
