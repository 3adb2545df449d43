//! The life of a mount process: check, join the cluster, mount, announce, serve until told to end, and leave nothing behind.
//!
//! Every way out passes through [`Running::end`], which flushes, unmounts and ends the session, each within its own bound.
#![allow(clippy::disallowed_methods)] // A driver: waits by the clock.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use dfs::client::{self, driver};
use dfs::cluster_map::ClusterMap;
use dfs::limits;
use dfs::net::clock;
use dfs::random::Random;
use dfs::status::Status;
use dfs::types::{Address, ROOT, SessionId};
use dfs::wire::namespace::Query;

use crate::args::{Args, Cluster, Refusal};
use crate::caller::Caller;
use crate::daemonize::{self, Side};
use crate::embedded::Embedded;
use crate::fs::Fs;
use crate::fuse::Shell;
use crate::guard::Guard;
use crate::mounting::{self, Mount, Unmounted};
use crate::notifier::Notifier;
use crate::server::{Input, OwnResult, Server};
use crate::signals::{self, Signal, Signals};
use crate::translate::{KeepsSetgid, Options};
use crate::waiters::Watch;

/// Time that ending the session may take; `umount` promises that the process is gone within 2 s.
const END_TIMEOUT: Duration = Duration::from_millis(1200);
/// The core ends calls at their deadline; so much later on a machine that is slow to schedule it.
const LATE: Duration = Duration::from_secs(1);
/// Time for the kernel to let the connection go after an unmount.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The program.
pub fn main() -> ExitCode {
    let args = match crate::args::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(args) => args,
        Err(Refusal::Usage(error)) => error.exit(),
        Err(Refusal::NotYet(line)) => return fail(&line),
    };
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => fail(&line),
    }
}

fn fail(line: &str) -> ExitCode {
    eprintln!("dfs-mount: {line}");
    ExitCode::FAILURE
}

fn start(mut args: Args) -> Result<(), String> {
    mounting::check_device()?;
    args.point = mounting::check_point(&args.point)?;
    if let Some(file) = &args.log_file {
        args.log_file = Some(std::path::absolute(file).map_err(|error| format!("--log-file {}: {error}", file.display()))?);
    }
    if args.foreground {
        return run(&args, |line| print_line(line).map_err(|error| format!("cannot write to stdout: {error}")));
    }
    let reporter = match daemonize::fork()? {
        Side::Parent(answer) => return answer,
        Side::Child(reporter) => reporter,
    };
    let mut reporter = Some(reporter);
    let print = matches!(args.cluster, Cluster::Embedded { .. });
    let result = run(&args, |line| {
        if print {
            // Whoever started it may have closed stdout; that is no reason not to serve.
            let _ = print_line(line);
        }
        let reporter = reporter.take().expect("a mount becomes ready once");
        reporter.ready().map_err(|error| format!("whoever started the mount is gone: {error}"))
    });
    match (result, reporter) {
        (Err(line), Some(reporter)) => {
            reporter.failed(&line);
            // The parent prints the line.
            std::process::exit(1)
        }
        (result, _) => result.inspect_err(|line| tracing::error!("{line}")),
    }
}

fn print_line(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Runs a mount from beginning to end. `announce` is called once, with the `ready` line, when it is usable.
fn run(args: &Args, announce: impl FnOnce(&str) -> Result<(), String>) -> Result<(), String> {
    dfs::args::init_logging(&args.log, args.log_format, args.log_file.as_deref())?;
    let Signals { ending: signals, report } = signals::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let (nodes, embedded) = match &args.cluster {
        Cluster::Nodes(nodes) => (nodes.clone(), None),
        Cluster::Embedded { nodes, memory } => {
            let embedded = Embedded::start(*nodes, *memory, &signals)?;
            (embedded.addresses().to_vec(), Some(embedded))
        }
    };
    let (alive, server_ended) = bounded(1);
    let (server, server_thread) = start_server(args, &nodes, alive)?;
    let mut running = Running {
        server,
        server_thread: Some(server_thread),
        server_ended,
        embedded,
        joined: false,
        gave_up: false,
        mounted: None,
        signals,
        report,
        op_timeout: args.op_timeout,
    };
    let done = running.serve(args, &nodes, announce);
    running.end();
    done
}

fn start_server(args: &Args, nodes: &[Address], alive: Sender<()>) -> Result<(driver::Handle<Input>, JoinHandle<()>), String> {
    let keeps_setgid = KeepsSetgid(|context, group| Caller::from(*context).keeps_setgid(group));
    let options = Options { read_only: args.options.read_only, keeps_setgid, relaxed: args.options.relaxed };
    let mut random = Random::new(system_seed().map_err(|error| format!("the system gives no random numbers: {error}"))?);
    let mut config = client::Config::new(nodes.to_vec(), SessionId(random.next_id()));
    config.op_timeout = args.op_timeout;
    config.cache_bytes = args.cache as usize;
    (config.caches, config.behind) = (true, true);
    let fs = Fs::new(config, options, clock::now(), random.next());
    let failed = |error| format!("cannot start a thread: {error}");
    let (server, thread) = driver::spawn("dfs-loop", Server::new(fs, alive)).map_err(failed)?;
    let to_server = server.clone();
    let interrupt = move |token| {
        // One that finds no room comes again with the next look.
        let _ = to_server.send(Input::Interrupt(token));
    };
    server.send_waiting(Input::Watch(Watch::start(interrupt).map_err(failed)?)).map_err(|status| status.text().to_string())?;
    Ok((server, thread))
}

fn system_seed() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: a buffer of eight bytes; so few are never given in part.
    let received = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if received != bytes.len() as isize {
        return Err(std::io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// What has been started and has to be ended.
struct Running {
    server: driver::Handle<Input>,
    server_thread: Option<JoinHandle<()>>,
    /// Closed when the loop thread ends.
    server_ended: Receiver<()>,
    embedded: Option<Embedded>,
    /// Whether the cluster has answered; without that there is no session to end.
    joined: bool,
    /// Whether a flush failed, or somebody would not wait for it.
    gave_up: bool,
    mounted: Option<Mounted>,
    signals: Receiver<Signal>,
    report: Receiver<()>,
    op_timeout: Duration,
}

/// A mount with the thread that receives its requests.
struct Mounted {
    mount: Mount,
    /// Missing where the kernel's control files are out of reach.
    guard: Option<Guard>,
    /// Ends when the kernel closes the connection.
    ended: Receiver<()>,
}

impl Running {
    fn serve(&mut self, args: &Args, nodes: &[Address], announce: impl FnOnce(&str) -> Result<(), String>) -> Result<(), String> {
        let map = self.join_cluster(nodes)?;
        self.joined = true;
        self.mount(args)?;
        if let Some(reason) = map.degraded() {
            tracing::warn!(reason, "degraded");
        }
        announce(&ready_line(&args.point, &map))?;
        let ended = self.mounted.as_ref().map(|mounted| mounted.ended.clone()).expect("it was mounted just now");
        loop {
            select! {
                recv(ended) -> _ => tracing::info!("unmounted"),
                recv(self.server_ended) -> _ => return Err("the network thread ended by a fault; unmounted".into()),
                recv(self.signals) -> signal => {
                    tracing::info!(?signal, "ending");
                    self.flush();
                }
                recv(self.report) -> _ => {
                    let _ = self.server.send_waiting(Input::Report);
                    continue;
                }
            }
            return Ok(());
        }
    }

    /// Waits until the cluster answers about the root directory; only then a mount is usable.
    fn join_cluster(&self, nodes: &[Address]) -> Result<ClusterMap, String> {
        let tried = || nodes.iter().map(Address::to_string).collect::<Vec<_>>().join(",");
        let failed = |status: Status| match status {
            Status::Interrupted => "interrupted before the mount was usable".to_string(),
            Status::TimedOut | Status::Unavailable | Status::Disconnected => format!(
                "no node answered within {:?} (tried {}); start one with dfs-node, or name one with --nodes",
                self.op_timeout,
                tried()
            ),
            status => format!("the cluster at {} refuses: {status}", tried()),
        };
        self.own(client::Call::Query(Query::Attributes { ino: ROOT }), self.op_timeout + LATE).map_err(failed)?;
        match self.own(client::Call::Map, self.op_timeout + LATE).map_err(failed)? {
            client::Reply::Map(map) => Ok(map),
            _ => Err(failed(Status::Internal)),
        }
    }

    fn mount(&mut self, args: &Args) -> Result<(), String> {
        let (connection, mount) = mounting::mount(&args.point, &args.options)?;
        let (sender, ended) = bounded::<()>(1);
        let guard = mount.connection().map(Guard::start).transpose();
        let guard = guard
            .inspect_err(|error| tracing::info!(%error, "nobody guards the mount: killed at a bad moment it may go on without a process"));
        self.mounted = Some(Mounted { mount, guard: guard.ok().flatten(), ended });
        let shell = Shell::new(self.server.clone());
        // Who may use the mount is the kernel's business (allow_other); fuser would check once more.
        let session = fuser::Session::from_fd(shell, connection, fuser::SessionACL::All, fuser::Config::default())
            .map_err(|error| format!("the kernel's FUSE handshake failed: {error}"))?;
        let device = session.as_fd().try_clone_to_owned().map_err(|error| format!("cannot duplicate the FUSE descriptor: {error}"))?;
        let notifier = Notifier::start(device, &self.server).map_err(|error| format!("cannot start the notifier's threads: {error}"))?;
        let _ = self.server.send_waiting(Input::Notifier(notifier));
        let serve = move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the FUSE session ended");
            }
            drop(sender);
        };
        std::thread::Builder::new().name("fuse".into()).spawn(serve).map_err(|error| format!("cannot start the FUSE thread: {error}"))?;
        if let Some(mounted) = &self.mounted {
            mounted.mount.set_read_ahead();
        }
        Ok(())
    }

    /// Waits for everything that is dirty; a second signal cuts it short. Once that has failed, only for a moment: what was written since may
    /// still find its place, what failed has had its time.
    fn flush(&mut self) {
        let patience = if self.gave_up { END_TIMEOUT } else { self.op_timeout + LATE };
        match self.own(client::Call::Flush, patience) {
            Err(status) if !self.gave_up => {
                tracing::error!(%status, "not everything could be flushed");
                self.gave_up = true;
            }
            Err(status) => tracing::info!(%status, "nor could it at the end"),
            Ok(_) => {}
        }
    }

    /// Submits a call of this process itself and waits for it; a signal interrupts.
    fn own(&self, call: client::Call, timeout: Duration) -> OwnResult {
        let (answer, result) = bounded(1);
        self.server.send_waiting(Input::Own { call, answer })?;
        select! {
            recv(result) -> result => result.unwrap_or(Err(Status::ShuttingDown)),
            recv(self.signals) -> _ => Err(Status::Interrupted),
            default(timeout) => Err(Status::TimedOut),
        }
    }

    /// Unmounts, ends the session, stops the threads and the embedded nodes.
    fn end(mut self) {
        let mut guard = None;
        if let Some(Mounted { mount, guard: found, ended }) = self.mounted.take() {
            guard = found;
            match mount.unmount() {
                Ok(Unmounted::Gone) => {
                    let _ = ended.recv_timeout(CLOSE_TIMEOUT);
                }
                Ok(Unmounted::Detached) => tracing::warn!("the mount was busy; detached it, open files end with this process"),
                Err(line) => tracing::error!("{line}"),
            }
        }
        if self.joined {
            // Whoever unmounted may be back at his shell; what was written is safe before this process ends.
            self.flush();
            self.end_session();
        }
        // Whoever still uses it gets errors from here on, and no thread of this process is left waiting in the kernel.
        if let Some(guard) = guard {
            guard.end();
        }
        let _ = self.server.send_waiting(Input::Stop);
        if let Some(thread) = self.server_thread.take() {
            let _ = thread.join();
        }
        if let Some(embedded) = self.embedded.take() {
            embedded.stop();
        }
    }

    fn end_session(&self) {
        let begun = Instant::now();
        let (answer, result) = bounded(1);
        if self.server.send_waiting(Input::Own { call: client::Call::EndSession, answer }).is_ok() {
            match result.recv_timeout(END_TIMEOUT) {
                Ok(Ok(_)) => tracing::debug!(took = ?begun.elapsed(), "the session has ended"),
                _ => tracing::info!("the session will expire by itself"),
            }
        }
    }
}

fn ready_line(point: &Path, map: &ClusterMap) -> String {
    let nodes: Vec<String> =
        map.members.iter().filter(|member| map.is_living(member.id)).map(|member| member.address.to_string()).collect();
    format!("ready mount={} cluster={} nodes={}", point.display(), map.cluster, nodes.join(","))
}

const _: () = assert!(END_TIMEOUT.as_millis() + CLOSE_TIMEOUT.as_millis() < 2000);
const _: () = assert!(limits::EMBEDDED_NODES_MAX <= limits::NODES_MAX);
