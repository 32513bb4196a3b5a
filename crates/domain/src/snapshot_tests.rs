use nullspace_types::sandbox::SandboxStatus;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn judge(body: Value) -> Result<FromSnapshotSpec> {
    let request: SandboxCreate = serde_json::from_value(body).expect("the body has the right types");
    validate_create(&request.snapshot_id.clone().expect("a snapshot"), &request, &Limits::default())
}

#[test]
fn what_the_snapshot_decides_cannot_be_asked_for() {
    let id = SnapshotId::new();
    for (field, value) in [
        ("template", json!("base")),
        ("vcpus", json!(2)),
        ("memory_mb", json!(512)),
        ("disk_mb", json!(4096)),
        ("envs", json!({})),
        ("cwd", json!("/tmp")),
        ("internet_access", json!(false)),
        ("network", json!({"allow_out": ["192.0.2.0/24"]})),
        ("network", json!({"inject": [{"host": "a.b", "header": "x", "secret": "s"}]})),
    ] {
        let error = judge(json!({"snapshot_id": id, field: value})).unwrap_err();
        assert!(error.code == Code::InvalidRequest && error.message.starts_with(field), "{error}");
    }
    let error = judge(json!({"snapshot_id": "snap_1"})).unwrap_err();
    assert!(error.message.starts_with("snapshot_id: not a valid snapshot ID"), "{error}");
    let spec = judge(json!({
        "snapshot_id": id, "timeout_ms": 5, "lifecycle": {"on_timeout": "pause"}, "auto_resume": true,
        "internet_access": true, "network": {"allow_public_traffic": false, "deny_out": []}, "volumes": null,
    }));
    assert_eq!(
        spec.unwrap(),
        FromSnapshotSpec {
            snapshot_id: id,
            timeout_ms: 5,
            timeout_action: TimeoutAction::Hibernate,
            auto_resume: true,
            metadata: None,
            network: json!({"allow_public_traffic": false}).as_object().cloned().unwrap(),
        }
    );
}

#[test]
fn each_bound_names_field_bounds_and_value() {
    for (count, valid) in [(-1, false), (0, false), (1, true), (64, true), (65, false), (i64::MAX, false)] {
        let judged = fork_count(&SandboxFork { count: Some(count) });
        assert_eq!(judged.is_ok(), valid);
        if let Err(error) = judged {
            assert_eq!(error.message, format!("count must be between 1 and 64, got {count}"));
        }
    }
    assert_eq!(fork_count(&SandboxFork::default()), Ok(None));
    let diff = |against: Option<&str>, limit: Option<&str>| {
        let query = SandboxDiffQuery { against: against.map(str::to_owned), limit: limit.map(str::to_owned) };
        validate_diff(&query).map_err(|error| error.message)
    };
    let id = SnapshotId::new();
    assert_eq!(diff(Some(&id.to_string()), None), Ok((Named::Snapshot(id), 10_000)));
    assert!(diff(None, None).unwrap_err().starts_with("against is missing"));
    assert!(diff(Some("x"), None).unwrap_err().starts_with("against must be the ID of a sandbox"));
    for limit in ["0", "100001", "x", "-1"] {
        let message = diff(Some(&id.to_string()), Some(limit)).unwrap_err();
        assert_eq!(message, format!("limit must be between 1 and 100000, got {limit:?}"));
    }
    let list = |sandbox_id: Option<&str>, metadata: Option<&str>| {
        validate_list(&SnapshotListQuery {
            sandbox_id: sandbox_id.map(str::to_owned),
            metadata: metadata.map(str::to_owned),
        })
    };
    assert!(list(Some("sb_1"), None).unwrap_err().message.starts_with("sandbox_id: not a valid"));
    assert!(list(None, Some("[]")).unwrap_err().message.starts_with("metadata must be a JSON object"));
    assert_eq!(list(None, None), Ok(SnapshotListSpec::default()));
}

fn node(id: SandboxId, parent_id: Option<SandboxId>) -> SandboxTreeNode {
    SandboxTreeNode {
        id,
        parent_id,
        snapshot_id: None,
        depth: 0,
        status: SandboxStatus::Running,
        created_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
    }
}

proptest! {
    #[test]
    fn a_tree_lists_each_relative_once_right_below_its_parents_and_older_siblings(
        parents in prop::collection::vec(any::<prop::sample::Index>(), 0..60)
    ) {
        let ids: Vec<SandboxId> = (0..=parents.len()).map(|_| SandboxId::new()).collect();
        let mut family = vec![node(ids[0], None)];
        for (at, parent) in parents.iter().enumerate() {
            family.push(node(ids[at + 1], Some(ids[parent.index(at + 1)])));
        }
        let items = depth_first(ids[0], family);
        prop_assert_eq!(items.len(), ids.len());
        let mut path: Vec<SandboxId> = vec![];
        let mut siblings: HashMap<Option<SandboxId>, SandboxId> = HashMap::new();
        for item in &items {
            path.truncate(item.depth as usize);
            prop_assert_eq!(path.last().copied(), item.parent_id);
            path.push(item.id);
            let older = siblings.insert(item.parent_id, item.id);
            prop_assert!(older.is_none_or(|older| older < item.id));
        }
    }
}
