//! Takes the pages about error codes into the program, so that `nullspace explain` works without
//! the documentation at hand.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pages = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../docs/errors");
    println!("cargo::rerun-if-changed={}", pages.display());
    let mut files: Vec<PathBuf> = match fs::read_dir(&pages) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    let mut source = String::from("&[\n");
    for path in &files {
        let code = path.file_stem().and_then(|stem| stem.to_str()).ok_or("a page whose name is not UTF-8")?;
        if code != "README" && code != "index" {
            writeln!(source, "    ({code:?}, include_str!({:?})),", fs::canonicalize(path)?)?;
        }
    }
    source.push_str("]\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("pages.rs"), source)?;
    Ok(())
}
