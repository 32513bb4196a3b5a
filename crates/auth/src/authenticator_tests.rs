use nullspace_types::id::TenantId;

use super::*;

async fn store(directory: &tempfile::TempDir) -> Arc<dyn Store> {
    nullspace_store::open(&format!("sqlite://{}/store.db", directory.path().display())).await.unwrap()
}

async fn with_ttl(store: Arc<dyn Store>, ttl: Duration) -> Authenticator {
    Authenticator { ttl, ..Authenticator::open(store).await.unwrap() }
}

fn bearer(secret: &Secret) -> String {
    format!("Bearer {}", secret.expose())
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_good_key_proves_its_tenant() {
    let directory = tempfile::tempdir().unwrap();
    let authenticator = Authenticator::open(store(&directory).await).await.unwrap();
    let one = authenticator.key_create("one", "laptop").await.unwrap();
    let two = authenticator.key_create("two", "").await.unwrap();
    let principal = authenticator.authenticate(Some(&bearer(&one.secret))).await.unwrap();
    assert_eq!(principal, Principal { tenant_id: one.key.tenant_id, key_id: one.key.id });
    let lower = format!("  bearer   {} ", two.secret.expose());
    assert_eq!(authenticator.authenticate(Some(&lower)).await.unwrap().tenant_id, two.key.tenant_id);
    assert_ne!(one.key.tenant_id, two.key.tenant_id);
}

#[tokio::test]
async fn every_refusal_is_unauthorized_says_why_and_repeats_nothing_of_the_header() {
    let directory = tempfile::tempdir().unwrap();
    let authenticator = Authenticator::open(store(&directory).await).await.unwrap();
    let revoked = authenticator.key_create("default", "").await.unwrap();
    authenticator.key_revoke(revoked.key.id).await.unwrap();
    let unknown = Secret::generate().unwrap();
    for (header, says) in [
        (None, "no API key"),
        (Some("  ".to_owned()), "no API key"),
        (Some("Basic c2VjcmV0".to_owned()), "scheme Bearer"),
        (Some("Bearer".to_owned()), "malformed"),
        (Some("Bearer ns_live_tooshort".to_owned()), "malformed"),
        (Some(bearer(&unknown)), "does not know"),
        (Some(bearer(&revoked.secret)), "revoked"),
    ] {
        let error = authenticator.authenticate(header.as_deref()).await.unwrap_err();
        assert_eq!(error.code, Code::Unauthorized, "{header:?}");
        assert!(error.message.contains(says), "{header:?}: {error}");
        if let Some(key) = header.as_deref().and_then(|header| header.split_once(' ')?.1.get(..8)) {
            assert!(!format!("{error:?}").replace("a key is ns_live_", "").contains(key), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_revocation_here_holds_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let authenticator = with_ttl(store(&directory).await, LONG).await;
    let made = authenticator.key_create("default", "").await.unwrap();
    let principal = authenticator.authenticate(Some(&bearer(&made.secret))).await.unwrap();
    assert_eq!(authenticator.still_good(principal).await, Ok(()));
    let foreign = Principal { tenant_id: TenantId::new(), ..principal };
    assert_eq!(authenticator.still_good(foreign).await.unwrap_err().code, Code::Unauthorized);
    authenticator.key_revoke(made.key.id).await.unwrap();
    assert!(authenticator.authenticate(Some(&bearer(&made.secret))).await.is_err());
    assert_eq!(authenticator.still_good(principal).await.unwrap_err().code, Code::Unauthorized);
}

#[tokio::test]
async fn a_revocation_elsewhere_holds_when_the_cached_key_is_due_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory).await;
    let (cached, due) = (with_ttl(store.clone(), LONG).await, with_ttl(store.clone(), Duration::ZERO).await);
    let made = keys::create(&*store, "default", "").await.unwrap();
    let header = bearer(&made.secret);
    cached.authenticate(Some(&header)).await.unwrap();
    due.authenticate(Some(&header)).await.unwrap();
    keys::revoke(&*store, made.key.id).await.unwrap();
    assert!(due.authenticate(Some(&header)).await.is_err());
    // Also shows that a cached key costs no read: the store is not asked, or it would be refused.
    assert!(cached.authenticate(Some(&header)).await.is_ok());
    store.close().await;
    assert!(cached.authenticate(Some(&header)).await.is_ok());
    assert_eq!(due.authenticate(Some(&header)).await.unwrap_err().code, Code::Unavailable);
}

#[tokio::test]
async fn what_was_read_before_a_revocation_is_not_remembered_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let authenticator = with_ttl(store(&directory).await, LONG).await;
    let made = authenticator.key_create("default", "").await.unwrap();
    let principal = authenticator.authenticate(Some(&bearer(&made.secret))).await.unwrap();
    let epoch = authenticator.cache().epoch;
    authenticator.key_revoke(made.key.id).await.unwrap();
    authenticator.remember(made.secret.hash(), principal, epoch, Instant::now());
    assert!(authenticator.authenticate(Some(&bearer(&made.secret))).await.is_err());
}

#[tokio::test]
async fn the_cache_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let authenticator = with_ttl(store(&directory).await, LONG).await;
    let made = authenticator.key_create("default", "").await.unwrap();
    let principal = Principal { tenant_id: made.key.tenant_id, key_id: made.key.id };
    for number in 0..=u32::try_from(CACHE_MAX).unwrap() {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        authenticator.remember(hash, principal, 0, Instant::now());
        assert!(authenticator.cache().good.len() <= CACHE_MAX);
    }
}

#[tokio::test]
async fn keys_are_listed_by_tenant_and_bad_names_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authenticator = Authenticator::open(store(&directory).await).await.unwrap();
    let one = authenticator.key_create("one", "laptop").await.unwrap().key;
    let two = authenticator.key_create("two", "ci").await.unwrap().key;
    assert_eq!(authenticator.key_list(None).await.unwrap(), [one.clone(), two]);
    assert_eq!(authenticator.key_list(Some("one")).await.unwrap(), [one]);
    assert_eq!(authenticator.key_list(Some("three")).await.unwrap_err().code, Code::NotFound);
    assert_eq!(authenticator.key_revoke(KeyId::new()).await.unwrap_err().code, Code::NotFound);
    for (tenant, label) in
        [("", ""), ("a b", ""), (&"a".repeat(65), ""), ("a", "\n"), ("a", &"l".repeat(129))]
    {
        let error = authenticator.key_create(tenant, label).await.unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest, "{tenant:?} {label:?}");
    }
}

#[tokio::test]
async fn a_grant_ends_with_the_key_that_signed_it_and_outlives_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let authenticator = Authenticator::open(store(&directory).await).await.unwrap();
    let made = authenticator.key_create("one", "").await.unwrap();
    let signed_by = Principal { tenant_id: made.key.tenant_id, key_id: made.key.id };
    let grant = Grant {
        sandbox_id: nullspace_types::id::SandboxId::new(),
        direction: Direction::Upload,
        path: "/tmp/a".into(),
        user: None,
        expires: i64::MAX,
    };
    let query = authenticator.grant(signed_by, &grant).query;
    let next = Authenticator::open(store(&directory).await).await.unwrap();
    let sandbox = grant.sandbox_id.to_string();
    let judge = || next.authenticate_grant(&sandbox, grant.direction, &query);
    assert_eq!(judge().await, Ok(signed_by));
    authenticator.key_revoke(made.key.id).await.unwrap();
    assert_eq!(judge().await.unwrap_err().code, Code::EdgeTokenInvalid);
}
