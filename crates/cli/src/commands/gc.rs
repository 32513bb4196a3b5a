//! `nullspace gc`: asks the running server through its own socket, so it needs no key. What it asks is in the
//! server's crate; here it is printed.

use clap::Args;
use nullspace_server::{GarbageReport, GcArgs};

use super::sandbox::mib;
use crate::failure::{Failure, Outcome};
use crate::printer::{self, Cell};
use crate::session;

#[derive(Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    args: GcArgs,
    /// Answer with JSON.
    #[arg(long)]
    json: bool,
}

impl Gc {
    pub(crate) fn run(self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::io("start the runtime"))?;
        let (doing, left) = match self.args.apply {
            true => ("removing what nobody needs", Some("the server goes on with it")),
            false => ("looking for what nobody needs", None),
        };
        let report = runtime.block_on(session::wait(doing, left, nullspace_server::gc(self.args)))?;
        if self.json {
            printer::json(&report)?;
        } else {
            print(&report)?;
        }
        Ok(0)
    }
}

fn print(report: &GarbageReport) -> std::io::Result<()> {
    if report.items.is_empty() {
        return printer::note("nothing lies on the disk that nobody needs");
    }
    let rows: Vec<_> = report
        .items
        .iter()
        .map(|item| {
            vec![
                Cell::new(&item.kind),
                Cell::new(mib(item.bytes)),
                Cell::new(&item.name),
                Cell::new(&item.reason),
            ]
        })
        .collect();
    printer::table(&["KIND", "SIZE", "NAME", "WHY"], &rows)?;
    let (pieces, size) = (report.items.len(), mib(report.bytes));
    match report.applied {
        true => printer::note(format_args!("removed {size} in {pieces} pieces")),
        false => printer::note(format_args!("{size} in {pieces} pieces; remove them with --apply")),
    }
}
