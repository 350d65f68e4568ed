//! The links of a call.

use bridge_model::link_text;
use bridge_state::Artifact;
use serde::Serialize;

use crate::config::{Lang, Settings};

/// The links of one call.
#[derive(Debug, Default)]
pub struct Published {
    /// One for each file.
    pub files: Vec<Artifact>,
    /// One for all of them, where there are several.
    pub archive: Option<Box<Artifact>>,
}

impl Published {
    /// All links, the archive's last.
    pub fn all(&self) -> impl Iterator<Item = &Artifact> {
        self.files.iter().chain(self.archive.as_deref())
    }

    /// A ready sentence with the links, as markdown.
    pub fn message(&self, settings: &Settings) -> String {
        let links: Vec<String> = self
            .files
            .iter()
            .map(|file| Link::of(file, settings).markdown())
            .collect();
        let links = links.join(", ");
        let archive = self
            .archive
            .as_ref()
            .map(|file| Link::of(file, settings).markdown());
        let minutes = settings.files.expiry.as_secs().div_ceil(60);
        match (settings.lang, archive) {
            (Lang::En, None) => {
                format!("Download: {links} (the link expires in {minutes} minutes)")
            }
            (Lang::En, Some(zip)) => {
                format!(
                    "Download: {links}; all together: {zip} (the links expire in {minutes} minutes)"
                )
            }
            (Lang::Ja, None) => {
                format!("ダウンロード: {links}（リンクの有効期限は {minutes} 分です）")
            }
            (Lang::Ja, Some(zip)) => format!(
                "ダウンロード: {links}、まとめて: {zip}（リンクの有効期限は {minutes} 分です）"
            ),
        }
    }
}

/// A link as callers see it.
#[derive(Debug, Clone, Serialize)]
pub struct Link {
    /// The file's name within the workspace.
    pub name: String,
    /// Opens this version of it, without a key, until it expires.
    pub url: String,
    /// Bytes.
    pub size: u64,
    /// MIME type.
    pub mime_type: String,
    /// RFC 3339.
    pub expires_at: String,
}

impl Link {
    /// The link of an artifact below the public base URL.
    pub fn of(artifact: &Artifact, settings: &Settings) -> Self {
        Self {
            name: artifact.path.clone(),
            url: artifact.url(&settings.listen.base_url.to_string()),
            size: artifact.size,
            mime_type: artifact.mime_type.clone(),
            expires_at: artifact
                .expires_at
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
        }
    }

    fn markdown(&self) -> String {
        format!("[{}]({})", link_text(&self.name), self.url)
    }
}
