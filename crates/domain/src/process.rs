//! What a command to run may say.

use nullspace_types::process::ExecRequest;
use nullspace_types::sandbox::Envs;
use nullspace_types::{Error, Result};

use crate::limits::Limits;
use crate::{envs, path};

/// Longest name of a user, as in Linux.
pub const USER_BYTES_MAX: usize = 32;

/// A valid command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandSpec {
    /// Executable, or a line for the shell.
    pub command: String,
    /// Exact arguments.
    pub args: Vec<String>,
    /// Through a shell.
    pub shell: bool,
    /// Working directory, absolute and normalised.
    pub cwd: Option<String>,
    /// Over the sandbox's environment.
    pub envs: Envs,
    /// User to run as.
    pub user: Option<String>,
    /// Milliseconds until the process group is killed; none in the background.
    pub timeout_ms: Option<u64>,
}

impl CommandSpec {
    /// Whether the caller waits for its end.
    pub const fn foreground(&self) -> bool {
        self.timeout_ms.is_some()
    }
}

/// Judges a user's name: blank is absent.
pub fn user(name: Option<String>) -> Result<Option<String>> {
    let Some(name) = name else { return Ok(None) };
    let name = name.trim();
    if name.is_empty() {
        return Ok(None);
    }
    if name.len() > USER_BYTES_MAX
        || name.starts_with('-')
        || name.contains(|c: char| c == ':' || c == '/' || c.is_control() || c.is_whitespace())
    {
        return Err(Error::invalid(format!(
            "user must be the name of a user, at most {USER_BYTES_MAX} bytes long, got {name:?}"
        )));
    }
    Ok(Some(name.to_owned()))
}

fn timeout_ms(secs: Option<f64>, limits: &Limits) -> Result<u64> {
    let high = f64::from(limits.exec_timeout_secs_max);
    let secs = secs.unwrap_or(f64::from(limits.exec_timeout_secs_default));
    // Written so that NaN is refused too.
    if !(secs > 0.0 && secs <= high) {
        return Err(Error::invalid(format!(
            "timeout_secs must be greater than 0 and at most {}, got {secs}",
            limits.exec_timeout_secs_max
        )));
    }
    // A positive time shorter than a millisecond is still a time.
    Ok(((secs * 1000.0).round() as u64).max(1))
}

/// Judges a command.
pub fn validate(request: ExecRequest, limits: &Limits) -> Result<CommandSpec> {
    let args = request.args.unwrap_or_default();
    let shell = request.shell.unwrap_or(false);
    if request.command.trim().is_empty() {
        return Err(Error::invalid("command must not be empty"));
    }
    if shell && !args.is_empty() {
        return Err(Error::invalid(
            "args must be empty when shell is true: the shell gets command as it stands",
        ));
    }
    if request.command.contains('\0') || args.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("command and args must not contain a NUL character"));
    }
    let bytes = request.command.len() + args.iter().map(|arg| arg.len() + 1).sum::<usize>();
    if bytes > limits.command_bytes_max as usize {
        return Err(Error::invalid(format!(
            "command and args must be at most {} bytes together, got {bytes}",
            limits.command_bytes_max
        )));
    }
    let envs = request.envs.unwrap_or_default();
    envs::check("envs", &envs, limits.envs_bytes_max)?;
    // The client always sends a time, in the background too, where it has no meaning.
    let timeout_ms = match request.background.unwrap_or(false) {
        true => None,
        false => Some(timeout_ms(request.timeout_secs, limits)?),
    };
    Ok(CommandSpec {
        command: request.command,
        args,
        shell,
        cwd: request.cwd.map(|cwd| path::working_directory("cwd", &cwd)).transpose()?,
        envs,
        user: user(request.user)?,
        timeout_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(command: &str) -> ExecRequest {
        ExecRequest { command: command.into(), ..ExecRequest::default() }
    }

    #[test]
    fn a_command_out_of_the_rules_is_refused_with_the_rule() {
        let limits = Limits::default();
        for (request, says) in [
            (exec(" "), "command must not be empty"),
            (
                ExecRequest { shell: Some(true), args: Some(vec!["x".into()]), ..exec("ls") },
                "args must be empty",
            ),
            (
                ExecRequest { timeout_secs: Some(0.0), ..exec("ls") },
                "timeout_secs must be greater than 0 and at most 86400, got 0",
            ),
            (ExecRequest { timeout_secs: Some(86_400.5), ..exec("ls") }, "at most 86400, got 86400.5"),
            (ExecRequest { timeout_secs: Some(f64::NAN), ..exec("ls") }, "got NaN"),
            (ExecRequest { cwd: Some("x".into()), ..exec("ls") }, "cwd must be an absolute path"),
            (ExecRequest { cwd: Some("/workspace/.nullspace".into()), ..exec("ls") }, "cwd must not lie in"),
            (ExecRequest { envs: Some(Envs::from([("".into(), "".into())])), ..exec("ls") }, "envs: "),
            (ExecRequest { user: Some("a:b".into()), ..exec("ls") }, "user must be"),
            (exec(&"x".repeat(1024 * 1024 + 1)), "at most 1048576 bytes"),
            (exec("a\0"), "NUL"),
        ] {
            let error = validate(request, &limits).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn a_time_counts_in_the_foreground_only() {
        let limits = Limits::default();
        let timed = ExecRequest { timeout_secs: Some(0.0001), ..exec("ls") };
        assert_eq!(validate(timed.clone(), &limits).unwrap().timeout_ms, Some(1));
        assert_eq!(validate(exec("ls"), &limits).unwrap().timeout_ms, Some(30_000));
        let background = ExecRequest { background: Some(true), timeout_secs: Some(-1.0), ..timed };
        assert!(!validate(background, &limits).unwrap().foreground());
    }
}
