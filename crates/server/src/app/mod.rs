//! The traits of the API, the gateway and the SSH relay, implemented by calling control. One file per
//! resource. No decisions here: each method unpacks, calls one control function, converts.

mod auth;
mod edge;
mod file;
mod health;
mod lifecycle;
mod machines;
mod monitor;
mod network;
mod preview;
mod process;
mod sandbox;
mod snapshot;
mod template;
mod terminal;
mod upload;
mod webhook;

use std::sync::{Arc, OnceLock};

use nullspace_auth::Authenticator;
use nullspace_control::Control;
use nullspace_types::{Code, Error, Result};

/// What the router is given. It serves from before the node is up: until then it says so.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

struct Inner {
    authenticator: Arc<Authenticator>,
    /// What the URLs that are given out begin with.
    public_url: Option<String>,
    control: OnceLock<Control>,
}

impl App {
    pub(crate) fn new(authenticator: Arc<Authenticator>, public_url: Option<String>) -> Self {
        Self(Arc::new(Inner { authenticator, public_url, control: OnceLock::new() }))
    }

    /// From here on requests are served.
    pub(crate) fn serve(&self, control: Control) {
        // There is one start of a server, so there is nothing in it yet.
        let _ = self.0.control.set(control);
    }

    pub(crate) fn control(&self) -> Result<&Control> {
        self.0.control.get().ok_or_else(|| {
            Error::new(Code::Unavailable, "the server is starting")
                .suggest("repeat the request in a few seconds")
        })
    }
}
