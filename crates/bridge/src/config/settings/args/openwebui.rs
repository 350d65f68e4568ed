//! Open WebUI, where the bridge works together with it.

use clap::Args;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Open WebUI")]
pub(in crate::config::settings) struct OpenWebUiArgs {
    /// Where the bridge reaches Open WebUI, such as `http://open-webui:8080`. With it a connection
    /// may send the user's own token (auth type session) and our key in `X-MCPO-Key`: attached files
    /// come into the chat's folder, and new files show in the chat [default: none]
    #[arg(long, value_name = "URL", env = "MCPO_OPENWEBUI_URL")]
    pub openwebui_url: Option<String>,
}
