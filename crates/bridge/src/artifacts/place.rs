//! Where in a workspace a file lies.

use std::path::PathBuf;

use bridge_model::Job;

use super::RelativePath;

/// The folders of a workspace that its children write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Their working directory.
    Work,
    /// Their `HOME`.
    Home,
    /// Their `TMPDIR`.
    Tmp,
}

impl Area {
    /// The folder of a workspace.
    pub fn of(self, job: &Job) -> PathBuf {
        match self {
            Self::Work => job.work(),
            Self::Home => job.home(),
            Self::Tmp => job.tmp(),
        }
    }

    /// As messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Work => "work/",
            Self::Home => "home/",
            Self::Tmp => "tmp/",
        }
    }
}

/// A file of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// In which of its folders.
    pub area: Area,
    /// Below that.
    pub path: RelativePath,
}

impl Place {
    /// A file in the working directory.
    pub fn work(path: RelativePath) -> Self {
        Self {
            area: Area::Work,
            path,
        }
    }

    /// For people, and for a zip: never absolute, and without `..`.
    pub fn display(&self) -> String {
        let path = self.path.display();
        match self.area {
            Area::Work => path.into_owned(),
            Area::Home | Area::Tmp => format!("{}{path}", self.area.name()),
        }
    }
}

impl AsRef<RelativePath> for Place {
    fn as_ref(&self) -> &RelativePath {
        &self.path
    }
}
