#!/usr/bin/env bash
# Checks the library as applications take it, feature by feature: that each compiles, and that none needs more than it should.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

for features in '' outbox outbox-sqlx consumer inbox relay; do
    "$cargo" clippy --quiet --package walrelay --no-default-features --features "$features" --lib -- -D warnings
done

# crates FEATURES MOST REFUSED  how many crates at most, and which not.
crates() {
    local needed found
    needed=$("$cargo" tree --package walrelay --no-default-features --features "$1" --edges normal --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
    grep -qx serde_json <<<"$needed" || { echo "library: cargo tree does not list serde_json; has its form changed?" >&2; exit 1; }
    if found=$(grep -xE "$3" <<<"$needed"); then
        echo "library: with features '$1' it needs" $found >&2
        exit 1
    fi
    if [ "$(wc -l <<<"$needed")" -gt "$2" ]; then
        echo "library: with features '$1' it needs $(wc -l <<<"$needed") crates; $2 were enough. See cargo tree --no-default-features --features '$1'" >&2
        exit 1
    fi
}
network='tokio|async-nats|tokio-postgres|rustls|ring'
program='axum|clap|clap_complete|clap_mangen|hdrhistogram|indicatif|tracing-subscriber'
crates '' 24 "$network"
crates outbox 76 "async-nats|rustls|$program"
crates outbox-sqlx 126 "async-nats|tokio-postgres|rustls|rsa|sqlx-macros|sqlx-mysql|sqlx-sqlite|$program"
crates consumer 118 "tokio-postgres|ring|$program"
crates inbox 130 "ring|$program"
crates relay 180 "$program"
