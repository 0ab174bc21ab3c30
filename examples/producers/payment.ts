// A payment and its event, in one transaction.
//
//     npm install pg                # and @types/pg for the compiler
//     DATABASE_URL=postgres://localhost/app npx tsx examples/producers/payment.ts alice 1250

import { randomUUID } from "node:crypto";
import { Client } from "pg";

/** Both, or neither: nothing is sent to a broker that a rollback could not take back. */
async function receive(client: Client, account: string, cents: number): Promise<void> {
  const payment = randomUUID();
  await client.query("BEGIN");
  try {
    await client.query("INSERT INTO payments VALUES ($1, $2, $3)", [payment, account, cents]);
    await client.query(
      "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES ($1, $2, $3, $4)",
      [randomUUID(), payment, "payment.received.v1", { account, cents }],
    );
    await client.query("COMMIT");
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  }
}

async function main(account: string, cents: number): Promise<void> {
  const client = new Client({ connectionString: process.env.DATABASE_URL });
  await client.connect();
  try {
    await client.query(
      "CREATE TABLE IF NOT EXISTS payments (id uuid PRIMARY KEY, account text NOT NULL, cents bigint NOT NULL)",
    );
    await receive(client, account, cents);
  } finally {
    await client.end();
  }
}

main(process.argv[2], Number(process.argv[3])).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
