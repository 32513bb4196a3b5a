//! How far an upload is: a pure function of what was and what happened.

use nullspace_guest_proto::UploadStatus as Status;

/// What happens to an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A part is there; so many are missing still.
    Part { missing: u32 },
    /// Somebody wants it put in place; so many parts are missing.
    Begin { missing: u32 },
    /// It is in place.
    Published,
    /// It could not be put in place, but may be another time.
    PutBack,
    /// It can never be put in place.
    Spoiled,
    /// Its owner gives it up.
    Abort,
    /// Its time is over.
    Expire,
}

/// Why something cannot happen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It has come to its end.
    Ended,
    /// So many parts have not come.
    Missing(u32),
    /// It is being put in place, or is not.
    NotNow,
}

/// Whether nothing can change any more.
pub fn has_ended(status: Status) -> bool {
    matches!(
        status,
        Status::UploadCompleted | Status::UploadAborted | Status::UploadExpired | Status::UploadFailed
    )
}

/// What `event` makes of an upload.
pub fn step(status: Status, event: Event) -> Result<Status, Denied> {
    use Status::*;
    match (status, event) {
        // To give up what holds nothing any more changes nothing, and may be repeated.
        (UploadAborted | UploadExpired | UploadFailed, Event::Abort) => Ok(status),
        (Unspecified | UploadCompleted | UploadAborted | UploadExpired | UploadFailed, _) => {
            Err(Denied::Ended)
        }

        (UploadCreated | UploadUploading | UploadStaged, event) => match event {
            Event::Part { missing: 0 } => Ok(UploadStaged),
            Event::Part { .. } => Ok(UploadUploading),
            Event::Begin { missing: 0 } => Ok(UploadCompleting),
            Event::Begin { missing } => Err(Denied::Missing(missing)),
            Event::Abort => Ok(UploadAborted),
            Event::Expire => Ok(UploadExpired),
            // It could not even be begun.
            Event::Spoiled => Ok(UploadFailed),
            Event::Published | Event::PutBack => Err(Denied::NotNow),
        },

        (UploadCompleting, event) => match event {
            // All parts are there: it is one of them, again.
            Event::Part { .. } => Ok(UploadCompleting),
            Event::Published => Ok(UploadCompleted),
            Event::PutBack => Ok(UploadStaged),
            Event::Spoiled => Ok(UploadFailed),
            Event::Begin { .. } | Event::Abort | Event::Expire => Err(Denied::NotNow),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..3_u32).prop_map(|missing| Event::Part { missing }),
            (0..3_u32).prop_map(|missing| Event::Begin { missing }),
            Just(Event::Published),
            Just(Event::PutBack),
            Just(Event::Spoiled),
            Just(Event::Abort),
            Just(Event::Expire),
        ]
    }

    proptest! {
        #[test]
        fn an_upload_ends_once_and_is_published_only_when_all_of_it_is_there(
            events in prop::collection::vec(event(), 0..20),
        ) {
            let mut status = Status::UploadCreated;
            for event in events {
                let Ok(next) = step(status, event) else { continue };
                if has_ended(status) {
                    prop_assert_eq!(next, status);
                }
                if next == Status::UploadCompleting && status != next {
                    prop_assert_eq!(event, Event::Begin { missing: 0 });
                }
                if next == Status::UploadCompleted && status != next {
                    prop_assert_eq!(status, Status::UploadCompleting);
                }
                status = next;
            }
        }
    }

    #[test]
    fn what_failed_for_now_can_be_given_up_or_tried_again() {
        let again = step(Status::UploadCompleting, Event::PutBack).unwrap();
        assert_eq!(step(again, Event::Begin { missing: 0 }), Ok(Status::UploadCompleting));
        assert_eq!(step(again, Event::Abort), Ok(Status::UploadAborted));
        assert_eq!(step(Status::UploadCreated, Event::Begin { missing: 2 }), Err(Denied::Missing(2)));
        assert_eq!(step(Status::UploadCompleted, Event::Abort), Err(Denied::Ended));
    }
}
