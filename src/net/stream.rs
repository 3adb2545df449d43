//! Sockets: TCP and Unix behind one small type, ready for another.

use std::fs;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::types::Address;

/// What is asked of the kernel for Unix sockets, whose buffers do not grow by themselves. TCP's do, and asking would stop that.
const UNIX_BUFFER_BYTES: libc::c_int = 4 << 20;

/// One place to dial. A host name may stand for several.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Where an address leads. Does not block for literal IP addresses; host names ask the system's resolver.
pub fn resolve(address: &Address) -> io::Result<Vec<Target>> {
    match address {
        Address::Unix(path) => Ok(vec![Target::Unix(path.clone())]),
        Address::Tcp { host, port } => Ok((host.as_str(), *port).to_socket_addrs()?.map(Target::Tcp).collect()),
    }
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Begins to connect. Writability tells when [`Stream::is_connected`] is worth asking.
    pub fn connect(target: &Target) -> io::Result<Stream> {
        let stream = match target {
            Target::Tcp(address) => Stream::Tcp(TcpStream::connect(*address)?),
            Target::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        stream.tune();
        Ok(stream)
    }

    /// Whether the connection stands by now; an error if it failed.
    pub fn is_connected(&self) -> io::Result<bool> {
        let failed = match self {
            Stream::Tcp(stream) => stream.take_error()?,
            Stream::Unix(stream) => stream.take_error()?,
        };
        if let Some(error) = failed {
            return Err(error);
        }
        let peer = match self {
            // A dial to an ephemeral port on which nobody listens can meet itself.
            Stream::Tcp(stream) => match (stream.peer_addr(), stream.local_addr()) {
                (Ok(peer), Ok(local)) if peer == local => return Err(io::ErrorKind::ConnectionRefused.into()),
                (peer, _) => peer.map(drop),
            },
            Stream::Unix(stream) => stream.peer_addr().map(drop),
        };
        match peer {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected || error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Latency over batching (frames are batched before they get here), and room for a MiB under way.
    fn tune(&self) {
        match self {
            // A socket that refuses options works, only slower, or is dead and says so when used.
            Stream::Tcp(stream) => drop(stream.set_nodelay(true)),
            Stream::Unix(stream) => {
                set_socket_option(stream.as_raw_fd(), libc::SO_SNDBUF, UNIX_BUFFER_BYTES);
                set_socket_option(stream.as_raw_fd(), libc::SO_RCVBUF, UNIX_BUFFER_BYTES);
            }
        }
    }

    /// Reads once into `first`, and what is more into `second`. The first `n` bytes over both are initialized afterwards.
    pub fn read(&self, first: &mut [MaybeUninit<u8>], second: &mut [u8]) -> io::Result<usize> {
        let parts = [
            libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
            libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
        ];
        loop {
            // SAFETY: both parts describe memory that this call borrows exclusively; the kernel only writes to it.
            let count = unsafe { libc::readv(self.as_raw_fd(), parts.as_ptr(), 2) };
            if count >= 0 {
                return Ok(count as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Writes once.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let result = match self {
                Stream::Tcp(stream) => (&*stream).write_vectored(parts),
                Stream::Unix(stream) => (&*stream).write_vectored(parts),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => return result,
            }
        }
    }

    /// Tells the peer that nothing more comes, so that closing does not destroy what is still on its way.
    pub fn finish_writing(&self) {
        match self {
            Stream::Tcp(stream) => drop(stream.shutdown(Shutdown::Write)),
            Stream::Unix(stream) => drop(stream.shutdown(Shutdown::Write)),
        }
    }

    /// Has its events reported under the token, edge-triggered.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Stream::Tcp(stream) => stream.register(registry, token, interest),
            Stream::Unix(stream) => stream.register(registry, token, interest),
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

fn set_socket_option(fd: RawFd, option: libc::c_int, value: libc::c_int) {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` outlives the call and `length` is its size. A refusal leaves the default, which works.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), length) };
}

/// A place where peers connect.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// `identity`: device and inode of the socket file, which is removed at the end only if it is still ours.
    Unix {
        listener: UnixListener,
        path: PathBuf,
        identity: Option<(u64, u64)>,
    },
}

impl Listener {
    /// Listens, and says where: port 0 has become a real one.
    pub fn bind(address: &Address) -> io::Result<(Listener, Address)> {
        match address {
            Address::Unix(path) => {
                let listener = bind_unix(path)?;
                let identity = file_identity(path);
                Ok((Listener::Unix { listener, path: path.clone(), identity }, address.clone()))
            }
            Address::Tcp { host, .. } => {
                let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
                for target in resolve(address)? {
                    let Target::Tcp(target) = target else { continue };
                    // Sets SO_REUSEADDR, so that a node can be started again at once.
                    match TcpListener::bind(target) {
                        Ok(listener) => {
                            let port = listener.local_addr()?.port();
                            return Ok((Listener::Tcp(listener), Address::Tcp { host: host.clone(), port }));
                        }
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
        }
    }

    /// The next connection and what to call its other end in the log.
    pub fn accept(&self) -> io::Result<(Stream, String)> {
        let (stream, name) = match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                (Stream::Tcp(stream), address.to_string())
            }
            Listener::Unix { listener, path, .. } => {
                let (stream, _) = listener.accept()?;
                (Stream::Unix(stream), format!("a client of unix:{}", path.display()))
            }
        };
        stream.tune();
        Ok((stream, name))
    }

    /// Has its events reported under the token, edge-triggered.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Listener::Unix { listener, .. } => listener.register(registry, token, Interest::READABLE),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix { path, identity, .. } = self
            && identity.is_some()
            && file_identity(path) == *identity
        {
            // Somebody else may have removed it meanwhile; then there is nothing left to do.
            drop(fs::remove_file(path));
        }
    }
}

/// Binds a Unix socket, taking over the file of a listener that died.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// Whether the path is a socket at which nobody listens.
fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = || matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused);
    is_socket && refused()
}

fn file_identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
