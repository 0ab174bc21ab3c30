//! What `doctor` says of NATS, typed as it is printed.

use std::time::Duration;

use async_nats::Message;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use walrelay::consumer::{Event, ReadError};
use walrelay::local::{LocalNatsCluster, NatsOptions};

use crate::lane::{by_hand, jetstream, logs_from, move_to_cluster, stream_of};
use crate::remedies::{mend, mend_by};
use crate::support::{
    Fixture, Servers, Stored, assert_exactly_once, binaries, eventually, secure, uuid,
};

/// The number behind these words of a remedy.
fn number(remedy: &str, words: &str) -> u64 {
    let (_, behind) = remedy.split_once(words).expect(remedy);
    let digits = behind.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).expect(remedy)
}

/// Rows that are large beside what stream and server take.
#[tokio::test]
async fn what_doctor_says_of_rows_that_are_large() {
    let mut servers = Servers::own().await;
    let small = "max_payload: 20000".to_owned();
    servers.nats.reload(small).await.unwrap();
    let mut fixture = Fixture::bare_on(servers).await;
    fixture.setup().await;
    fixture.insert(1, 9).await;
    assert_eq!(mend(&fixture, "message-size").await, None);
    let grow =
        "UPDATE outbox_events SET payload_json = to_jsonb(repeat('x', 12000)) WHERE ctid = '(0,1)'";
    assert_eq!(fixture.sql.execute(grow, &[]).await.unwrap(), 1);
    let mut config = stream_of(&fixture).await.cached_info().config.clone();
    config.max_message_size = 5_000;
    jetstream(&fixture).update_stream(&config).await.unwrap();

    let remedy = mend(&fixture, "message-size").await.expect("of the stream");
    let edit = format!("nats stream edit {} --max-msg-size=", config.name);
    config.max_message_size = i32::try_from(number(&remedy, &edit)).unwrap();
    jetstream(&fixture).update_stream(&config).await.unwrap();
    let remedy = mend(&fixture, "message-size").await.expect("of the server");
    let raised = format!("max_payload: {}", number(&remedy, "set max_payload: "));
    fixture.own_servers().nats.reload(raised).await.unwrap();
    assert_eq!(mend(&fixture, "message-size").await, None);
}

/// A stream that removes what the hold-back still needs.
#[tokio::test]
async fn what_doctor_says_of_limits_below_the_hold_back() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "180s");
    assert_eq!(mend(&fixture, "retention").await, None);
    let mut config = stream_of(&fixture).await.cached_info().config.clone();
    let name = config.name.clone();
    let set = |config: &mut Config, flag: &str, limit: u64| match flag {
        "--max-age" => config.max_age = Duration::from_secs(limit),
        "--max-msgs" => config.max_messages = limit.cast_signed(),
        _ => config.max_bytes = limit.cast_signed(),
    };
    for (flag, limit) in [("--max-age", 60), ("--max-msgs", 5), ("--max-bytes", 2_000)] {
        set(&mut config, flag, limit);
        jetstream(&fixture).update_stream(&config).await.unwrap();
        let remedy = mend(&fixture, "retention").await.expect(flag);
        let edit = format!("nats stream edit {name} {flag}=");
        set(&mut config, flag, number(&remedy, &edit));
        jetstream(&fixture).update_stream(&config).await.unwrap();
        assert_eq!(mend(&fixture, "retention").await, None);
    }
}

/// A stream into which the server puts messages of its own, where a subject ages out.
#[tokio::test]
async fn what_doctor_says_of_marks_that_a_subject_aged_out() {
    let mut fixture = Fixture::new().await;
    assert_eq!(mend(&fixture, "stream").await, None);
    let mut config = stream_of(&fixture).await.cached_info().config.clone();
    let by_the_owner = config.clone();
    config.max_age = Duration::from_secs(1);
    config.duplicate_window = config.max_age;
    config.allow_message_ttl = true;
    config.subject_delete_marker_ttl = Some(Duration::from_secs(60));
    jetstream(&fixture).update_stream(&config).await.unwrap();
    let mut relay = fixture.run();
    fixture.insert(1, 10).await;
    let marker = eventually("the server's own message", async || {
        let sequence = stream_of(&fixture).await.cached_info().state.last_sequence;
        let last = stream_of(&fixture).await.get_raw_message(sequence).await;
        last.ok().filter(|last| last.payload.is_empty())
    });
    let marker = marker.await;
    let length = marker.payload.len();
    let read = Event::read(&Message {
        subject: marker.subject,
        reply: None,
        payload: marker.payload,
        headers: Some(marker.headers),
        status: None,
        description: None,
        length,
    });
    assert!(matches!(read, Err(ReadError::Control { .. })), "{read:?}");
    fixture.insert(11, 20).await;
    logs_from(&mut relay, 0, "starting again from the stream's end").await;

    let remedy = mend(&fixture, "stream").await;
    let printed = format!(
        "nats stream edit {} --subject-del-markers-ttl=0s",
        config.name
    );
    assert_eq!(remedy, Some(printed));
    config.subject_delete_marker_ttl = None;
    config.max_age = by_the_owner.max_age;
    jetstream(&fixture).update_stream(&config).await.unwrap();
    assert_eq!(mend(&fixture, "stream").await, None);
    let before = stream_of(&fixture).await.cached_info().state.last_sequence;
    fixture.insert(21, 30).await;
    let stored = eventually("what came behind the edit", async || {
        let stored = fixture.stored().await;
        let stored: Vec<_> = (stored.iter().filter(|it| it.sequence > before))
            .map(Stored::id)
            .collect();
        (stored.len() >= 10).then_some(stored)
    });
    let wanted: Vec<_> = (21..=30).map(uuid).collect();
    assert_exactly_once(&wanted, &stored.await);
    relay.stop().await;
}

/// Subjects that another stream has, before setup makes anything.
#[tokio::test]
async fn what_doctor_says_of_a_stream_that_has_the_subjects() {
    let fixture = Fixture::bare().await;
    let subjects = [format!("{}.>", fixture.name)];
    let other = by_hand(&format!("OTHER_{}", fixture.name), &subjects, 1);
    jetstream(&fixture).create_stream(&other).await.unwrap();
    let said = fixture.walrelay(&["doctor"]).await.stdout;
    let taken = format!("stream {} already takes {}", other.name, subjects[0]);
    assert!(said.contains(&taken), "{said}");
    jetstream(&fixture)
        .delete_stream(&other.name)
        .await
        .unwrap();
    let said = fixture.walrelay(&["doctor"]).await.stdout;
    assert!(!said.contains("already takes"), "{said}");
}

/// A stream that takes nothing more, since its limit was set below what it has.
#[tokio::test]
async fn what_doctor_says_of_a_stream_that_is_fuller_than_its_limit() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.insert(1, 500).await;
    fixture.holds(500).await;
    let mut config = stream_of(&fixture).await.cached_info().config.clone();
    config.discard = DiscardPolicy::New;
    let mut total = 500;
    for by_bytes in [true, false] {
        let limit = if by_bytes {
            "--max-bytes="
        } else {
            "--max-msgs="
        };
        let edit = format!("nats stream edit {} {limit}", config.name);
        (config.max_bytes, config.max_messages) = if by_bytes { (2_000, -1) } else { (-1, 10) };
        jetstream(&fixture).update_stream(&config).await.unwrap();
        let remedy = mend(&fixture, "storage-limit").await.expect("it is full");
        let wide = i64::try_from(number(&remedy, &edit)).unwrap();
        (config.max_bytes, config.max_messages) = if by_bytes { (wide, -1) } else { (-1, wide) };
        jetstream(&fixture).update_stream(&config).await.unwrap();
        assert_eq!(mend(&fixture, "storage-limit").await, None);
        fixture.insert(total + 1, total + 50).await;
        total += 50;
        fixture.holds(total).await;
    }
    relay.stop().await;
}

/// An account with this in its block, for everybody.
fn account(jetstream: &str) -> String {
    format!(
        "accounts {{ A {{ jetstream: {jetstream}, users: [{{ user: a, password: p }}] }} }}\nno_auth_user: a\n"
    )
}

/// A lane on servers of its own, with such an account.
async fn fixture_of(account: String) -> Fixture {
    let mut servers = Servers::own().await;
    servers.nats.stop().await.unwrap();
    servers.nats.reload(account).await.unwrap();
    servers.nats.start_again().await.unwrap();
    Fixture::bare_on(servers).await
}

/// A port at which another service listens.
#[tokio::test]
async fn what_is_said_of_a_port_that_speaks_no_nats() {
    let mut fixture = Fixture::new().await;
    let postgres = fixture.servers().postgres.port();
    let of_postgres = format!("nats://127.0.0.1:{postgres}");
    let of_monitoring = format!("nats://{}", fixture.servers().nats.monitoring());
    for (url, is) in [
        (of_postgres, "Postgres does, or a pooler"),
        (of_monitoring, "a web server does"),
    ] {
        fixture.set("WALRELAY_NATS_URL", url.as_str());
        let said = fixture.walrelay(&["setup"]).await;
        assert_eq!(said.code, Some(1), "{said:?}");
        let words = format!("no nats-server answers at {url}: {is}");
        assert!(said.stderr.contains(&words), "{}", said.stderr);
        let doctor = fixture.walrelay(&["doctor"]).await;
        assert_eq!(doctor.code, Some(3), "{doctor:?}");
        assert!(doctor.stdout.contains(&words), "{}", doctor.stdout);
    }
}

/// An account without JetStream.
#[tokio::test]
async fn what_is_said_of_an_account_without_jetstream() {
    let mut fixture = fixture_of(account("disabled")).await;
    let is_told = async |fixture: &Fixture, command: &str, code: i32| {
        let said = fixture.walrelay(&[command]).await;
        assert_eq!(said.code, Some(code), "{said:?}");
        let said = said.stdout + &said.stderr;
        let why = "JetStream not enabled for account";
        let remedy = "put jetstream: enabled into the account's block";
        assert!(said.contains(why) && said.contains(remedy), "{said}");
    };
    is_told(&fixture, "setup", 1).await;
    is_told(&fixture, "doctor", 3).await;
    let [enabled, disabled] = ["enabled", "disabled"].map(account);
    fixture.own_servers().nats.reload(enabled).await.unwrap();
    fixture.setup().await;
    fixture.own_servers().nats.reload(disabled).await.unwrap();
    is_told(&fixture, "run", 1).await;
}

/// A stream that somebody has made by hand, wrong in several keys: one command has them all.
#[tokio::test]
async fn what_is_said_of_a_stream_that_differs_in_several_keys() {
    let fixture = Fixture::bare().await;
    let stream = fixture.stream_name();
    let own = format!("{}.lesson.*", fixture.name);
    let mut config = by_hand(stream, &[own], 1);
    config.allow_batch_publish = false;
    config.retention = async_nats::jetstream::stream::RetentionPolicy::Interest;
    config.max_messages_per_subject = 7;
    jetstream(&fixture).create_stream(&config).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let edit = format!("nats stream edit {stream} ");
    let commands = refused.stderr.lines();
    let mut commands: Vec<&str> = commands
        .filter_map(|line| Some(line.split_once(&edit)?.1))
        .collect();
    commands.dedup();
    let [flags] = commands[..] else {
        panic!("{}", refused.stderr)
    };
    config.subjects.clear();
    for flag in flags.split(' ') {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("--subjects", subject) => config.subjects.push(subject.trim_matches('\'').to_owned()),
            ("--retention", "limits") => {
                config.retention = async_nats::jetstream::stream::RetentionPolicy::Limits;
            }
            ("--max-msgs-per-subject", "-1") => config.max_messages_per_subject = -1,
            ("--allow-fast", "") => config.allow_batch_publish = true,
            _ => panic!("{flag}"),
        }
    }
    jetstream(&fixture).update_stream(&config).await.unwrap();
    let made = fixture.walrelay(&["setup"]).await.success();
    assert!(!made.stderr.contains("nats stream edit"), "{}", made.stderr);
    assert_eq!(mend(&fixture, "stream").await, None);
}

/// Limits of an account under which setup can make no stream.
#[tokio::test]
async fn what_doctor_says_of_an_account_in_which_no_stream_can_be_made() {
    let mut fixture = fixture_of(account("{ max_file: 0 }")).await;
    let reload = async |fixture: &mut Fixture, limits: &str| {
        let text = account(&format!("{{ {limits} }}"));
        fixture.own_servers().nats.reload(text).await.unwrap();
    };
    let remedy = mend(&fixture, "storage-limit").await.expect("no room");
    let room = format!("max_file: {}", number(&remedy, "set max_file: "));
    reload(&mut fixture, &format!("{room}, max_streams: 1")).await;
    // Two are to be made.
    let remedy = mend(&fixture, "storage-limit").await.expect("one too few");
    let streams = format!("max_streams: {}", number(&remedy, "set max_streams: "));
    reload(
        &mut fixture,
        &format!("{room}, {streams}, max_bytes_required: true"),
    )
    .await;
    let remedy = mend(&fixture, "storage-limit").await.expect("no max_bytes");
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let set = remedy.strip_prefix("set ").expect(&remedy);
    let (set, _) = set.split_once(" in the account's").expect(&remedy);
    reload(&mut fixture, &format!("{room}, {streams}, {set}")).await;
    assert_eq!(mend(&fixture, "storage-limit").await, None);
    fixture.setup().await;
    // All streams that the account may have, and all are there.
    reload(&mut fixture, &format!("{room}, max_streams: 2")).await;
    assert_eq!(mend(&fixture, "storage-limit").await, None);
}

/// A stream that keeps no more than was promised to it fills no account, however close to its limit that is.
#[tokio::test]
async fn what_doctor_says_of_a_stream_with_most_of_its_account() {
    let fixture = fixture_of(account("{ max_file: 1MB }")).await;
    fixture.setup().await;
    let mut config = stream_of(&fixture).await.cached_info().config.clone();
    config.max_bytes = 1_000_000;
    jetstream(&fixture).update_stream(&config).await.unwrap();
    let subject = format!("{}.other", fixture.name);
    let context = jetstream(&fixture);
    for _ in 0..100 {
        let stored = context.publish(subject.clone(), vec![b'x'; 10_000].into());
        stored.await.unwrap().await.unwrap();
    }
    let used = jetstream(&fixture).query_account().await.unwrap().storage;
    assert!(used > 900_000, "{used}");
    assert_eq!(mend(&fixture, "storage-limit").await, None);
    config.max_bytes = -1;
    jetstream(&fixture).update_stream(&config).await.unwrap();
    assert!(mend(&fixture, "storage-limit").await.is_some());
}

/// Limits by the number of replicas: a tier may use its own once for each copy.
#[tokio::test]
async fn what_doctor_says_of_an_account_with_tiers() {
    let accounts = secure::Accounts::new();
    let limits = |bytes: u64| {
        let tier = serde_json::json!({ "mem_storage": 0, "disk_storage": bytes, "streams": 9, "consumer": -1 });
        serde_json::json!({ "tiered_limits": { "R3": tier } })
    };
    let options = NatsOptions {
        config_extra: accounts.configuration(&limits(1_000_000)),
        ..NatsOptions::default()
    };
    let mut cluster = LocalNatsCluster::start_with(&binaries(), 3, options)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("user.creds");
    std::fs::write(&credentials, accounts.credentials()).unwrap();
    let mut fixture = Fixture::bare().await;
    fixture.without_tls_and_login_of_nats();
    fixture.set("WALRELAY_NATS_URL", cluster.url());
    fixture.set(
        "WALRELAY_NATS_CREDENTIALS",
        credentials.display().to_string(),
    );
    // There is no tier of one copy.
    assert_eq!(fixture.walrelay(&["setup"]).await.code, Some(1));
    let remedy = mend(&fixture, "storage-limit").await.expect("no tier");
    let typed = remedy.strip_prefix("run walrelay ").expect(&remedy);
    let typed: Vec<&str> = typed.split(' ').collect();
    fixture.walrelay(&typed).await.success();
    let login = async_nats::ConnectOptions::with_credentials(&accounts.credentials()).unwrap();
    fixture.nats = login.connect(cluster.nodes()[0].url()).await.unwrap();

    let subject = format!("{}.other", fixture.name);
    let fill = async |messages: u64| {
        let context = jetstream(&fixture);
        for _ in 0..messages {
            let stored = context.publish(subject.clone(), vec![b'x'; 10_000].into());
            stored.await.unwrap().await.unwrap();
        }
        let tier = async || {
            let info = fixture.nats.request("$JS.API.INFO", "".into()).await.ok()?;
            let info: serde_json::Value = serde_json::from_slice(&info.payload).ok()?;
            info["tiers"]["R3"]["storage"].as_u64()
        };
        let state = stream_of(&fixture).await.cached_info().state.clone();
        eventually("all copies are counted", async || {
            (tier().await? > 3 * state.bytes).then_some(())
        })
        .await;
    };
    // More than the limit of one copy, with all three, and a third of what is allowed.
    fill(40).await;
    assert_eq!(mend(&fixture, "storage-limit").await, None);
    fill(45).await;
    let remedy = mend(&fixture, "storage-limit").await.expect("nearly full");
    let wide = number(&remedy, "set disk_storage: ");
    for node in 0..3 {
        let text = accounts.configuration(&limits(wide));
        cluster.node(node).reload(text).await.unwrap();
    }
    assert_eq!(mend(&fixture, "storage-limit").await, None);
}

/// What an account may store.
#[tokio::test]
async fn what_doctor_says_of_an_account_that_is_nearly_full() {
    let mut fixture = fixture_of(account("{ max_file: 1GB }")).await;
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 100).await;
    fixture.holds(100).await;
    relay.stop().await;
    let used = jetstream(&fixture).query_account().await.unwrap().storage;

    let tight = account(&format!("{{ max_file: {} }}", used + used / 10));
    fixture.own_servers().nats.reload(tight).await.unwrap();
    let remedy = mend(&fixture, "storage-limit")
        .await
        .expect("it is nearly full");
    let wide = format!("{{ max_file: {} }}", number(&remedy, "set max_file: "));
    fixture
        .own_servers()
        .nats
        .reload(account(&wide))
        .await
        .unwrap();
    assert_eq!(mend(&fixture, "storage-limit").await, None);
}

/// What only the monitoring of nats-server tells.
#[tokio::test]
async fn what_doctor_says_of_the_syncs_of_jetstream() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "180s");
    let unasked = fixture.walrelay(&["doctor"]).await.stdout;
    let said = "not asked JetStream's sync_interval: a client cannot see it, --nats-monitoring HOST:PORT can";
    assert!(unasked.contains(said), "{unasked}");
    let monitoring = fixture.servers().nats.monitoring();
    let doctor = ["doctor", "--json", "--nats-monitoring", &monitoring];
    // Two minutes, as nats-server has it by itself.
    assert_eq!(mend_by(&fixture, &doctor, "sync-interval").await, None);
    for too_short in ["0s", "100s"] {
        fixture.set("WALRELAY_RELAY_HOLD_BACK", too_short);
        let remedy = mend_by(&fixture, &doctor, "sync-interval").await;
        let seconds = number(&remedy.expect(too_short), "relay.hold_back = \"");
        fixture.set("WALRELAY_RELAY_HOLD_BACK", format!("{seconds}s"));
        assert_eq!(mend_by(&fixture, &doctor, "sync-interval").await, None);
    }

    let mute = ["doctor", "--nats-monitoring", "127.0.0.1:1"];
    let output = fixture.walrelay(&mute).await;
    assert_eq!(output.code, Some(3), "{}", output.stdout);
    let said = "not seen  monitoring of NATS: 127.0.0.1:1";
    assert!(output.stdout.contains(said), "{}", output.stdout);
}

/// A stream with one replica in a cluster, whose server goes away.
#[tokio::test]
async fn what_doctor_says_of_one_replica_in_a_cluster() {
    let mut cluster = LocalNatsCluster::start(&binaries(), 3).await.unwrap();
    let mut fixture = Fixture::bare().await;
    move_to_cluster(&mut fixture, &cluster).await;
    let subjects = [
        format!("{}.>", fixture.name),
        format!("walrelay.dead.{}", fixture.name),
    ];
    let mut config = by_hand(fixture.stream_name(), &subjects, 1);
    jetstream(&fixture).create_stream(&config).await.unwrap();
    fixture.setup().await;
    let remedy = mend(&fixture, "replicas")
        .await
        .expect("it is the only one");
    let edit = format!("nats stream edit {} --replicas=", config.name);
    let leader = async || {
        let info = stream_of(&fixture).await.cached_info().clone();
        info.cluster.expect("a cluster").leader.expect("a leader")
    };
    let alone = leader().await;
    let index = cluster
        .nodes()
        .iter()
        .position(|node| alone.ends_with(node.name()));
    let node = cluster.node(index.expect("one of the nodes"));
    node.stop().await.unwrap();
    let down = eventually("the others miss it", async || {
        mend(&fixture, "replicas")
            .await
            .filter(|mend| !mend.starts_with("nats"))
    })
    .await;
    assert!(down.starts_with("start the servers"), "{down}");
    node.start_again().await.unwrap();
    cluster.wait_for_leader().await.unwrap();

    config.num_replicas = usize::try_from(number(&remedy, &edit)).unwrap();
    eventually("the stream has three replicas", async || {
        let edited = jetstream(&fixture).update_stream(&config).await;
        edited.ok().map(|_| ())
    })
    .await;
    eventually("they have all of it", async || {
        mend(&fixture, "replicas").await.is_none().then_some(())
    })
    .await;
}

/// A relay of another version, which is still there.
#[tokio::test]
async fn what_doctor_says_of_a_relay_of_another_version() {
    let mut fixture = Fixture::new().await;
    fixture.insert(1, 1).await;
    let mut relay = fixture.run();
    fixture.holds(1).await;
    assert_eq!(mend(&fixture, "version").await, None);
    relay.kill();
    let subject = format!("walrelay.lane.{}.{}", fixture.stream_name(), fixture.name);
    let records = jetstream(&fixture).get_stream("WALRELAY").await.unwrap();
    let record = records
        .get_last_raw_message_by_subject(&subject)
        .await
        .unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
    assert_eq!(record["walrelay"], env!("CARGO_PKG_VERSION"));
    record["walrelay"] = "0.0.1".into();
    let stored = jetstream(&fixture)
        .publish(subject, record.to_string().into())
        .await;
    stored.unwrap().await.unwrap();
    let remedy = mend(&fixture, "version").await.expect("it is another one");
    assert!(remedy.contains("start it again"), "{remedy}");
    let relay = fixture.run();
    fixture.insert(2, 2).await;
    fixture.holds(2).await;
    assert_eq!(mend(&fixture, "version").await, None);
    relay.stop().await;
}
