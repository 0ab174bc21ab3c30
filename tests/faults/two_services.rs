//! Two services that took the same slot and stream names on one NATS, both alive: the second one is told so and halts,
//! the first one does not even notice.

use postgres_types::PgLsn;
use walrelay::local::{LocalPostgres, PostgresOptions};

use crate::lane::{jetstream, judge, judge_events, more_events, share};
use crate::support::{Fixture, Relay, Writer, binaries, eventually, insert_sql, uuid};

const EVENTS_BETWEEN: u64 = 200;
const URL: &str = "WALRELAY_POSTGRES_URL";
/// How often both start at the same moment, since who is first is chance.
const ROUNDS: u64 = 3;

/// A lane on the shared servers.
async fn fixture(shared: bool) -> Fixture {
    let mut fixture = Fixture::bare().await;
    if shared {
        share(&mut [&mut fixture], 1).await;
    } else {
        fixture.setup().await;
    }
    fixture
}

/// Another cluster, with a database of the lane's name.
struct Other {
    postgres: LocalPostgres,
    sql: tokio_postgres::Client,
}

impl Other {
    /// Also set up, with the lane's names.
    async fn start(fixture: &mut Fixture) -> Other {
        let options = PostgresOptions {
            fsync: false,
            own_identity: true,
            ..PostgresOptions::default()
        };
        let started = LocalPostgres::start(&binaries(), options).await;
        let postgres = started.expect("Postgres starts");
        let admin = postgres.connect("postgres").await.unwrap();
        let create = format!("CREATE DATABASE {}", fixture.name);
        admin.batch_execute(&create).await.unwrap();
        let other = Other {
            sql: postgres.connect(&fixture.name).await.unwrap(),
            postgres,
        };
        let own = other.stands_in(fixture);
        fixture.setup().await;
        fixture.set(URL, own);
        other
    }

    /// The lane's commands go to this cluster; the URL of the one before.
    fn stands_in(&self, fixture: &mut Fixture) -> String {
        fixture.set(URL, self.postgres.url(&fixture.name));
        fixture.servers().postgres.url(&fixture.name)
    }

    /// Starts the second service's relay.
    fn run(&self, fixture: &mut Fixture) -> Relay {
        let own = self.stands_in(fixture);
        let relay = fixture.run();
        fixture.set(URL, own);
        relay
    }

    async fn insert(&self, first: u64, last: u64) {
        let sql = insert_sql(first, last);
        self.sql.batch_execute(&sql).await.unwrap();
    }

    async fn confirmed_lsn(&self, fixture: &Fixture) -> PgLsn {
        let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.sql.query_one(sql, &[&fixture.name]).await;
        row.unwrap().get(0)
    }
}

const WHY: &str = "Another database stands behind the same names";

/// It ends with 4 and says why.
async fn halts(relay: &mut Relay) {
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(relay.log().contains(WHY), "{}", relay.log());
}

#[tokio::test]
async fn the_second_halts_and_the_first_goes_on() {
    for shared in [false, true] {
        let mut fixture = fixture(shared).await;
        let mut first = fixture.run();
        first.streams().await;
        let writer = Writer::start(&fixture).await;
        more_events(&fixture, EVENTS_BETWEEN).await;
        let other = Other::start(&mut fixture).await;
        let confirmed = other.confirmed_lsn(&fixture).await;
        other.insert(1, 10).await;
        let logged = first.log().len();
        // A supervisor that starts it again and again changes nothing.
        for _ in 0..3 {
            halts(&mut other.run(&mut fixture)).await;
            more_events(&fixture, EVENTS_BETWEEN).await;
        }
        // Not even a line: no epoch of the first one was ended.
        assert_eq!(&first.log()[logged..], "", "shared: {shared}");
        assert_eq!(other.confirmed_lsn(&fixture).await, confirmed);
        // The other's events would be foreign to the writer's ledger.
        judge(&fixture, writer).await;
        first.stop().await;
        fixture.walrelay(&["verify"]).await.success();
    }
}

#[tokio::test]
async fn both_start_at_once_on_an_empty_stream() {
    for shared in [false, true] {
        for _ in 0..ROUNDS {
            let mut fixture = fixture(shared).await;
            let other = Other::start(&mut fixture).await;
            // As before the first setup ever: nothing tells whose the names are.
            let records = jetstream(&fixture).get_stream("WALRELAY").await.unwrap();
            let record = format!("walrelay.lane.{}.{}", fixture.stream_name(), fixture.name);
            records.purge().filter(record).await.unwrap();
            fixture.insert(1, 50).await;
            other.insert(101, 150).await;
            let mut relays = vec![fixture.run(), other.run(&mut fixture)];
            let loser = eventually("one of the two gives up", async || {
                relays.iter_mut().position(|relay| !relay.runs())
            })
            .await;
            let mut loses = relays.remove(loser);
            // Where it has looked for the record before there was one, it has seen the other's first message alone: the next
            // start knows whose that is.
            if loses.ends().await == Some(4) && !loses.log().contains(WHY) {
                let is_seen = loses.log().contains("does not stand where a relay put it");
                assert!(is_seen, "{}", loses.log());
                loses = match loser {
                    0 => fixture.run(),
                    _ => other.run(&mut fixture),
                };
            }
            halts(&mut loses).await;
            // Only the other was ever let in, whatever the two did in their first moments.
            let mut winner = relays.remove(0);
            let first = if loser == 1 { 1 } else { 101 };
            if loser == 1 {
                fixture.insert(51, 60).await;
            } else {
                other.insert(151, 160).await;
            }
            judge_events(&fixture, &(first..first + 60).map(uuid).collect::<Vec<_>>()).await;
            assert!(winner.runs());
            winner.stop().await;
        }
    }
}
