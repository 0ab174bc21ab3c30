//! Several nats-servers that form one JetStream cluster.
//!
//! In: how many. Out: a [`LocalNatsCluster`] that has elected its meta leader, so that streams can be made; each node
//! can be stopped, killed and paused by itself.

use std::time::{Duration, Instant};

use super::nats::PORT_TRIES_MAX;
use super::process::{START_LIMIT, free_port, port_taken};
use super::{LocalError, LocalNats, NatsOptions, ServerBinaries};

/// How often the nodes are asked whom they follow: an election takes seconds.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A JetStream cluster of one's own; gone when dropped.
#[derive(Debug)]
pub struct LocalNatsCluster {
    nodes: Vec<LocalNats>,
}

impl LocalNatsCluster {
    /// Starts `size` nodes and waits for their meta leader.
    ///
    /// # Errors
    /// As [`LocalNats::start`]; [`LocalError::Start`] also when no leader is elected within a minute.
    ///
    /// # Panics
    /// Outside a tokio runtime whose timer is enabled.
    pub async fn start(
        binaries: &ServerBinaries,
        size: usize,
    ) -> Result<LocalNatsCluster, LocalError> {
        LocalNatsCluster::start_with(binaries, size, NatsOptions::default()).await
    }

    /// As [`LocalNatsCluster::start`], with the same options for each node.
    ///
    /// # Errors
    /// As [`LocalNatsCluster::start`].
    ///
    /// # Panics
    /// As [`LocalNatsCluster::start`].
    pub async fn start_with(
        binaries: &ServerBinaries,
        size: usize,
        options: NatsOptions,
    ) -> Result<LocalNatsCluster, LocalError> {
        let mut tries_left = PORT_TRIES_MAX;
        loop {
            tries_left -= 1;
            match LocalNatsCluster::launch(binaries, size, &options).await {
                Err(error) if port_taken(&error) && tries_left > 0 => {}
                result => return result,
            }
        }
    }

    async fn launch(
        binaries: &ServerBinaries,
        size: usize,
        options: &NatsOptions,
    ) -> Result<LocalNatsCluster, LocalError> {
        let ports = (0..size)
            .map(|_| free_port())
            .collect::<Result<Vec<u16>, LocalError>>()?;
        let routes: Vec<String> = ports
            .iter()
            .map(|port| format!("\"nats://127.0.0.1:{port}\""))
            .collect();
        let routes = routes.join(", ");
        let mut nodes = Vec::with_capacity(size);
        for (index, port) in ports.iter().enumerate() {
            let block = format!(
                "cluster {{\n  name: local\n  listen: \"127.0.0.1:{port}\"\n  routes: [{routes}]\n}}"
            );
            let mut node =
                LocalNats::prepare(binaries, options.clone(), format!("node-{index}"), block)?;
            node.launch().await?;
            nodes.push(node);
        }
        let cluster = LocalNatsCluster { nodes };
        cluster.wait_for_leader().await?;
        Ok(cluster)
    }

    /// Waits until all nodes that run follow the same meta leader, and it runs.
    ///
    /// # Errors
    /// [`LocalError::Start`] when they do not within a minute.
    pub async fn wait_for_leader(&self) -> Result<usize, LocalError> {
        let begin = Instant::now();
        loop {
            if let Some(leader) = self.leader().await {
                return Ok(leader);
            }
            if begin.elapsed() > START_LIMIT {
                let reason = format!("no meta leader after {}s", START_LIMIT.as_secs());
                let log = self
                    .nodes
                    .iter()
                    .map(LocalNats::log_tail)
                    .collect::<Vec<_>>()
                    .join("\n");
                return Err(LocalError::Start {
                    server: "the NATS cluster".to_owned(),
                    reason,
                    log,
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The index of the meta leader, when all nodes that run agree on it and it runs.
    pub async fn leader(&self) -> Option<usize> {
        let mut agreed: Option<usize> = None;
        for index in 0..self.nodes.len() {
            if self.nodes[index].pid().is_none() {
                continue;
            }
            let answer = self.nodes[index].monitor("/jsz").await?;
            let name = answer.pointer("/meta_cluster/leader")?.as_str()?;
            let leader = self.nodes.iter().position(|node| node.name() == name)?;
            if agreed.is_some_and(|agreed| agreed != leader) {
                return None;
            }
            agreed = Some(leader);
        }
        let leader = agreed?;
        self.nodes[leader].pid().is_some().then_some(leader)
    }

    /// The nodes, in the order of their names.
    pub fn nodes(&self) -> &[LocalNats] {
        &self.nodes
    }

    /// One node.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&mut self, index: usize) -> &mut LocalNats {
        &mut self.nodes[index]
    }

    /// The URLs of all nodes, separated by commas, as clients take them.
    pub fn url(&self) -> String {
        self.nodes
            .iter()
            .map(LocalNats::url)
            .collect::<Vec<_>>()
            .join(",")
    }
}
