//! The answer of a call to its endpoint, with its links and notices.

use bridge_model::{link_text, plain_text};
use bridge_protocol::{RawJson, jsonrpc::Reply, last_members};
use bridge_state::Artifact;
use serde::Serialize;

use crate::config::{Lang, Settings};

/// A finished call.
pub struct Answer {
    /// The server's answer, with paths relative to the folder.
    pub reply: Reply,
    /// The `result` within that answer.
    pub outcome: RawJson,
    /// The links to files that the call left on disk.
    pub files: Published,
    /// Notices for the model.
    pub notices: Vec<Notice>,
}

/// A notice for the model, given once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The child was restarted; its memory is lost, but these files remain.
    MemoryLost {
        /// The names of some of these files.
        files: Vec<String>,
        /// The number of other files.
        more: usize,
    },
    /// Files without a link, and why.
    NotLinked(Vec<String>),
    /// Paths outside of the folder to which the call claims to have written.
    Outside {
        /// Some of the paths, as written in the call.
        paths: Vec<String>,
        /// The number of other paths.
        more: usize,
    },
    /// The folder exceeds its limit.
    Full {
        /// Disk usage in bytes.
        used: u64,
        /// The limit.
        limit: DiskLimit,
    },
    /// The names of attached files that were copied into the folder for this call.
    Brought(Vec<String>),
    /// Attached files that could not be copied, and why.
    NotBrought(Vec<String>),
}

impl Notice {
    /// The text of the notice.
    pub fn text(&self, lang: Lang) -> String {
        match (self, lang) {
            (Self::MemoryLost { files, more }, Lang::En) => format!(
                "This server was restarted since the last call: its memory (open documents, ids, \
                 unsaved changes) was lost. Remaining files: {}. Open them again by name.",
                listed(files, *more, lang)
            ),
            (Self::MemoryLost { files, more }, Lang::Ja) => format!(
                "前回の呼び出しのあとでサーバーが再起動しました。メモリ上の内容（開いていた文書、ID、\
                 未保存の変更）は失われています。残っているファイル: {}。名前を指定して開き直してください。",
                listed(files, *more, lang)
            ),
            (Self::Brought(names), Lang::En) => format!(
                "Attached files were copied to this chat's folder: {}.",
                names.join(", ")
            ),
            (Self::Brought(names), Lang::Ja) => format!(
                "添付ファイルをこのチャットのフォルダーに置きました: {}。",
                names.join(", ")
            ),
            (Self::NotBrought(why), Lang::En) => format!(
                "Attached files that could not be copied to this chat's folder: {}.",
                why.join("; ")
            ),
            (Self::NotBrought(why), Lang::Ja) => format!(
                "このチャットのフォルダーに置けなかった添付ファイル: {}。",
                why.join("; ")
            ),
            (Self::Outside { paths, more }, Lang::En) => format!(
                "Not linked because they are outside this chat's folder: {}. Use a plain file \
                 name without a folder to get a link.",
                listed(paths, *more, lang)
            ),
            (Self::Outside { paths, more }, Lang::Ja) => format!(
                "このチャットのフォルダーの外にあるためリンクしていません: {}。\
                 リンクが必要な場合は、フォルダーを付けずにファイル名だけを指定してください。",
                listed(paths, *more, lang)
            ),
            (Self::Full { used, limit }, Lang::En) => {
                let why = limit.exceeded_by(*used);
                format!(
                    "{}: delete files before creating new ones.",
                    capitalized(&why)
                )
            }
            (Self::Full { used, limit }, Lang::Ja) => match limit.share {
                None => format!(
                    "このチャットのフォルダーは上限 {} バイトに対して {used} バイトを使っています\
                     （MCPO_MAX_WORKSPACE_BYTES）。新しいファイルを作る前に、ファイルを削除してください。",
                    limit.bytes
                ),
                Some(share) => format!(
                    "このユーザーのチャットとリンクは上限 {} バイトに対して {} バイトを使っています\
                     （MCPO_MAX_USER_BYTES。このチャットのフォルダーは {used} バイト）。\
                     新しいファイルを作る前に、ファイルを削除してください。",
                    share.bytes,
                    share.elsewhere.saturating_add(*used)
                ),
            },
            (Self::NotLinked(why), Lang::En) => format!("Not linked: {}.", why.join("; ")),
            (Self::NotLinked(why), Lang::Ja) => {
                format!("リンクを作成できなかったファイル: {}。", why.join("; "))
            }
        }
    }
}

fn capitalized(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

fn listed(files: &[String], more: usize, lang: Lang) -> String {
    let listed = files.join(", ");
    match (lang, more) {
        (Lang::En, 0) if files.is_empty() => "none".to_owned(),
        (Lang::Ja, 0) if files.is_empty() => "なし".to_owned(),
        (_, 0) => listed,
        (Lang::En, more) => format!("{listed}, and {more} more"),
        (Lang::Ja, more) => format!("{listed}, ほか {more} 件"),
    }
}

impl Answer {
    /// All notices as one text.
    pub fn notice(&self, lang: Lang) -> Option<String> {
        let texts = self.notices.iter().map(|notice| notice.text(lang));
        let texts: Vec<String> = texts.collect();
        // The texts contain file names, but no markup of the bridge.
        (!texts.is_empty()).then(|| plain_text(&texts.join(" ")))
    }
}

/// Whether the result reports that the tool failed.
pub fn is_error(result: &RawJson) -> bool {
    let [flag] = last_members(result.as_bytes(), ["isError"]).unwrap_or_default();
    flag.is_some_and(|raw| raw.get() == "true")
}

// The limit of a folder, which a notice and the errors of a full folder name.

/// The limit of a chat's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimit {
    /// In bytes.
    pub bytes: u64,
    /// Set if the limit is the rest of the user's share.
    pub share: Option<UsedShare>,
}

/// A user's share of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedShare {
    /// The bytes for all chats and links of the user.
    pub bytes: u64,
    /// The bytes of the links and the other chats.
    pub elsewhere: u64,
}

impl DiskLimit {
    /// The message for a folder of `used` bytes.
    pub fn exceeded_by(&self, used: u64) -> String {
        match self.share {
            Some(share) => format!(
                "this user's chats and links use {} bytes, more than the limit of {} for one user \
                 (MCPO_MAX_USER_BYTES); {used} of them are in this chat's folder",
                share.elsewhere.saturating_add(used),
                share.bytes,
            ),
            None => format!(
                "this chat's folder uses {used} bytes, more than the limit of {} \
                 (MCPO_MAX_WORKSPACE_BYTES)",
                self.bytes
            ),
        }
    }
}

// The links of a call.

/// The links of one call.
#[derive(Debug, Default)]
pub struct Published {
    /// One for each file.
    pub files: Vec<Artifact>,
    /// One for all of them, if there are several.
    pub archive: Option<Box<Artifact>>,
}

impl Published {
    /// All links, the archive's last.
    pub fn all(&self) -> impl Iterator<Item = &Artifact> {
        self.files.iter().chain(self.archive.as_deref())
    }

    /// A sentence with the links, in Markdown.
    pub fn message(&self, settings: &Settings) -> String {
        let link = |file| Link::to_artifact(file, settings).markdown();
        let links = self.files.iter().map(link).collect::<Vec<_>>().join(", ");
        let archive = self.archive.as_deref().map(link);
        let minutes = settings.files.expiry.as_secs().div_ceil(60);
        match (settings.lang, archive) {
            (Lang::En, None) => {
                format!("Download: {links} (the link expires in {minutes} minutes)")
            }
            (Lang::En, Some(zip)) => {
                format!(
                    "Download: {links}; all files: {zip} (the links expire in {minutes} minutes)"
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

/// A link in an answer.
#[derive(Debug, Clone, Serialize)]
pub struct Link {
    /// The file's name within the workspace.
    pub name: String,
    /// The URL of this version, without a key, until it expires.
    pub url: String,
    /// Size in bytes.
    pub size: u64,
    /// MIME type.
    pub mime_type: String,
    /// Expiry, in RFC 3339.
    pub expires_at: String,
}

impl Link {
    /// The link of an artifact below the public base URL.
    pub fn to_artifact(artifact: &Artifact, settings: &Settings) -> Self {
        let expires_at = artifact.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ");
        Self {
            name: artifact.path.clone(),
            url: artifact.url(&settings.listen.base_url.to_string()),
            size: artifact.size,
            mime_type: artifact.mime_type.clone(),
            expires_at: expires_at.to_string(),
        }
    }

    fn markdown(&self) -> String {
        format!("[{}]({})", link_text(&self.name), self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_true_is_an_error() {
        let is = |text: &str| is_error(&RawJson::parse(text.to_owned().into()).unwrap());
        assert!(is(r#"{"content":[],"isError":true}"#));
        assert!(!is(r#"{"content":[],"isError":false}"#));
        assert!(!is(r#"{"isError":"true"}"#));
        assert!(!is("[]"));
    }
}
