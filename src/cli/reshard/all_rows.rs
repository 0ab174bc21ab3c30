//! Where the lane of all rows publishes, for whoever has the configuration of the shares alone.
//!
//! In: that configuration. Out: stream and subject, by what NATS has of the lane, else by the names that its shares have. Guarantee:
//! reads only.

use crate::nats::admin::Admin;
use crate::nats::stream;
use crate::pipeline::reshard::Undivided;
use crate::pipeline::subject::SubjectTemplate;
use crate::relay::lane_client::{LaneError, lane_records};
use crate::relay::settings::Settings;

/// None where all lanes have one stream. A NATS that tells nothing leaves what the configuration says.
pub(in crate::cli) async fn of_all_rows(settings: &Settings) -> Option<Undivided> {
    let guessed = settings.postgres.undivided.clone()?;
    if guessed.is_told {
        return Some(guessed);
    }
    match told(settings, &guessed).await {
        Ok(Some(told)) => Some(told),
        Ok(None) => Some(guessed),
        Err(error) => {
            tracing::debug!("where the lane of all rows publishes is not told: {error:#}");
            Some(guessed)
        }
    }
}

async fn told(settings: &Settings, guessed: &Undivided) -> anyhow::Result<Option<Undivided>> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    let slot = settings.postgres.any_share().slot(None);
    let records = match lane_records(&nats, &slot).await {
        Err(LaneError::NoStream(_)) => return Ok(None),
        records => records?,
    };
    let Some(record) = records.into_iter().find(|record| record.moved.is_none()) else {
        return Ok(None);
    };
    let Some(info) = stream::find(&nats, &record.stream).await? else {
        return Ok(None);
    };
    let mut held = info.config.subjects.iter();
    let held = held.find(|held| !held.starts_with("walrelay."));
    let subject = held.and_then(|held| under(held, &guessed.subject));
    Ok(Some(Undivided {
        stream: record.stream,
        is_told: subject.is_some(),
        subject: subject.unwrap_or_else(|| guessed.subject.clone()),
        is_own: false,
    }))
}

/// The template of a stream that takes `held`, with the placeholders of another one.
fn under(held: &str, template: &str) -> Option<String> {
    let root = held.trim_end_matches(['>', '*', '.']);
    let template: SubjectTemplate = template.parse().ok()?;
    let subject = match root.is_empty() {
        true => return None,
        false => format!("{root}.{}", template.under_root()),
    };
    subject.parse::<SubjectTemplate>().ok().map(|_| subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_put_under_what_the_stream_takes() {
        let template = "divided.{event_type}";
        let expected = Some("outbox.{event_type}".to_owned());
        assert_eq!(under("outbox.>", template), expected);
        assert_eq!(under("outbox.*", template), expected);
        assert_eq!(under(">", template), None);
    }
}
