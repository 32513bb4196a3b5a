//! The agent's own messages: lines on the machine's console, or on standard error when hosted.
//!
//! Each message is one write, so that lines of several threads do not mix. There are no levels and
//! there is no filter: the agent says little, and what it says is worth the serial port's time.

use std::fmt;
use std::io::Write;

/// Writes one line. A console that cannot be written has nobody to tell, so that error ends here.
pub fn write(message: fmt::Arguments<'_>) {
    let line = format!("nullspace-guest: {message}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Says one line on the console, formatted like `format!`.
macro_rules! say {
    ($($part:tt)*) => { $crate::console::write(format_args!($($part)*)) };
}
pub(crate) use say;
