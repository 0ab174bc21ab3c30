# What a person types. Each target does all of its own set-up on a Debian, an Ubuntu or a Mac that has Rust, and
# works with the make of a Mac (GNU make 3.81).

# Not /bin/sh: make 3.81 hands PATH on only through a shell that is not its default.
SHELL := /bin/bash
# Where rustup puts cargo, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo
# Most tests wait for a server's deadline, not for a processor; the six are for those that wait longest.
export RUST_TEST_THREADS ?= $(shell echo $$((3 * $$(getconf _NPROCESSORS_ONLN) + 6)))

.PHONY: help servers build demo test otlp tls versions bench bench-tls bench-otlp chaos wiped failover shares cable deny package deploy book clean toolchain

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

servers: ## Fetch Postgres and nats-server into .servers, unless new enough ones are on PATH
	@scripts/servers.sh

build: toolchain ## Build the release binary, target/release/walrelay
	$(CARGO) build --release

demo: toolchain servers ## See it work: Postgres, NATS and walrelay on this machine, and events that flow
	$(CARGO) build --release
	@$(CARGO) run --quiet --release -- demo

test: toolchain servers ## Format, lints, all tests against real servers, documentation
	@scripts/toolchain.sh rustfmt clippy
	@scripts/servers.sh --tls
	@scripts/servers.sh --prometheus
	@scripts/servers.sh --deny
	$(CARGO) fmt --check
	.servers/cargo-deny --log-level error check --hide-inclusion-graph licenses bans sources
	$(CARGO) clippy --all-targets --features outbox-sqlx -- -D warnings
	@scripts/library.sh
	# What the instructions are counted of is built beside the tests, which wait for servers more than they compute.
	@scripts/instructions.sh --build & scripts/tests.sh --features outbox-sqlx; status=$$?; wait; exit $$status
	@scripts/instructions.sh
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --features outbox-sqlx

otlp: toolchain servers ## Lints and tests of the export by OTLP, which is not in the default build; through a collector too, on Linux
	@scripts/toolchain.sh clippy
	$(CARGO) clippy --all-targets --features outbox-sqlx,otlp -- -D warnings
	$(CARGO) test --features outbox-sqlx,otlp --lib -- ops::otlp relay::batch_spans
	$(CARGO) test --features outbox-sqlx,otlp --test otlp
	@scripts/servers.sh --otlp
	$(CARGO) test --features outbox-sqlx,otlp --test otlp -- --ignored collector::

tls: toolchain servers ## Integration tests and chaos over TLS, with SCRAM bound to the channel and with a JWT
	@scripts/servers.sh --tls
	WALRELAY_TEST_TLS=1 $(CARGO) test --test integration
	@$(MAKE) chaos TLS=1

versions: toolchain servers ## Stream from Postgres 14 to 17, and to NATS 2.10 to 2.15, through kills; fetches them, on Linux
	@scripts/servers.sh --all-postgres
	@scripts/servers.sh --all-nats
	$(CARGO) test --test integration versions:: -- --include-ignored
	$(CARGO) test --test faults in_every_supported_version -- --include-ignored
	$(CARGO) test --test faults a_cluster_is_upgraded -- --include-ignored

# How many events the backlog has; fewer for a first look: EVENTS=100000
EVENTS ?= 1000000

bench: toolchain servers ## Measure decoding, envelopes, marks, and the whole relay beside its limits: EVENTS=100000
	@scripts/servers.sh --tls
	$(CARGO) bench --bench decode --bench envelope --bench progress
	$(CARGO) bench --bench relay -- $(EVENTS)

bench-tls: toolchain servers ## Measure what TLS costs: plain, with Postgres, with both, beside pg_recvlogical: EVENTS=300000
	@scripts/servers.sh --tls
	$(CARGO) bench --bench relay -- $(EVENTS) --only tls --rounds 5
	@ls -l target/release/walrelay | awk '{ printf "binary: %.1f MB\n", $$5 / 1e6 }'

bench-otlp: toolchain servers ## Measure what the export by OTLP costs the relay, beside a build without it; on Linux; half an hour: EVENTS=300000
	@scripts/servers.sh --otlp
	$(CARGO) build --release
	cp target/release/walrelay target/release/walrelay-without-otlp
	WALRELAY_BENCH_WITHOUT_OTLP='$(CURDIR)/target/release/walrelay-without-otlp' \
	$(CARGO) bench --features otlp --bench relay -- $(EVENTS) --only otlp --rounds 5

# How long, with which seed (another one each time unless given), and whether against a cluster of three nats-servers.
MINUTES ?= 3
SEED ?=
CLUSTER ?=
# Of the streams in a cluster: 3 unless given; with 1 a single node can lose what it had.
REPLICAS ?=
# fast, chain or shared: which way of publishing. shares or reshard: instances of an outbox with shares.
LANE ?=
# 1: TLS and logins on both sides.
TLS ?=

chaos: toolchain servers ## Kill, pause and restart everything at random: MINUTES=30 SEED=7 CLUSTER=1 LANE=shared|shares|reshard TLS=1
	@[ -z '$(TLS)' ] || scripts/servers.sh --tls
	WALRELAY_TEST_TLS='$(TLS)' CHAOS_MINUTES='$(MINUTES)' CHAOS_SEED='$(SEED)' CHAOS_CLUSTER='$(CLUSTER)' CHAOS_REPLICAS='$(REPLICAS)' CHAOS_LANE='$(LANE)' \
	$(CARGO) test --release --test chaos a_long_while -- --include-ignored --nocapture

wiped: toolchain servers ## A node of three nats-servers comes back with an empty disk beside a frozen one; minutes
	$(CARGO) test --test faults by_hand::a_disk_is_wiped -- --include-ignored

failover: toolchain servers ## Promote standbys under load, ten times each, and upgrade 17 to 18; fetches Postgres 17, on Linux; minutes
	@scripts/servers.sh --all-postgres
	$(CARGO) test --test faults failover:: -- --include-ignored --test-threads 1
	$(CARGO) test --test faults upgrade:: -- --include-ignored

shares: toolchain servers ## Measure what 1, 2, 4 and 8 shares cost and bring: rate, and CPU of each process; on Linux
	$(CARGO) test --release --test integration shares::rates:: -- --include-ignored --nocapture

cable: toolchain servers ## Pull the cable of a relay in a network namespace, and time takeovers, ten of each; as root, on Linux
	$(CARGO) test --test faults cable:: -- --include-ignored --nocapture --test-threads 1

deny: toolchain ## Known vulnerabilities, licences and sources of all that is built in; asks RustSec
	@scripts/servers.sh --deny
	.servers/cargo-deny check

# Beside the default ones: otlp.
FEATURES ?=
# x86_64-unknown-linux-musl makes a static binary, with musl-gcc and what `rustup target add` brings.
TARGET ?=

package: toolchain ## Build dist/: binary as tar.gz, .deb and .rpm, with manual, completions and systemd unit: FEATURES=otlp TARGET=…
	$(CARGO) build --release --locked --features '$(FEATURES)' $(if $(TARGET),--target '$(TARGET)')
	@scripts/package.sh $(TARGET)

deploy: ## Check image, compose file, manifests, chart and workflows with the tools of those who run them
	@scripts/deploy.sh

book: ## Make book/ of the documents, with every link looked at
	@scripts/book.sh

clean: ## Remove what was built and fetched
	$(CARGO) clean
	rm -rf .servers .demo dist book

toolchain:
	@scripts/toolchain.sh
