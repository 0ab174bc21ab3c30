#!/usr/bin/env bash
# Checks the library that applications embed, without the program, and that it needs none of what only the program needs.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

"$cargo" clippy --quiet --no-default-features --lib -- -D warnings

needed=$("$cargo" tree --no-default-features --edges normal --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
grep -qx tokio <<<"$needed" || { echo "library: cargo tree does not list tokio; has its form changed?" >&2; exit 1; }
program_only='axum|clap|clap_complete|clap_mangen|hdrhistogram|indicatif|metrics-exporter-prometheus|tracing-subscriber'
if found=$(grep -xE "$program_only" <<<"$needed"); then
    echo "library: without the feature cli it still needs" $found >&2
    exit 1
fi
