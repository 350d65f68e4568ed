//! Who reaches the bridge, and who is believed.

use clap::{ArgAction, Args};

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "HTTP")]
pub(in crate::config::settings) struct ListenArgs {
    /// Address to listen on; beyond loopback an API key is needed
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "MCPO_HOST",
        default_value = "127.0.0.1"
    )]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one
    #[arg(
        long,
        short,
        value_name = "PORT",
        env = "MCPO_PORT",
        default_value = "8080"
    )]
    pub port: Option<String>,
    /// The front of download links, as the user's browser reaches the bridge; `/` makes links
    /// relative to the page's origin
    /// [default: http://localhost:PORT; https with a certificate]
    #[arg(long, value_name = "URL", env = "MCPO_BASE_URL")]
    pub base_url: Option<String>,
    /// In front of every route, such as `/mcpo` [default: none]
    #[arg(long, value_name = "PATH", env = "MCPO_PATH_PREFIX")]
    pub path_prefix: Option<String>,
    /// What a proxy takes off the front of paths before they come here, such as `/tools`: documents
    /// name it, and requests that still have it are served, too [default: none]
    #[arg(long, value_name = "PATH", env = "MCPO_ROOT_PATH")]
    pub root_path: Option<String>,
    /// Serve HTTPS with this certificate chain (PEM); needs the key. When the files change, new
    /// connections get what is in them [default: none]
    #[arg(long, short = 't', value_name = "FILE", env = "MCPO_SSL_CERTFILE")]
    pub ssl_certfile: Option<String>,
    /// The certificate's private key (PEM, without a passphrase) [default: none]
    #[arg(long, short = 'K', value_name = "FILE", env = "MCPO_SSL_KEYFILE")]
    pub ssl_keyfile: Option<String>,
    /// Host names that requests may be addressed to, beside loopback's, the listening address
    /// and the base URL's (comma-separated, repeatable); `*` allows any [default: none]
    #[arg(long, value_name = "HOSTS", env = "MCPO_ALLOWED_HOSTS", action = ArgAction::Append)]
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may call the bridge, such as `https://chat.example.com`
    /// (comma-separated, repeatable); `*` allows any [default: none]
    #[arg(
        long, value_name = "ORIGINS", env = "MCPO_CORS_ALLOW_ORIGINS", action = ArgAction::Append
    )]
    pub cors_allow_origins: Vec<String>,
    /// The largest request body, in bytes or with a unit (KiB, MiB, GiB, KB, MB, GB)
    #[arg(
        long,
        value_name = "BYTES",
        env = "MCPO_MAX_BODY_BYTES",
        default_value = "32MiB"
    )]
    pub max_body_bytes: Option<String>,
    /// JSON values in one request body, members of objects and lists counted one by one
    #[arg(
        long,
        value_name = "COUNT",
        env = "MCPO_MAX_BODY_VALUES",
        default_value = "1000000"
    )]
    pub max_body_values: Option<String>,
    /// Memory for all request bodies together, from their first byte until their calls run, in bytes
    /// or with a unit; a body that finds none waits, and then is refused with 503
    /// [default: an eighth of the memory, a container's limit counted]
    #[arg(long, value_name = "BYTES", env = "MCPO_BODY_MEMORY")]
    pub body_memory: Option<String>,
    /// Of this, what the bodies of one user take; a single body may take more, and then his others
    /// wait for it. Where no user is known, callers with one key are one, and those from one address
    /// [default: three quarters]
    #[arg(long, value_name = "BYTES", env = "MCPO_BODY_MEMORY_PER_USER")]
    pub body_memory_per_user: Option<String>,
    /// Connections at the same time; over it the longest silent ones are closed
    /// [default: three quarters of the open files that children leave, at most 16384]
    #[arg(long, value_name = "COUNT", env = "MCPO_MAX_CONNECTIONS")]
    pub max_connections: Option<String>,
    /// How long a client may take to send a request's head, TLS included
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_HEAD_TIMEOUT",
        default_value = "20"
    )]
    pub head_timeout: Option<String>,
    /// How long a client may be silent within a request's body. The whole may take this long, and a
    /// second more for each KiB that came: slow uploads work
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_BODY_TIMEOUT",
        default_value = "30"
    )]
    pub body_timeout: Option<String>,
    /// How long a connection is kept without a request, and a client that does not read its answer
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MCPO_KEEP_ALIVE",
        default_value = "75"
    )]
    pub keep_alive: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Documents")]
pub(in crate::config::settings) struct DocumentArgs {
    /// The title of the document at the root [default: mcpo-bridge, or a single server's own]
    #[arg(long, short, value_name = "TEXT", env = "MCPO_NAME")]
    pub name: Option<String>,
    /// The description of the document at the root [default: one sentence, or a single server's own]
    #[arg(long, short, value_name = "TEXT", env = "MCPO_DESCRIPTION")]
    pub description: Option<String>,
    /// How operations are called: tool (as the tool) or mcpo (`tool_NAME_post`), for installations
    /// that filter on mcpo's names
    #[arg(
        long,
        value_name = "STYLE",
        env = "MCPO_OPERATION_IDS",
        default_value = "tool"
    )]
    pub operation_ids: Option<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Access")]
pub(in crate::config::settings) struct AccessArgs {
    /// API keys: KEY, or NAME:KEY for several (comma-separated, repeatable). Prefer the variable
    /// or the file: a command line is readable by others on the machine [default: none]
    #[arg(
        long, short = 'k', value_name = "KEYS", env = "MCPO_API_KEY", hide_env_values = true,
        action = ArgAction::Append
    )]
    pub api_key: Vec<String>,
    /// A file with the API keys, separated by commas or line ends [default: none]
    #[arg(long, value_name = "FILE", env = "MCPO_API_KEY_FILE")]
    pub api_key_file: Option<String>,
    /// Ask for the key on documents (openapi.json, docs) too
    #[arg(
        long, value_name = "BOOL", env = "MCPO_STRICT_AUTH", default_value = "false",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub strict_auth: Option<String>,
    /// Listen beyond loopback without an API key: anybody who reaches the port may call every tool
    #[arg(
        long, value_name = "BOOL", env = "MCPO_ALLOW_UNAUTHENTICATED", default_value = "false",
        default_missing_value = "true", num_args = 0..=1, require_equals = true
    )]
    pub allow_unauthenticated: Option<String>,
    /// Open WebUI's `FORWARD_USER_INFO_HEADER_JWT_SECRET`: with it only signed user tokens
    /// (HS256) are believed, and plain user headers are ignored [default: none]
    #[arg(
        long,
        value_name = "SECRET",
        env = "MCPO_JWT_SECRET",
        hide_env_values = true
    )]
    pub jwt_secret: Option<String>,
    /// A file with that secret [default: none]
    #[arg(long, value_name = "FILE", env = "MCPO_JWT_SECRET_FILE")]
    pub jwt_secret_file: Option<String>,
    /// Networks whose plain user headers are believed without a key, as addresses or CIDR
    /// (comma-separated, repeatable); `none` trusts no address
    #[arg(
        long, value_name = "NETWORKS", env = "MCPO_TRUSTED_PROXIES", action = ArgAction::Append,
        default_value = "127.0.0.0/8,::1/128"
    )]
    pub trusted_proxies: Vec<String>,
}

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Identity headers (where Open WebUI's were renamed)")]
#[expect(clippy::struct_field_names, reason = "a field is named as its flag")]
pub(in crate::config::settings) struct HeaderArgs {
    /// Carries the API key where `Authorization` is somebody else's
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_KEY",
        default_value = "X-MCPO-Key"
    )]
    pub header_key: Option<String>,
    /// Names the user
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_ID",
        default_value = "X-OpenWebUI-User-Id"
    )]
    pub header_user_id: Option<String>,
    /// The user's display name, percent-encoded
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_NAME",
        default_value = "X-OpenWebUI-User-Name"
    )]
    pub header_user_name: Option<String>,
    /// The user's mail address
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_EMAIL",
        default_value = "X-OpenWebUI-User-Email"
    )]
    pub header_user_email: Option<String>,
    /// The user's role
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_ROLE",
        default_value = "X-OpenWebUI-User-Role"
    )]
    pub header_user_role: Option<String>,
    /// The user's groups, by name or id: `{{USER_GROUPS}}` in a custom header of the connection
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_GROUPS",
        default_value = "X-OpenWebUI-User-Groups"
    )]
    pub header_user_groups: Option<String>,
    /// The signed token that stands for id, name, address and role
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_USER_JWT",
        default_value = "X-OpenWebUI-User-Jwt"
    )]
    pub header_user_jwt: Option<String>,
    /// Names the chat
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_CHAT_ID",
        default_value = "X-OpenWebUI-Chat-Id"
    )]
    pub header_chat_id: Option<String>,
    /// Names the message
    #[arg(
        long,
        value_name = "NAME",
        env = "MCPO_HEADER_MESSAGE_ID",
        default_value = "X-OpenWebUI-Message-Id"
    )]
    pub header_message_id: Option<String>,
}
