//! `nullspace explain`.

use clap::Args;

use crate::failure::{Failure, Outcome};
use crate::{pages, printer};

/// Prints the page about an error code.
#[derive(Args)]
pub(crate) struct Explain {
    /// An error code, such as `sandbox_not_found`; without one, the codes there are.
    #[arg(value_name = "CODE")]
    code: Option<String>,
}

impl Explain {
    pub(crate) fn run(self) -> Outcome {
        let Some(code) = self.code else {
            for code in pages::codes() {
                printer::line(code)?;
            }
            return Ok(0);
        };
        // People copy it as they see it: in a URL it has hyphens.
        let name = code.to_lowercase().replace('-', "_");
        let page = pages::find(&name).ok_or_else(|| Failure::Local {
            code: "not_found",
            message: format!("there is no page about an error code {code:?}"),
            hint: Some("see which there are with `nullspace explain`".to_owned()),
            details: None,
        })?;
        printer::page(page)?;
        Ok(0)
    }
}
