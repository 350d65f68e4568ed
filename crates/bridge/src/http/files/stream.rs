//! The bytes of a download, from the disk to the one who asked.

use std::{
    fs::File,
    io::{self, IoSliceMut, Read as _},
    sync::Arc,
};

use axum::body::Body;
use bridge_state::Stamp;
use bytes::Bytes;
use futures_util::stream::try_unfold;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::{ReadWriteFlags, preadv2};

/// Read and sent at a time. A download holds some of them, whatever its size: hyper takes about
/// 400 KB ahead of a slow client.
const CHUNK: u64 = 128 * 1024;

/// The next `length` bytes from where the file is at. The open file stays readable if clean-up
/// removes its name meanwhile. If its bytes are changed meanwhile the connection is broken before
/// the last of them: what was changed is never whole.
pub fn stream(data: bridge_state::OpenBlob, length: u64) -> Body {
    let (data, stamp) = data.into_parts();
    send(data, Some(stamp), length)
}

fn send(data: File, stamp: Option<Stamp>, length: u64) -> Body {
    let reader = Reader {
        data,
        stamp,
        left: length,
        sent: Sent::default(),
    };
    Body::from_stream(try_unfold(reader, Reader::next))
}

struct Reader {
    data: File,
    stamp: Option<Stamp>,
    left: u64,
    sent: Sent,
}

impl Reader {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let size = usize::try_from(self.left.min(CHUNK)).unwrap_or(usize::MAX);
        if size == 0 {
            return Ok(None);
        }
        let mut block = self.sent.block(size);
        let read = at_once(&self.data, &mut block.bytes);
        if read > 0 {
            block.bytes.truncate(read);
        } else {
            let reading = tokio::task::spawn_blocking(move || {
                (&self.data).read_exact(&mut block.bytes)?;
                Ok::<_, io::Error>((self.data, block))
            });
            (self.data, block) = reading.await??;
        }
        self.left -= block.bytes.len() as u64;
        if self.left == 0
            && let Some(stamp) = &self.stamp
            && !stamp.still_holds(&self.data)?
        {
            return Err(io::Error::other("the file was changed while it was sent"));
        }
        Ok(Some((Bytes::from_owner(block), self)))
    }
}

/// Reads what the kernel has in memory. 0 where the disk would be waited for, and where the file
/// system cannot tell (NFS): then a thread has to wait.
fn at_once(data: &File, into: &mut [u8]) -> usize {
    let into = &mut [IoSliceMut::new(into)];
    preadv2(data, into, u64::MAX, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

/// The memory of one download's blocks that have been sent. It is read into again: fresh memory for
/// each block would have to be zeroed, and would lie about in the allocator behind each thread.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Vec<u8>>>>);

struct Block {
    bytes: Vec<u8>,
    sent: Sent,
}

impl Sent {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock()
    }

    fn block(&self, size: usize) -> Block {
        let mut bytes = self.lock().pop().unwrap_or_default();
        bytes.resize(size, 0);
        let sent = self.clone();
        Block { bytes, sent }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.sent.lock().push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use rustix::fs::{Advice, fadvise};

    use super::*;

    /// More than some blocks, and not a whole number of them.
    fn bytes() -> Vec<u8> {
        (0..=250).cycle().take(5 * 128 * 1024 + 7).collect()
    }

    /// In the project's folder, since `/tmp` may be memory, which has no disk to wait for.
    fn file() -> File {
        let mut data = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        data.write_all(&bytes()).unwrap();
        data.sync_all().unwrap();
        data.seek(SeekFrom::Start(3)).unwrap();
        data
    }

    async fn read(data: File, length: usize) -> Result<Bytes, axum::Error> {
        axum::body::to_bytes(send(data, None, length as u64), usize::MAX).await
    }

    #[tokio::test]
    async fn a_part_comes_as_it_is_written_be_it_in_memory_or_on_the_disk() {
        let whole = bytes();
        for (forgotten, length) in [(false, whole.len() - 3), (true, whole.len() - 3), (true, 5)] {
            let data = file();
            if forgotten {
                fadvise(&data, 0, None, Advice::DontNeed).unwrap();
            }
            let found = read(data, length).await.unwrap();
            assert!(found == whole[3..3 + length], "{forgotten} {length}");
        }
    }

    #[tokio::test]
    async fn a_file_that_ends_early_is_an_error_and_no_wait() {
        let error = read(file(), bytes().len()).await.unwrap_err();
        assert!(error.to_string().contains("fill whole buffer"), "{error}");
    }
}
