//! How a server is launched, and why.

use bridge_process::launch::{Kind, Resolved, Target};
use serde::Serialize;

use crate::{cli::text::plain, launches::Launching};

/// As `check` shows it.
#[derive(Serialize)]
pub struct Launch {
    how: How,
    /// The package whose program it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<String>,
    /// What of it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum How {
    /// From an environment whose versions are in the lock file.
    Locked,
    /// From an environment whose versions were chosen when it was made.
    Installed,
    /// By its launcher.
    AsWritten,
    /// Not at all.
    Refused,
}

impl Launch {
    /// `None` where there is nothing to install.
    pub fn of(launching: &Launching) -> Option<Self> {
        let (how, package, why) = match launching {
            Launching::Installed(found) => (installed(found)?, package(found), None),
            Launching::AsWritten(why) => (How::AsWritten, None, Some(why.as_deref()?)),
            Launching::Installing { .. } => (How::AsWritten, None, Some("it is being installed")),
            Launching::Refused(why) => (How::Refused, None, Some(&**why)),
        };
        let runs = match launching {
            Launching::Installed(found) => runs(&found.kind),
            _ => None,
        };
        Some(Self {
            how,
            package,
            runs,
            why: why.map(str::to_owned),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let package = self.package.as_deref().unwrap_or("installed packages");
        let why = plain(self.why.as_deref().unwrap_or_default());
        match self.how {
            How::Locked => format!("launch: {package}, installed and locked"),
            How::Installed => format!("launch: {package}, installed"),
            How::AsWritten => format!("launch: own command line ({why})"),
            How::Refused => format!("launch: refused ({why})"),
        }
    }
}

fn installed(found: &Resolved) -> Option<How> {
    found.folder.as_ref()?;
    Some(if found.locked {
        How::Locked
    } else {
        How::Installed
    })
}

fn runs(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Python { target, .. } => Some(match target.as_ref()? {
            Target::Function { module, function } => format!("python {module}:{function}"),
            Target::Module(module) => format!("python -m {module}"),
            Target::File(path) => format!("python {}", path.display()),
        }),
        Kind::Node => Some("node".to_owned()),
        Kind::Other => None,
    }
}

fn package(found: &Resolved) -> Option<String> {
    let (name, version) = found.main.as_ref()?;
    Some(format!("{name} {version}"))
}
