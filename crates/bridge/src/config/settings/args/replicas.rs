//! Several bridges on one jobs folder.

use clap::Args;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Several bridges on one jobs folder")]
pub(in crate::config::settings) struct ReplicaArgs {
    /// Where the other bridges reach this one: an address or a name, with a port if it is not the
    /// one that is listened on [default: `POD_IP`, else the listening address, else the host's own]
    #[arg(long, value_name = "ADDRESS", env = "MCPO_PEER_ADDRESS")]
    pub peer_address: Option<String>,
    /// The secret that bridges prove themselves to each other with, the same for all
    /// [default: one that the first of them leaves in the jobs folder]
    #[arg(
        long,
        value_name = "SECRET",
        env = "MCPO_PEER_KEY",
        hide_env_values = true
    )]
    pub peer_key: Option<String>,
    /// A file with that secret [default: none]
    #[arg(long, value_name = "FILE", env = "MCPO_PEER_KEY_FILE")]
    pub peer_key_file: Option<String>,
    /// How long a bridge may be silent before others take its chats over. It renews four times
    /// within that
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_LEASE_TTL",
        default_value = "20"
    )]
    pub lease_ttl: Option<String>,
    /// How long a bridge that is told to stop still takes requests and hands them to the others,
    /// so that balancers notice; without others it stops listening at once
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_DRAIN_DELAY",
        default_value = "5"
    )]
    pub drain_delay: Option<String>,
}
