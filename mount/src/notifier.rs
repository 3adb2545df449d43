//! Carries notices to the kernel, in threads of its own: a notice may wait for a lock that the kernel holds for a request which this very
//! mount has to answer first.
//!
//! Writes to a duplicate of the FUSE device's descriptor, past fuser: its notifier hides whether the kernel knows an inode, and has no word for epochs.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use dfs::client::driver::Handle;
use dfs::types::InodeId;

use crate::fs::KernelNotice;
use crate::server::Input;

/// Threads for notices that may block, so that one that does not return holds up no others.
const BLOCKING_THREADS: usize = 4;

const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const INC_EPOCH: i32 = 8;

/// The way to the threads; they end with it.
pub struct Notifier {
    // How many notices are on their way is bounded where they are made, in `recalls`.
    blocking: Sender<(u64, KernelNotice)>,
    prompt: Sender<(u64, KernelNotice)>,
}

impl Notifier {
    /// Starts the threads; each notice that the kernel took comes back as [`Input::Notified`].
    pub fn start(device: OwnedFd, server: &Handle<Input>) -> io::Result<Self> {
        let device = Arc::new(std::fs::File::from(device));
        let (blocking, blocked) = unbounded();
        let (prompt, prompted) = unbounded();
        let spawn = |name: &str, notices: Receiver<(u64, KernelNotice)>| {
            let (device, server) = (device.clone(), server.clone());
            std::thread::Builder::new().name(name.into()).spawn(move || {
                for (id, notice) in notices {
                    let told = if carry(&device, &notice) { Input::Notified(id) } else { Input::Missed(id) };
                    if server.send_waiting(told).is_err() {
                        return;
                    }
                }
            })
        };
        for _ in 0..BLOCKING_THREADS {
            spawn("notify", blocked.clone())?;
        }
        spawn("notify-prompt", prompted)?;
        Ok(Notifier { blocking, prompt })
    }

    /// Hands a notice over; never waits.
    pub fn notify(&self, id: u64, notice: KernelNotice) {
        let sender = match &notice {
            KernelNotice::Entry { .. } | KernelNotice::Inode { .. } => &self.blocking,
            KernelNotice::Attributes { .. } | KernelNotice::Epoch => &self.prompt,
        };
        // The threads live as long as the senders.
        let _ = sender.send((id, notice));
    }
}

/// False: the kernel does not have the inode.
fn carry(device: &std::fs::File, notice: &KernelNotice) -> bool {
    let (code, body) = match notice {
        KernelNotice::Entry { parent, name } => (INVAL_ENTRY, entry(*parent, name)),
        KernelNotice::Inode { ino } => (INVAL_INODE, inode(*ino, 0)),
        // A negative offset leaves pages, and with them their locks, alone.
        KernelNotice::Attributes { ino } => (INVAL_INODE, inode(*ino, -1)),
        KernelNotice::Epoch => (INC_EPOCH, Vec::new()),
    };
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(&body);
    match (&mut &*device).write(&message) {
        Ok(_) => true,
        // Of a name: it is not cached, which is as good. The directory's lock puts it behind a reply that would bring it.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => matches!(notice, KernelNotice::Entry { .. }),
        // Unmounted.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED)) => true,
        Err(error) => {
            tracing::error!(%error, ?notice, "the kernel refuses a notice");
            true
        }
    }
}

fn inode(ino: InodeId, offset: i64) -> Vec<u8> {
    [ino.0.to_ne_bytes(), offset.to_ne_bytes(), 0i64.to_ne_bytes()].concat()
}

fn entry(parent: InodeId, name: &[u8]) -> Vec<u8> {
    let mut body = parent.0.to_ne_bytes().to_vec();
    body.extend_from_slice(&(name.len() as u32).to_ne_bytes());
    body.extend_from_slice(&0u32.to_ne_bytes());
    body.extend_from_slice(name);
    body.push(0);
    body
}
