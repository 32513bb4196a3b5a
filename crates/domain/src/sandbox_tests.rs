use proptest::prelude::*;
use serde_json::json;

use super::*;

fn judge(body: Value) -> Result<SandboxSpec> {
    validate(serde_json::from_value(body).expect("the body has the right types"), &Limits::default())
}

#[test]
fn an_empty_request_and_explicit_nulls_give_the_defaults() {
    let spec = judge(json!({})).unwrap();
    assert_eq!((spec.vcpus, spec.memory_mb, spec.disk_mb, spec.timeout_ms), (1, 256, None, 300_000));
    assert_eq!(
        (spec.template.as_str(), spec.timeout_action, spec.internet_access),
        ("base", TimeoutAction::Destroy, true)
    );
    let nulls = json!({"network": null, "cwd": null, "desktop": null, "volumes": null, "auto_resume": false});
    assert_eq!(judge(nulls).unwrap(), spec);
}

#[test]
fn each_bound_names_field_bounds_and_value() {
    for (body, says) in [
        (json!({"vcpus": 0}), "vcpus must be between 1 and 8, got 0"),
        (json!({"vcpus": 9}), "vcpus must be between 1 and 8, got 9"),
        (json!({"memory_mb": 255}), "memory_mb must be between 256 and 65536, got 255"),
        (json!({"memory_mb": -1}), "memory_mb must be between 256 and 65536, got -1"),
        (json!({"disk_mb": 511}), "disk_mb must be between 512 and 131072, got 511"),
        (json!({"timeout_ms": 0}), "timeout_ms must be between 1 and 2592000000, got 0"),
        (
            json!({"timeout_ms": i64::MAX}),
            "timeout_ms must be between 1 and 2592000000, got 9223372036854775807",
        ),
        (json!({"template": ""}), "template must be 1 to 128 bytes long, got 0"),
        (json!({"template": "a b"}), "template must consist of letters"),
        (json!({"envs": {"A=B": "c"}}), "must not contain '='"),
        (json!({"envs": {"A": "x".repeat(131_072)}}), "envs must be at most 131072 bytes"),
        (json!({"metadata": {"a": "x".repeat(65_536)}}), "metadata must be at most 65536 bytes as JSON"),
        (json!({"metadata": {"volume_attachments": []}}), "\"volume_attachments\" is written by the server"),
        (json!({"cwd": "relative"}), "cwd must be an absolute path"),
        (json!({"cwd": "/workspace/.nullspace/x"}), "cwd must not lie in /workspace/.nullspace"),
        (json!({"timeout_action": "destroy", "lifecycle": {"on_timeout": "pause"}}), "lifecycle.on_timeout"),
        (json!({"auto_resume": true}), "auto_resume needs timeout_action"),
        (json!({"network": {"deny_out": ["10.0.0.1/8"]}}), "network.deny_out: 10.0.0.1/8 has bits beyond"),
        (json!({"network": {"egress": {}}}), "network: there is no setting \"egress\""),
    ] {
        let error = judge(body.clone()).unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest, "{body}: {error}");
        assert!(error.message.contains(says), "{body}: {error}");
    }
}

#[test]
fn what_does_not_exist_yet_is_said_to_be_not_implemented() {
    for body in [json!({"volumes": [{}]}), json!({"desktop": {}}), json!({"warm_pool": {"mode": "prefer"}})] {
        assert_eq!(judge(body.clone()).unwrap_err().code, Code::NotImplemented, "{body}");
    }
    assert!(judge(json!({"volumes": [], "network": {}})).is_ok());
}

#[test]
fn a_sandbox_may_hibernate_at_its_timeout_and_then_wake_by_itself_for_good() {
    for body in [json!({"timeout_action": "hibernate"}), json!({"lifecycle": {"on_timeout": "pause"}})] {
        let spec = judge(body).unwrap();
        assert_eq!((spec.timeout_action, spec.auto_resume), (TimeoutAction::Hibernate, false));
    }
    let body = json!({"auto_resume": true, "lifecycle": {"on_timeout": "pause"}});
    assert!(judge(body).unwrap().auto_resume);
    let set = |timeout_action, auto_resume| {
        let request = SandboxTimeoutSet { timeout_ms: 1, timeout_action };
        validate_timeout(request, auto_resume, &Limits::default())
    };
    let refused = set(Some(TimeoutAction::Destroy), true).unwrap_err();
    assert!(refused.code == Code::InvalidRequest && refused.message.contains("auto_resume"), "{refused}");
    assert!(set(Some(TimeoutAction::Destroy), false).is_ok());
    assert!(set(Some(TimeoutAction::Hibernate), true).is_ok() && set(None, true).is_ok());
}

#[test]
fn the_cwd_is_kept_normalised() {
    assert_eq!(judge(json!({"cwd": "/srv//app/"})).unwrap().cwd.as_deref(), Some("/srv/app"));
}

proptest! {
    #[test]
    fn no_number_makes_a_spec_out_of_bounds(vcpus: i64, memory_mb: i64, disk_mb: i64, timeout_ms: i64) {
        let limits = Limits::default();
        let request = SandboxCreate {
            vcpus: Some(vcpus), memory_mb: Some(memory_mb), disk_mb: Some(disk_mb), timeout_ms: Some(timeout_ms),
            ..SandboxCreate::default()
        };
        if let Ok(spec) = validate(request, &limits) {
            prop_assert!((1..=limits.vcpus_max).contains(&spec.vcpus));
            prop_assert!((limits.memory_mb_min..=limits.memory_mb_max).contains(&spec.memory_mb));
            prop_assert!((1..=limits.timeout_ms_max).contains(&spec.timeout_ms));
        }
    }
}
