//! Real machines: what only they can show.
