//! A teacher publishes a lesson: the change and its event, in one transaction.
//!
//! ```text
//! DATABASE_URL=postgres://localhost/app cargo run --example publish_lesson -- "Fractions, part two"
//! walrelay tail        # in another terminal: shows it a millisecond later
//! ```

use anyhow::Context as _;
use tokio_postgres::NoTls;
use uuid::Uuid;
use walrelay::event::teaching::LessonPublished;
use walrelay::outbox::Outbox;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let title = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "Fractions, part two".to_owned());
    let url =
        std::env::var("DATABASE_URL").context("set DATABASE_URL to the application's database")?;
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute(
            "create table if not exists lessons (id uuid primary key, teacher_id uuid, title text)",
        )
        .await?;

    let event = LessonPublished::new(Uuid::now_v7(), Uuid::now_v7(), &*title);
    let transaction = client.transaction().await?;
    transaction
        .execute(
            "insert into lessons values ($1, $2, $3)",
            &[&event.lesson_id, &event.teacher_id, &event.title],
        )
        .await?;
    Outbox::default().add_event(&transaction, &event).await?;
    // From here on both are true, or neither: nothing was sent to a broker that a rollback could not take back.
    transaction.commit().await?;

    println!(
        "published lesson {} as event {}",
        event.lesson_id, event.event_id
    );
    Ok(())
}
