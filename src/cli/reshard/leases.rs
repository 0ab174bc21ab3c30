//! The leases of the lanes that a run changes.
//!
//! In: the lanes that there are and shall be. Out: their leases, or who has one. Guarantees: nobody publishes by itself for one of these
//! lanes meanwhile: it would publish rows that are another lane's by then, whose own command publishes them too. Of a command that is
//! taken for ended nothing is stored any more.

use std::collections::BTreeSet;

use futures_util::future::try_join_all;

use super::{Resharding, counted};
use crate::bulk::holder::RESHARD;
use crate::bulk::lease::{Lease, LeaseError};
use crate::bulk::place;
use crate::cli::{command_line, stderr};
use crate::nats::admin::Admin;
use crate::nats::stream;
use crate::pipeline::reshard::{Switch, lanes_of};
use crate::relay::lane_client::LaneClient;

/// Those of one run.
pub(super) struct Leases {
    nats: Admin,
    held: Vec<Held>,
}

struct Held {
    part: Option<u32>,
    lease: Lease,
}

impl Leases {
    /// The run goes on with this, for those who look from elsewhere.
    pub(super) fn begin(&self, stage: &str) {
        if let Some(first) = self.held.first() {
            first.lease.working().begin(stage);
        }
    }

    /// Makes sure that they are ours now.
    ///
    /// # Errors
    /// One is not.
    pub(super) async fn renew(&self) -> Result<(), LeaseError> {
        try_join_all(self.held.iter().map(|it| it.lease.renew())).await?;
        Ok(())
    }

    /// Gives them back.
    pub(super) async fn release(self) {
        for held in self.held {
            held.lease.release().await;
        }
    }
}

impl Resharding<'_> {
    /// Takes them, for the only run that is at work.
    ///
    /// # Errors
    /// Another command has one of them.
    pub(super) async fn lease(&self) -> anyhow::Result<Leases> {
        let Switch { from, to } = self.switch;
        let parts = lanes_of(from)
            .chain(lanes_of(to))
            .chain(self.division.parts());
        let parts: BTreeSet<Option<u32>> = parts.collect();
        let nats = Admin::connect(&self.shares[0].nats.connection).await?;
        let mut lanes = Vec::new();
        for part in &parts {
            let lane = self.lane(*part);
            let client = LaneClient::new(&nats, &lane.nats.stream, &lane.postgres.slot)?;
            lanes.push(client);
        }
        let leases = Lease::take_all_alone(&lanes, RESHARD, &command_line::typed()).await?;
        let held = parts.into_iter().zip(leases);
        let held = held.map(|(part, lease)| Held { part, lease });
        Ok(Leases {
            nats,
            held: held.collect(),
        })
    }

    /// Shuts out commands that had one of them before, and have not given it back.
    ///
    /// # Errors
    /// A stream takes no message.
    pub(super) async fn shut_out(&self, leases: &Leases) -> anyhow::Result<()> {
        let nats = &leases.nats;
        let left = leases.held.iter().filter(|it| it.lease.is_unfenced());
        let shut_out = left.map(async |Held { part, lease }| {
            // One that shall be has none yet, unless it had one before.
            match stream::find(nats, lease.lane().stream_name()).await? {
                Some(_) => place::shut_out(self.lane(*part), nats, lease).await,
                None => Ok(()),
            }
        });
        try_join_all(shut_out).await?;
        self.tell_of_left(leases);
        Ok(())
    }

    /// Says which command was killed before it had done its work: of a lane that is no more, nobody tells it any more.
    fn tell_of_left(&self, leases: &Leases) {
        let mut told = BTreeSet::new();
        let left = leases.held.iter().flat_map(|it| it.lease.left());
        for work in left {
            if told.insert((work.since.clone(), work.process)) {
                stderr::line(format_args!(
                    "{}; run it again behind this, with the configuration of {}",
                    work.what(),
                    counted(self.switch.to)
                ));
            }
        }
    }
}
