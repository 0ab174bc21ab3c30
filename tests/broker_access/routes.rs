//! JetStream that is reached by another way: a leaf node, another account.

use std::net::TcpListener;

use async_nats::jetstream;
use walrelay::local::{LocalNats, NatsOptions};

use crate::support::{Fixture, binaries, eventually, uuid};

async fn server(config_extra: String, jetstream_extra: &str) -> LocalNats {
    let options = NatsOptions {
        config_extra,
        jetstream_extra: jetstream_extra.to_owned(),
        ..NatsOptions::default()
    };
    LocalNats::start(&binaries(), options).await.unwrap()
}

async fn stored_ids(jetstream: &jetstream::Context, name: &str, count: u64) -> Vec<String> {
    let mut stream = jetstream.get_stream(name).await.unwrap();
    eventually(format!("{name} holds {count} messages"), async || {
        let info = stream.info().await.ok()?;
        (info.state.messages >= count).then_some(())
    })
    .await;
    let mut ids = Vec::new();
    for sequence in 1..=stream.info().await.unwrap().state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let event: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        ids.push(event["id"].as_str().unwrap().to_owned());
    }
    ids
}

/// Sets up and relays by this way, through a kill; all commands work.
async fn relays(fixture: &mut Fixture, at_the_stream: &jetstream::Context, publish: &str) {
    const LAST: u64 = 400;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.logs(&format!("publish=\"{publish}\"")).await;
    fixture.insert(1, LAST / 2).await;
    stored_ids(at_the_stream, fixture.stream_name(), LAST / 2).await;
    relay.kill();
    let relay = fixture.run();
    fixture.insert(LAST / 2 + 1, LAST).await;
    let ids = stored_ids(at_the_stream, fixture.stream_name(), LAST).await;
    let all: Vec<String> = (1..=LAST).map(|n| uuid(n).to_string()).collect();
    assert_eq!(ids, all);
    relay.stop().await;
    for command in [
        &["position"][..],
        &["verify"],
        &["tail", "--since", "all", "--count", "1"],
        &["teardown", "--yes", "--drop-stream"],
    ] {
        fixture.walrelay(command).await.success();
    }
}

#[tokio::test]
async fn a_stream_of_the_hub_is_reached_from_a_leaf_node() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let hub = server(
        format!("leafnodes {{ listen: \"127.0.0.1:{port}\" }}"),
        "domain: hub",
    )
    .await;
    let remote = format!("leafnodes {{ remotes: [{{ url: \"nats://127.0.0.1:{port}\" }}] }}");
    let leaf = server(remote, "domain: leaf").await;
    let at_the_hub = jetstream::new(async_nats::connect(hub.url()).await.unwrap());
    let from_the_leaf = async_nats::connect(leaf.url()).await.unwrap();
    eventually("the leaf node is connected", async || {
        let info = from_the_leaf.request("$JS.hub.API.INFO", "".into()).await;
        info.ok()
    })
    .await;
    let mut fixture = Fixture::bare().await;
    fixture.set("WALRELAY_NATS_URL", leaf.url());
    fixture.set("WALRELAY_NATS_DOMAIN", "hub");
    relays(&mut fixture, &at_the_hub, "fast-ingest").await;
}

/// A server with the stream in account A, whose subjects account B imports with the API under `api`.
async fn two_accounts(fixture: &mut Fixture, api: &str) -> (LocalNats, jetstream::Context) {
    let events = format!("{}.>", fixture.name);
    let accounts = format!(
        "accounts {{
           A {{ jetstream: enabled, users: [{{ user: a, password: a }}], exports: [
             {{ service: \"$JS.API.>\", response_type: stream }}, {{ service: \"{events}\" }}, {{ service: \"walrelay.>\" }} ] }}
           B {{ users: [{{ user: b, password: b }}], imports: [
             {{ service: {{ account: A, subject: \"$JS.API.>\" }}, to: \"{api}.>\" }},
             {{ service: {{ account: A, subject: \"{events}\" }} }}, {{ service: {{ account: A, subject: \"walrelay.>\" }} }} ] }}
         }}"
    );
    let nats = server(accounts, "").await;
    let own = async_nats::ConnectOptions::with_user_and_password("a".into(), "a".into());
    let at_the_stream = jetstream::new(own.connect(nats.url()).await.unwrap());
    fixture.set("WALRELAY_NATS_URL", nats.url());
    fixture.set("WALRELAY_NATS_USER", "b");
    fixture.set("WALRELAY_NATS_PASSWORD", "b");
    (nats, at_the_stream)
}

/// Fast ingest would go through the import too, and leave each message of a batch in the memory of nats-server.
#[tokio::test]
async fn a_stream_of_another_account_is_reached_through_imports_by_the_chain() {
    let mut fixture = Fixture::bare().await;
    let (_nats, at_the_stream) = two_accounts(&mut fixture, "js.of.a").await;
    fixture.set("WALRELAY_NATS_API_PREFIX", "js.of.a");
    relays(&mut fixture, &at_the_stream, "chain").await;
}

/// Nothing that the server tells shows that the stream is another account's: the configuration has to.
#[tokio::test]
async fn imports_that_rename_nothing_are_told_by_the_configuration() {
    let mut fixture = Fixture::bare().await;
    let (_nats, at_the_stream) = two_accounts(&mut fixture, "$JS.API").await;
    fixture.set("WALRELAY_NATS_IMPORTED", "true");
    relays(&mut fixture, &at_the_stream, "chain").await;
}
