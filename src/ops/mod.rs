//! What operators see: logs, metrics, health, the status page.

mod history;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod otlp;
mod page;
mod runbook;

pub(crate) use page::bytes;
