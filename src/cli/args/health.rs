//! Options of health checks.

use clap::Args;

/// How a sandbox's health is checked: the image's way with what these options say.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct HealthArgs {
    /// Check the sandbox's health with this command, by a shell
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time from one check to the next [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub health_interval: Option<String>,
    /// Time that a check may take [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Time from the start in which failures do not count [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub health_start_period: Option<String>,
    /// Time between checks in that time [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub health_start_interval: Option<String>,
    /// Do not check, whatever the image says
    #[arg(long)]
    pub no_healthcheck: bool,
}
