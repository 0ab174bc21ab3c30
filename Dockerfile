# syntax=docker/dockerfile:1
# walrelay in a small image: the C library and one binary.
FROM rust:1.95-slim-bookworm AS build
# Beside the default ones: otlp.
ARG FEATURES=
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin walrelay --features "$FEATURES" && cp target/release/walrelay /walrelay

# Not root: nothing here needs a right.
FROM debian:bookworm-slim
# Whom sslrootcert=system trusts.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
USER 65532:65532
COPY --from=build /walrelay /usr/local/bin/walrelay
# Inside a container loopback is nobody's: metrics, health and the status page have to be reachable.
ENV WALRELAY_HTTP_LISTEN=0.0.0.0:7187
EXPOSE 7187
# By the relay's own word: unhealthy while it waits or has halted. It writes nothing: run it with --read-only.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/local/bin/walrelay", "status"]
ENTRYPOINT ["/usr/local/bin/walrelay"]
CMD ["run"]
