// A payment and its event, in one transaction.
//
// With the versions that go.mod and go.sum pin, in this folder:
//
//	DATABASE_URL=postgres://localhost/app go run payment.go alice 1250
package main

import (
	"context"
	"log"
	"os"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

type payment struct {
	Account string `json:"account"`
	Cents   int64  `json:"cents"`
}

// Both, or neither: nothing is sent to a broker that a rollback could not take back.
func receive(ctx context.Context, conn *pgx.Conn, received payment) error {
	id := uuid.New()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO payments VALUES ($1, $2, $3)", id, received.Account, received.Cents)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx,
			"INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES ($1, $2, $3, $4)",
			uuid.New(), id, "payment.received.v1", received)
		return err
	})
}

func main() {
	ctx := context.Background()
	cents, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx,
		"CREATE TABLE IF NOT EXISTS payments (id uuid PRIMARY KEY, account text NOT NULL, cents bigint NOT NULL)")
	if err == nil {
		err = receive(ctx, conn, payment{Account: os.Args[1], Cents: cents})
	}
	if err != nil {
		log.Fatal(err)
	}
}
