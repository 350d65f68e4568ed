use std::{sync::Arc, time::Duration};

use bridge_model::ServerName;
use bridge_state::{
    ChatStore, LiveSession,
    testing::{Folder, alice, key, new_chat},
};
use futures_util::FutureExt as _;

use super::*;
use crate::{
    artifacts::Limits,
    child::{ChildSettings, Children},
    session::{Class, PoolSettings, SessionSettings},
    telemetry::Metrics,
};

fn sessions(folder: &Folder, store: Arc<ChatStore>) -> Arc<Sessions> {
    let metrics = Arc::new(Metrics::new());
    let children = ChildSettings {
        tools_dir: folder.outside().to_owned(),
        scratch: folder.outside().to_owned(),
        start_timeout: Duration::from_secs(1),
        max_message: 1024,
        max_starts: 1,
        input_timeout: Duration::from_secs(600),
        kill_grace: Duration::from_secs(1),
    };
    let settings = SessionSettings {
        max_total: 1,
        max_per_user: None,
        cleanup_interval: Duration::from_secs(60),
        snapshot: Limits {
            entries: 3,
            depth: 8,
        },
        pool: PoolSettings {
            max: 0,
            idle: Duration::from_secs(60),
            min_free_memory: 0,
            min_free_disk: 0,
            starts: 1,
        },
    };
    Arc::new(Sessions::new(
        settings,
        Arc::new(Children::new(children, metrics.clone())),
        store,
        metrics,
        Arc::new(|_| Arc::new(|_| {})),
    ))
}

fn place(key: WorkspaceKey) -> Place {
    Place {
        key,
        class: Class::Lasting,
        session: None,
        claim: Claim::Free,
    }
}

fn server() -> ServerName {
    "echo".parse().unwrap()
}

/// Whether anybody holds the lease of the chat's folder.
fn leased(store: &ChatStore, chat: &str) -> bool {
    let key = key(chat).to_hex();
    let mut chats = store.chats().unwrap().into_iter();
    chats.any(|chat| chat.metadata.session_keys == [key.clone()] && chat.leased_by.is_some())
}

async fn open(sessions: &Arc<Sessions>) -> Result<Arc<Workspace>, SessionError> {
    let place = place(key("c"));
    sessions.open(&place, &alice()).await
}

async fn close(sessions: &Arc<Sessions>) {
    for closed in sessions.close_unused() {
        closed.await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_who_hangs_up_while_it_opens_leaves_neither_lease_nor_entry() {
    let folder = Folder::new();
    let store = Arc::new(folder.open());
    let sessions = sessions(&folder, store.clone());
    // Polled once: the opening has begun, and nobody waits for it.
    let given_up = sessions.open(&place(key("c")), &alice()).now_or_never();
    assert!(given_up.is_none());
    sessions.tasks.close();
    sessions.tasks.wait().await;
    assert!(leased(&store, "c"), "the opening went on");
    close(&sessions).await;
    assert!(!leased(&store, "c"));
    assert!(sessions.entries().is_empty());
}

#[tokio::test]
async fn a_folder_that_cannot_be_opened_is_given_back() {
    let folder = Folder::new();
    let store = Arc::new(folder.open());
    let sessions = sessions(&folder, store.clone());
    let work = open(&sessions).await.unwrap().job.work();
    close(&sessions).await;
    std::fs::remove_dir(&work).unwrap();
    std::fs::write(&work, "").unwrap();
    let failed = open(&sessions).await;
    assert!(matches!(failed, Err(SessionError::Files(_))));
    assert!(!leased(&store, "c"));
    assert!(sessions.entries().is_empty());
}

#[tokio::test]
async fn a_folder_with_too_many_files_opens_and_nothing_in_it_is_new() {
    let folder = Folder::new();
    let store = Arc::new(folder.open());
    let sessions = sessions(&folder, store.clone());
    let work = open(&sessions).await.unwrap().job.work();
    close(&sessions).await;
    for name in ["a", "b", "c", "d"] {
        std::fs::write(work.join(name), "").unwrap();
    }
    let opened = open(&sessions).await.unwrap();
    assert!(opened.files.lock().await.is_over());
    drop(opened);
    close(&sessions).await;
}

#[tokio::test]
async fn the_sessions_of_a_killed_bridge_are_forgotten() {
    let folder = Folder::new();
    let live = LiveSession {
        server: "echo".into(),
        number: 1,
        pid: Some(1),
        started_at: folder.now,
    };
    folder.crash(
        |store| match store.acquire(&key("c"), &new_chat()).unwrap() {
            Acquired::Mine(held) => store.session_started(&held.lease, live).unwrap(),
            Acquired::Elsewhere(holder) => panic!("{holder}"),
        },
    );
    let store = Arc::new(folder.open());
    let sessions = sessions(&folder, store.clone());
    let workspace = open(&sessions).await.unwrap();
    let chat = store.chat(workspace.job.id()).unwrap().unwrap();
    assert_eq!(chat.metadata.live_sessions, []);
}

#[tokio::test]
async fn a_workspace_whose_entry_is_busy_is_still_seen() {
    let folder = Folder::new();
    let sessions = sessions(&folder, Arc::new(folder.open()));
    let _workspace = open(&sessions).await.unwrap();
    let entry = sessions.entries().get(&key("c")).unwrap().clone();
    let _gate = entry.gate.lock().await;
    assert_eq!(sessions.workspaces().len(), 1);
}

#[tokio::test]
async fn the_others_folder_proves_an_id_that_was_minted_for_a_server_of_its_own() {
    let folder = Folder::new();
    let sessions = sessions(&folder, Arc::new(folder.open()));
    let session = |own| WorkspaceKey::session(&alice(), "s", own);
    let (all, own) = (session(None), session(Some(&server())));
    let claimed = |key, claim| Place {
        claim,
        ..place(key)
    };
    for stranger in [own, all] {
        let place = claimed(stranger, Claim::Proven(all));
        let opened = sessions.open(&place, &alice()).await;
        assert!(matches!(opened, Err(SessionError::Unknown)));
    }
    let minted = claimed(own, Claim::Minted(all));
    let first = sessions.open(&minted, &alice()).await.unwrap();
    let again = claimed(own, Claim::Proven(all));
    let again = sessions.open(&again, &alice()).await.unwrap();
    assert_eq!(first.job.id(), again.job.id());
    let other = claimed(all, Claim::Proven(all));
    let other = sessions.open(&other, &alice()).await.unwrap();
    assert_ne!(first.job.id(), other.job.id());
}
