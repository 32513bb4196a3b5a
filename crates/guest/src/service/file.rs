//! Calls about files.

use std::path::PathBuf;

use nullspace_guest_proto as pb;
use pb::write_file_request::Part;
use tonic::{Status, Streaming};

use super::Service;
use crate::account::Account;
use crate::file::list::Listing;
use crate::file::read::Reader;
use crate::file::stream::Messages;
use crate::file::write::Writer;
use crate::file::{SMALL_BYTES, change, stat};
use crate::path::{self, WORKSPACE};

impl Service {
    /// Who is meant; none when nobody was named.
    fn owner(user: &str) -> Result<Option<Account>, Status> {
        match user.trim() {
            "" => Ok(None),
            user => Account::find(user)
                .map(Some)
                .ok_or_else(|| Status::invalid_argument(format!("there is no user {user}"))),
        }
    }

    fn resolve(&self, path: &str, owner: Option<&Account>) -> Result<PathBuf, Status> {
        let adopted = self.adopted()?;
        let base = match (&adopted.cwd, owner) {
            (Some(cwd), _) => cwd,
            (None, Some(owner)) => &owner.home,
            (None, None) => WORKSPACE,
        };
        path::resolve(path, base)
    }

    fn path(&self, path: &str, user: &str) -> Result<(PathBuf, Option<Account>), Status> {
        let owner = Self::owner(user)?;
        Ok((self.resolve(path, owner.as_ref())?, owner))
    }

    pub(super) async fn do_read_file(
        &self,
        request: pb::ReadFileRequest,
    ) -> Result<Messages<Reader>, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        let open = move || Reader::open(&path, request.offset, request.length);
        let reader = self.mounts.run(false, open).await?;
        let elsewhere = !reader.is_small() || self.mounts.may_hang();
        Ok(Messages::new(reader, elsewhere))
    }

    pub(super) async fn do_write_file(
        &self,
        mut parts: Streaming<pb::WriteFileRequest>,
    ) -> Result<pb::FileInfo, Status> {
        let Some(Part::Start(start)) = parts.message().await?.and_then(|message| message.part) else {
            return Err(Status::invalid_argument("the first message of a write must be start"));
        };
        let (path, owner) = self.path(&start.path, &start.user)?;
        let writer = self.mounts.run(false, move || Writer::create(&path, owner.as_ref())).await?;
        let mut written = 0;
        while let Some(message) = parts.message().await? {
            let Some(Part::Data(data)) = message.part else {
                return Err(Status::invalid_argument("start may come only once, then data"));
            };
            written += data.len() as u64;
            self.mounts.run(written > SMALL_BYTES, writer.append(data)).await?;
        }
        self.mounts.run(false, move || writer.finish()).await
    }

    pub(super) async fn do_list_files(
        &self,
        request: pb::ListFilesRequest,
    ) -> Result<Messages<Listing>, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        let listing = self.mounts.run(false, move || Listing::open(&path, request.depth)).await?;
        let elsewhere = !listing.is_small() || self.mounts.may_hang();
        Ok(Messages::new(listing, elsewhere))
    }

    pub(super) async fn do_stat(&self, request: pb::PathRequest) -> Result<pb::FileInfo, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts
            .run(false, move || {
                path::refuse_reserved_links(&path)?;
                stat(&path)
            })
            .await
    }

    /// A part of the path that is missing, or is no directory, means that there is nothing.
    pub(super) async fn do_exists(&self, request: pb::PathRequest) -> Result<bool, Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts
            .run(false, move || {
                path::refuse_reserved_links(&path)?;
                match path.symlink_metadata() {
                    Ok(_) => Ok(true),
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                        Ok(false)
                    }
                    Err(error) => Err(crate::file::status(&error, &path)),
                }
            })
            .await
    }

    /// A whole tree may take long, and whether it is one is seen only there.
    pub(super) async fn do_remove(&self, request: pb::PathRequest) -> Result<(), Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts.run(true, move || change::remove(&path)).await
    }

    pub(super) async fn do_make_directory(&self, request: pb::PathRequest) -> Result<(), Status> {
        let (path, owner) = self.path(&request.path, &request.user)?;
        self.mounts.run(false, move || change::make_directory(&path, owner.as_ref())).await
    }

    pub(super) async fn do_rename(&self, request: pb::RenameFileRequest) -> Result<pb::FileInfo, Status> {
        let owner = Self::owner(&request.user)?;
        let old = self.resolve(&request.old_path, owner.as_ref())?;
        let new = self.resolve(&request.new_path, owner.as_ref())?;
        // Onto another file system it is a copy.
        self.mounts.run(true, move || change::rename(&old, &new, owner.as_ref())).await
    }

    pub(super) async fn do_set_permissions(&self, request: pb::SetPermissionsRequest) -> Result<(), Status> {
        let (path, _) = self.path(&request.path, &request.user)?;
        self.mounts.run(false, move || change::set_permissions(&path, request.mode)).await
    }
}
