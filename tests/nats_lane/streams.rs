//! Streams as setup and teardown see them.

use walrelay::nats::address::NatsAuth;
use walrelay::nats::admin::Admin;
use walrelay::nats::stream::{
    LANE_RECORD_STREAM, StreamError, StreamPlan, StreamSettings, StreamSeverity, create, delete,
    find, plan, plan_lane_records,
};

use crate::authentication::settings;
use crate::server::Server;

fn wanted(slot: &str) -> StreamSettings {
    let subjects = vec!["outbox.>".to_owned(), format!("walrelay.dead.{slot}")];
    StreamSettings {
        name: "OUTBOX".into(),
        subjects: subjects.clone(),
        subjects_to_create: subjects,
        slot: slot.into(),
        shared: false,
        num_replicas: 1,
    }
}

#[tokio::test]
async fn creates_what_is_missing_and_never_edits() {
    let server = Server::start("").await;
    let client = Admin::connect(&settings(&server, &NatsAuth::None))
        .await
        .expect("connected");
    let StreamPlan::Create(config) = plan(&client, &wanted("s")).await.expect("a plan") else {
        panic!("there is no stream yet")
    };
    let created = create(&client, &config).await.expect("created");
    assert_eq!(created.config.subjects, ["outbox.>", "walrelay.dead.s"]);
    assert!(
        created.config.allow_batched && created.config.allow_atomic && created.config.allow_direct
    );
    assert_eq!(
        (created.config.storage.as_str(), created.config.max_msg_size),
        ("file", -1)
    );
    let again = create(&client, &config)
        .await
        .expect("the same again is no error");
    assert_eq!(again.created, created.created);
    let StreamPlan::Exists { findings, .. } = plan(&client, &wanted("s")).await.expect("a plan")
    else {
        panic!("it exists now")
    };
    assert_eq!(findings, []);
    let StreamPlan::Exists { info, findings } =
        plan(&client, &wanted("other")).await.expect("a plan")
    else {
        panic!("it exists for every slot")
    };
    assert_eq!(
        (findings.len(), findings[0].severity),
        (1, StreamSeverity::Blocks)
    );
    assert!(
        findings[0]
            .command
            .as_deref()
            .is_some_and(|command| command.contains("walrelay.dead.other"))
    );
    assert_eq!(info.config, created.config);
}

#[tokio::test]
async fn the_records_have_a_stream_of_their_own() {
    let server = Server::start("").await;
    let client = Admin::connect(&settings(&server, &NatsAuth::None))
        .await
        .expect("connected");
    let StreamPlan::Create(config) = plan_lane_records(&client, 1).await.expect("a plan") else {
        panic!("there is no stream yet")
    };
    let created = create(&client, &config).await.expect("created");
    assert_eq!(
        (
            created.config.max_msgs_per_subject,
            created.config.max_age.is_zero()
        ),
        (1, true)
    );
    let StreamPlan::Exists { findings, .. } = plan_lane_records(&client, 1).await.expect("a plan")
    else {
        panic!("it exists now")
    };
    assert_eq!(findings, []);
    assert!(
        delete(&client, LANE_RECORD_STREAM)
            .await
            .expect("an answer")
    );
    assert!(
        !delete(&client, LANE_RECORD_STREAM)
            .await
            .expect("an answer")
    );
    assert_eq!(
        find(&client, LANE_RECORD_STREAM).await.expect("an answer"),
        None
    );
}

#[tokio::test]
async fn names_that_no_stream_has_are_refused() {
    let server = Server::start("").await;
    let client = Admin::connect(&settings(&server, &NatsAuth::None))
        .await
        .expect("connected");
    assert!(matches!(
        find(&client, "a.b").await,
        Err(StreamError::Name(_))
    ));
}
