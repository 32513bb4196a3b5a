//! Guest images: the kernel, the first file system with the agent, and the root file system that
//! `guest-image/build` made. This crate opens and checks them; it never mounts one.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The manifest format that this build reads.
const FORMAT: u32 = 1;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing there.
    #[error("there is no guest image in {0}: run `make image`, or set [image] dir")]
    Missing(PathBuf),
    /// Something there, but not an image.
    #[error("the guest image in {directory} is broken: {reason}; run `make image` again")]
    Broken {
        /// Where.
        directory: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Manifest {
    format: u32,
    hash: String,
    kernel_release: String,
    root_size_mb: u32,
}

/// An image that is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Changes with anything in it.
    pub hash: String,
    /// The kernel's release.
    pub kernel_release: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The first file system.
    pub initrd: PathBuf,
    /// The root file system, raw.
    pub base: PathBuf,
    /// Its size in MiB.
    pub root_size_mb: u32,
    /// When it was made.
    pub created_at: Option<SystemTime>,
}

impl Image {
    /// Opens the image in a directory; links are resolved, so that a newer image beside it changes
    /// nothing for whoever holds this one.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let directory = fs_err::canonicalize(directory).map_err(|_| Error::Missing(directory.to_owned()))?;
        let broken = |reason: String| Error::Broken { directory: directory.clone(), reason };
        let manifest = directory.join("manifest.json");
        let text = fs_err::read(&manifest).map_err(|_| Error::Missing(directory.clone()))?;
        let Manifest { format, hash, kernel_release, root_size_mb } =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        if format != FORMAT {
            return Err(broken(format!("its format is {format}, not {FORMAT}")));
        }
        let file = |name: &str| {
            let path = directory.join(name);
            match fs_err::metadata(&path) {
                Ok(found) if found.is_file() && found.len() > 0 => Ok(path),
                Ok(_) => Err(broken(format!("{name} is empty"))),
                Err(error) => Err(broken(error.to_string())),
            }
        };
        let (kernel, initrd, base) = (file("vmlinuz")?, file("initrd.img")?, file("base.raw")?);
        let size = fs_err::metadata(&base).map_err(|error| broken(error.to_string()))?.len();
        if size != u64::from(root_size_mb) << 20 {
            return Err(broken(format!("base.raw has {size} bytes, not {root_size_mb} MiB")));
        }
        let created_at = fs_err::metadata(&manifest).and_then(|found| found.modified()).ok();
        Ok(Self { hash, kernel_release, kernel, initrd, base, root_size_mb, created_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(directory: &Path) {
        for (name, bytes) in [("vmlinuz", 1), ("initrd.img", 1), ("base.raw", 2 << 20)] {
            let file = std::fs::File::create(directory.join(name)).unwrap();
            file.set_len(bytes).unwrap();
        }
        let manifest = r#"{"format":1,"hash":"ab","kernel_release":"6.1","root_size_mb":2,"suite":"x"}"#;
        std::fs::write(directory.join("manifest.json"), manifest).unwrap();
    }

    #[test]
    fn a_whole_image_is_opened_and_a_torn_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Image::open(dir.path()), Err(Error::Missing(_))));
        image(dir.path());
        assert_eq!(Image::open(dir.path()).unwrap().root_size_mb, 2);
        std::fs::File::create(dir.path().join("base.raw")).unwrap();
        assert!(Image::open(dir.path()).unwrap_err().to_string().contains("base.raw is empty"));
    }
}
