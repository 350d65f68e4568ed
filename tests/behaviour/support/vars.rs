//! The environment variables that tests set, in one place. Times are seconds, sizes bytes.

pub const ALLOW_UNAUTHENTICATED: &str = "MCPO_ALLOW_UNAUTHENTICATED";
pub const API_KEY: &str = "MCPO_API_KEY";
pub const BASE_URL: &str = "MCPO_BASE_URL";
pub const CLEANUP_INTERVAL: &str = "MCPO_STATEFUL_CLEANUP_INTERVAL";
pub const FILE_EXPIRY: &str = "MCPO_FILE_EXPIRY";
pub const FILE_RETENTION: &str = "MCPO_FILE_RETENTION";
pub const HOST: &str = "MCPO_HOST";
pub const JWT_SECRET: &str = "MCPO_JWT_SECRET";
pub const KILL_GRACE: &str = "MCPO_KILL_GRACE";
pub const LANG: &str = "MCPO_LANG";
pub const LOG_LEVEL: &str = "MCPO_LOG_LEVEL";
pub const MAX_BODY_BYTES: &str = "MCPO_MAX_BODY_BYTES";
pub const MAX_CONCURRENT: &str = "MCPO_MAX_CONCURRENT";
pub const MAX_MESSAGE_BYTES: &str = "MCPO_MAX_MESSAGE_BYTES";
pub const MAX_STARTS: &str = "MCPO_MAX_STARTS";
pub const MAX_TOTAL_PROCESSES: &str = "MCPO_STATEFUL_MAX_TOTAL_PROCESSES";
pub const MAX_WORKSPACE_BYTES: &str = "MCPO_MAX_WORKSPACE_BYTES";
pub const MAX_WORKSPACE_FILES: &str = "MCPO_MAX_WORKSPACE_FILES";
pub const MIN_FREE_DISK_BYTES: &str = "MCPO_MIN_FREE_DISK_BYTES";
pub const QUEUE_TIMEOUT: &str = "MCPO_QUEUE_TIMEOUT";
pub const SHUTDOWN_GRACE: &str = "MCPO_SHUTDOWN_GRACE";
pub const START_TIMEOUT: &str = "MCPO_START_TIMEOUT";
pub const STATEFUL_ENABLED: &str = "MCPO_STATEFUL_ENABLED";
pub const TIMEOUT: &str = "MCPO_TIMEOUT";
