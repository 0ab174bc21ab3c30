//! The replicas of a stream, edited while a relay publishes: nats-server swallows messages for a moment, and answers nothing.

use crate::halts::{lane, settings};
use std::time::Duration;

/// How long the lane takes to come to rest with events that are swallowed, and to how many replicas the stream is edited.
fn delay_by(num_replicas: usize) -> Duration {
    let mut lane = lane(settings());
    lane.commit(3);
    lane.rest();
    lane.pause(Duration::from_secs(10));
    let begun = lane.world.now;
    lane.world.broker.num_replicas = num_replicas;
    lane.world.broker.mute_until = begun + Duration::from_millis(500);
    lane.commit(1);
    lane.rest();
    lane.world.verify(false);
    assert_eq!(lane.world.failure, None);
    assert_eq!(lane.world.broker.events.published().len(), 8);
    lane.world.now - begun
}

#[test]
fn an_edit_of_the_replicas_does_not_cost_the_time_for_an_acknowledgement() {
    let timeout = settings().ack_timeout;
    assert!(delay_by(3) < timeout / 2);
    // Without a sign, the time must run out.
    assert!(delay_by(1) > timeout);
}
