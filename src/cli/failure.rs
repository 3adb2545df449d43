//! How a command fails: one line that tells what failed, why, and what to do.

use std::fmt;
use std::io;

use dfs::status::Status;

/// The failure of a command, printed by `main` after `dfs: `.
#[derive(Debug)]
pub enum Failure {
    /// One line for stderr; exit code 1.
    Said(String),
    /// Wrong usage that clap cannot see; exit code 2.
    Usage(String),
    /// Whoever read our output has gone: nobody is left to tell.
    BrokenPipe,
}

impl Failure {
    /// A failure in one sentence.
    pub fn new(line: impl Into<String>) -> Self {
        Failure::Said(line.into())
    }

    /// Something inside the file system failed.
    pub fn status(what: impl fmt::Display, status: Status) -> Self {
        Failure::Said(match advice(status) {
            Some(advice) => format!("{what}: {status}; {advice}"),
            None => format!("{what}: {status}"),
        })
    }

    /// Something on this machine failed.
    pub fn local(what: impl fmt::Display, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Failure::Said(format!("{what}: {}", reason(error)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Said(line) | Failure::Usage(line) => f.write_str(line),
            Failure::BrokenPipe => f.write_str("broken pipe"),
        }
    }
}

/// The text of a system error without Rust's "(os error 2)".
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

/// What a person can do about it, where that is not plain.
fn advice(status: Status) -> Option<&'static str> {
    Some(match status {
        Status::NoSpace | Status::Full => "delete something or start more nodes (`dfs df` shows the space)",
        Status::Unavailable | Status::TimedOut => "see `dfs status`, and start nodes if some are gone",
        Status::Busy => "try again",
        Status::WrongCluster => "check --nodes: the addresses belong to different clusters",
        Status::WrongVersion => "use programs of one version everywhere",
        Status::SessionGone => "run the command again",
        Status::IsDirectory => "name a file",
        Status::NotEmpty => "use `dfs rm -r`",
        Status::Internal => "please report it with the log of `--log debug`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        for &status in Status::ALL {
            let line = Failure::status("/a", status).to_string();
            assert!(line.starts_with("/a: ") && !line.contains('\n'), "{line}");
        }
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(Failure::local("x", &error).to_string(), "x: no such file or directory");
        assert!(matches!(Failure::local("x", &io::Error::from(io::ErrorKind::BrokenPipe)), Failure::BrokenPipe));
    }
}
