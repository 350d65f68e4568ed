//! Whose a token is. Open WebUI says so; it is asked once for many requests.

use std::time::{Duration, Instant};

use bridge_model::{UserInfo, UserToken};
use moka::{Expiry, future::Cache};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Failure, OpenWebUi, SILENCE, read};

/// A token that was taken back is believed no longer than this.
const BELIEVED: Duration = Duration::from_secs(60);
/// A flood of bad tokens asks once for each in this time.
const DISBELIEVED: Duration = Duration::from_secs(10);
/// Tokens that are remembered.
const REMEMBERED: u64 = 10_000;
/// Far more than an account takes.
const LONGEST: usize = 4 * 1024 * 1024;
/// The same bound as for ids in headers.
const LONGEST_ID: usize = 1024;

/// A user as Open WebUI knows him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// His id.
    pub id: Box<str>,
    /// Beside it.
    pub info: UserInfo,
}

/// What is known of tokens, by their hashes: SHA-256, so that no token lies in memory for long.
pub(super) struct Users(Cache<[u8; 32], Option<User>>);

impl Default for Users {
    fn default() -> Self {
        let cache = Cache::builder().max_capacity(REMEMBERED);
        Self(cache.expire_after(Belief).build())
    }
}

struct Belief;

impl Expiry<[u8; 32], Option<User>> for Belief {
    fn expire_after_create(
        &self,
        _: &[u8; 32],
        user: &Option<User>,
        _: Instant,
    ) -> Option<Duration> {
        Some(if user.is_some() {
            BELIEVED
        } else {
            DISBELIEVED
        })
    }
}

impl OpenWebUi {
    /// The user of a token; `None` where Open WebUI refuses it. Requests with one token that come
    /// together ask once. That Open WebUI could not be asked is not remembered.
    pub async fn user_of(&self, token: &UserToken) -> Result<Option<User>, Failure> {
        let hash: [u8; 32] = Sha256::digest(token.expose()).into();
        let asked = self.users.0.try_get_with(hash, self.ask_user(token)).await;
        asked.map_err(|failure| Failure::clone(&failure))
    }

    async fn ask_user(&self, token: &UserToken) -> Result<Option<User>, Failure> {
        #[derive(Deserialize)]
        struct Account {
            id: Box<str>,
            name: Option<Box<str>>,
            email: Option<Box<str>>,
            role: Option<Box<str>>,
        }
        let ask = async |path: &[&str]| {
            let request = self.ask(Method::GET, self.at(path), token)?;
            self.send("user", request, SILENCE).await
        };
        let asked = match ask(&["api", "v1", "auths", ""]).await {
            // That is for people who are signed in. Tokens of automations and sub-agents, and API
            // keys, learn of whom they are where users set their status.
            Err(Failure::Refused(StatusCode::FORBIDDEN)) => {
                ask(&["api", "v1", "users", "user", "status"]).await
            }
            asked => asked,
        };
        let response = match asked {
            Ok(response) => response,
            Err(failure) if failure.is_about_token() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let body = read(response, LONGEST).await?;
        let account: Account = serde_json::from_slice(&body).map_err(|_| Failure::Unreadable)?;
        let id = account.id;
        if id.trim().is_empty() || id.len() > LONGEST_ID || id.contains(char::is_control) {
            return Err(Failure::Unreadable);
        }
        // Who waits for an administrator's yes may not use anything yet.
        if !matches!(account.role.as_deref(), Some("user" | "admin")) {
            return Ok(None);
        }
        let filled = |text: Option<Box<str>>| text.filter(|text| !text.is_empty());
        let info = UserInfo {
            name: filled(account.name),
            email: filled(account.email),
            role: filled(account.role),
            groups: Vec::new(),
        };
        Ok(Some(User { id, info }))
    }
}
