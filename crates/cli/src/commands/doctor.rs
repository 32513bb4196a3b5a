//! `nullspace doctor`. What is looked at is in the server's crate; here it is printed.

use std::fmt::Write as _;

use nullspace_server::doctor::{Check, DoctorArgs, Status, examine, render};
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::{printer, session};

/// The answer in JSON: the form of the wire contract.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    probes: Vec<Probe<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_steps: Option<[&'static str; 2]>,
}

#[derive(Serialize)]
struct Probe<'a> {
    #[serde(flatten)]
    check: &'a Check,
    details: Option<Value>,
}

const NEXT_STEPS: [&str; 2] =
    ["start a server: nullspace server", "create a sandbox: nullspace sandbox create"];

/// With `--json` the document says how it went, and the exit status only that there is one.
pub(crate) fn run(args: DoctorArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("start the runtime"))?;
    let checks = runtime.block_on(session::wait("examining this host", None, async {
        Ok::<_, Failure>(examine(&args).await)
    }))?;
    let ok = checks.iter().all(|check| check.status != Status::Fail);
    if args.json {
        let probes = checks.iter().map(|check| Probe { check, details: None }).collect();
        printer::json(&Report { ok, probes, next_steps: ok.then_some(NEXT_STEPS) })?;
        return Ok(0);
    }
    let mut text = render(&checks);
    if ok {
        // Writing to a String cannot fail.
        let _ = NEXT_STEPS.iter().try_for_each(|step| writeln!(text, "{step}"));
    }
    printer::page(&text)?;
    Ok(u8::from(!ok))
}
