//! Several artifacts as one zip with a link of its own.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write},
};

use bridge_model::LinkToken;
use bridge_state::{Artifact, ChatStore, Link, StoreError};
use jiff::{Timestamp, tz::TimeZone};
use zip::{CompressionMethod, DateTime, ZipWriter, write::SimpleFileOptions};

use super::{
    Place, PublishError, Publisher, RelativePath, paths,
    publish::{failed, read_blocks},
};

impl Publisher<'_> {
    /// Packs `artifacts` (valid ones of the workspace) into a zip named `name`. Entries keep their relative
    /// paths; if two have the same path, the later one gets a number. Over `max_bytes`:
    /// [`PublishError::TooLarge`].
    pub fn publish_archive(
        &self,
        name: &str,
        artifacts: &[Artifact],
    ) -> Result<Artifact, PublishError> {
        let total = artifacts.iter().map(|artifact| artifact.size).sum::<u64>();
        if total > self.max_bytes {
            return Err(PublishError::TooLarge {
                name: name.to_owned(),
                limit: self.max_bytes,
            });
        }
        let (store, now) = (self.store, self.store.now());
        let not_found = |name: &str| PublishError::NotFound(name.to_owned());
        let path = RelativePath::parse(name).map_err(|_| not_found(name))?;
        let mut staged = store.blobs().stage()?;
        let mut zip = ZipWriter::new(staged.file());
        let mut taken = HashSet::new();
        for artifact in artifacts {
            let data = open_link(store, &artifact.token)?;
            let mut data = data.ok_or_else(|| not_found(&artifact.name))?;
            zip.start_file(unique(&artifact.path, &mut taken), options(artifact, now))
                .map_err(io::Error::from)
                .and_then(|()| read_blocks(&mut data, self.patience, |it| zip.write_all(it)))
                .map_err(failed(name))?;
        }
        let written = zip.finish().map_err(io::Error::from);
        written.and_then(Write::flush).map_err(failed(name))?;
        self.seal(staged, &Place::work(path))
    }
}

/// Opens the file of a link; `None` if it has expired or was revoked.
pub fn open_link(store: &ChatStore, token: &LinkToken) -> Result<Option<File>, StoreError> {
    match store.link(token)? {
        Link::Live(_, blob) => Ok(store.blobs().get(&blob, None)?.map(File::from)),
        Link::Gone(_) | Link::Unknown => Ok(None),
    }
}

fn options(artifact: &Artifact, now: Timestamp) -> SimpleFileOptions {
    let method = if paths::is_compressed(&artifact.mime_type) {
        CompressionMethod::Stored
    } else {
        CompressionMethod::Deflated
    };
    let time = DateTime::try_from(now.to_zoned(TimeZone::UTC).datetime());
    SimpleFileOptions::default()
        .compression_method(method)
        .large_file(artifact.size >= u64::from(u32::MAX))
        .last_modified_time(time.unwrap_or_default())
        .unix_permissions(0o644)
}

/// `a/b.txt`, then `a/b (2).txt`: compared without case, for users who unpack on Windows.
fn unique(path: &str, taken: &mut HashSet<String>) -> String {
    let name_at = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = path[name_at..].rfind('.').filter(|dot| *dot > 0);
    let (stem, extension) = path.split_at(dot.map_or(path.len(), |dot| name_at + dot));
    let mut candidate = path.to_owned();
    let mut number = 2_usize;
    while !taken.insert(candidate.to_lowercase()) {
        candidate = format!("{stem} ({number}){extension}");
        number += 1;
    }
    candidate
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs::{self, File},
        io::Read,
        time::Duration,
    };

    use super::*;
    use crate::artifacts::{Limits, Patience, Snapshot};
    use bridge_state::Held;
    use bridge_state::testing::{Folder, alice, new_chat};

    #[test]
    fn a_zip_holds_every_version_under_its_path() {
        let folder = Folder::new();
        let store = folder.open();
        let Held { job, lease, .. } = store.create(&new_chat()).unwrap();
        fs::create_dir(job.work().join("グラフ")).unwrap();
        let patience = Patience::endless();
        let publisher = Publisher {
            store: &store,
            job: &job,
            lease: &lease,
            principal: &alice(),
            server: &"excel".parse().unwrap(),
            tool: "write",
            ttl: Duration::from_mins(1),
            max_bytes: 10_000,
            patience: &patience,
        };
        let files = [
            ("グラフ/a.png", "png"),
            ("text.csv", "1,2"),
            ("text.csv", "3,4"),
        ];
        let artifacts = files.map(|(path, text)| {
            fs::write(job.work().join(path), text).unwrap();
            let snapshot = Snapshot::take(&job.work(), &Limits::default()).unwrap();
            let path = RelativePath::parse(path).unwrap();
            publisher.publish(&Place::work(path), &snapshot).unwrap()
        });
        let pack = |publisher: Publisher<'_>| publisher.publish_archive("files.zip", &artifacts);
        let archive = pack(publisher).unwrap();
        assert_eq!(
            (archive.name.as_str(), archive.mime_type.as_str()),
            ("files.zip", "application/zip")
        );
        let Link::Live(_, blob) = store.link(&archive.token).unwrap() else {
            panic!("the archive has no link");
        };
        let data = File::from(store.blobs().get(&blob, None).unwrap().unwrap());
        let mut zip = zip::ZipArchive::new(data).unwrap();
        let mut found = BTreeMap::new();
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(
                entry.name().unwrap().into_owned(),
                (text, entry.compression()),
            );
        }
        let expected = [
            ("text (2).csv", "3,4", CompressionMethod::Deflated),
            ("text.csv", "1,2", CompressionMethod::Deflated),
            ("グラフ/a.png", "png", CompressionMethod::Stored),
        ];
        let expected = expected.map(|(name, text, how)| (name.to_owned(), (text.to_owned(), how)));
        assert_eq!(found, BTreeMap::from(expected));
        let small = Publisher {
            max_bytes: 8,
            ..publisher
        };
        assert!(matches!(pack(small), Err(PublishError::TooLarge { .. })));
    }

    #[test]
    fn names_that_differ_in_case_only_are_kept_apart() {
        let mut taken = HashSet::new();
        let all =
            ["A.txt", "a.txt", "d.d/x", "d.d/x", ".a", ".a"].map(|name| unique(name, &mut taken));
        assert_eq!(
            all,
            ["A.txt", "a (2).txt", "d.d/x", "d.d/x (2)", ".a", ".a (2)"]
        );
    }
}
