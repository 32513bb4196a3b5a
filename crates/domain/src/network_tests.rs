use nullspace_types::network::{DenyReason, EgressPolicy};
use serde_json::{Value, json};

use super::*;

fn asked(network: Value) -> Result<NetworkSettings> {
    settings(network.as_object())
}

fn enforced(internet_access: bool, network: Value) -> EgressPolicy {
    policy(internet_access, &asked(network).unwrap(), |_| None)
}

#[test]
fn what_is_wrong_with_a_setting_is_said_with_its_name() {
    for (network, says) in [
        (json!({"egress": {}}), "there is no setting \"egress\""),
        (json!({"allow_public_traffic": "yes"}), "network.allow_public_traffic must be true or false"),
        (json!({"mask_request_host": "a b"}), "network.mask_request_host must be a host"),
        (json!({"mask_request_host": "x:${PORT}${PORT}"}), "network.mask_request_host must be a host"),
        (json!({"allow_out": "10.0.0.0/8"}), "network.allow_out must be a list"),
        (json!({"deny_out": ["10.0.0.1/8"]}), "write 10.0.0.0/8"),
        (json!({"deny_out": ["::/0"]}), "IPv6 is off"),
        (json!({"deny_out": ["10.0.0.0/33"]}), "/33 is not a prefix length"),
        (json!({"allow_domains": ["1.2.3.4"]}), "addresses go to allow_out"),
        (json!({"allow_domains": ["a.*.example.com"]}), "must be a name such as"),
        (json!({"deny_domains": ["exa mple.com"]}), "must be a name such as"),
        (json!({"allow_out": vec!["1.2.3.4"; 1001]}), "at most 1000 entries, got 1001"),
        (json!({"inject": [{"host": "*.a.com", "header": "x", "secret": "s"}]}), "one host's name"),
        (json!({"inject": [{"host": "a.com", "header": "Host", "secret": "s"}]}), "cannot be added"),
        (json!({"inject": [{"host": "a.com", "header": "x", "secret": "s", "format": "y"}]}), "${secret}"),
        (json!({"inject": [{"host": "a.com", "header": "x"}]}), "a rule needs secret"),
        (json!({"limits": {"connections_max": 0}}), "between 1 and 8192, got 0"),
        (json!({"limits": {"packets": 1}}), "no \"packets\""),
    ] {
        let error = asked(network.clone()).unwrap_err();
        assert!(error.message.contains(says), "{network}: {error}");
    }
}

#[test]
fn a_change_replaces_what_it_names_and_leaves_the_rest() {
    let before = asked(json!({"deny_out": ["1.2.3.4"], "allow_domains": ["a.com"]})).unwrap();
    let given = json!({"internet_access": false, "allow_domains": null, "allow_out": ["5.6.7.8/32"]});
    let (internet, after) = change(true, &before, given.as_object().unwrap()).unwrap();
    assert!(!internet);
    assert_eq!(after, asked(json!({"deny_out": ["1.2.3.4"], "allow_out": ["5.6.7.8"]})).unwrap());
}

#[test]
fn a_pattern_speaks_of_what_is_below_it_and_not_of_itself_or_of_what_ends_alike() {
    let policy = enforced(true, json!({"allow_domains": ["*.Example.com.", "one.test"]}));
    for (name, allowed) in [
        ("a.example.com", true),
        ("a.b.example.com", true),
        ("example.com", false),
        ("badexample.com", false),
        ("one.test", true),
        ("a.one.test", false),
    ] {
        assert_eq!(super::name(&policy, name) == Verdict::Allow, allowed, "{name}");
    }
}

#[test]
fn every_connection_has_the_verdict_that_the_rules_say() {
    use DenyReason::{AddressNotAllowed, DeniedAddress, DeniedName, NameNotAllowed, NoName};
    let address = "203.0.113.7".parse().unwrap();
    for (internet, network, shown, verdict) in [
        (true, json!({}), None, Verdict::Allow),
        (false, json!({}), Some("a.com"), Verdict::Deny(AddressNotAllowed)),
        (true, json!({"deny_out": ["0.0.0.0/0"]}), None, Verdict::Deny(DeniedAddress)),
        (true, json!({"deny_out": ["0.0.0.0/0"], "allow_out": ["203.0.113.0/24"]}), None, Verdict::Allow),
        (false, json!({"allow_out": ["203.0.113.7"]}), None, Verdict::Allow),
        (true, json!({"allow_domains": ["a.com"]}), None, Verdict::Deny(NoName)),
        (true, json!({"allow_domains": ["a.com"]}), Some("b.com"), Verdict::Deny(NameNotAllowed)),
        (true, json!({"allow_domains": ["a.com"]}), Some("a.com"), Verdict::AllowIfGiven),
        (false, json!({"allow_domains": ["a.com"]}), Some("a.com"), Verdict::AllowIfGiven),
        (
            true,
            json!({"allow_domains": ["a.com"], "deny_out": ["0.0.0.0/0"]}),
            Some("a.com"),
            Verdict::AllowIfGiven,
        ),
        (
            true,
            json!({"allow_domains": ["*.a.com"], "deny_domains": ["x.a.com"]}),
            Some("x.a.com"),
            Verdict::Deny(DeniedName),
        ),
        (true, json!({"deny_domains": ["a.com"]}), Some("a.com"), Verdict::Deny(DeniedName)),
        (true, json!({"deny_domains": ["a.com"]}), Some("b.com"), Verdict::AllowIfGiven),
        (true, json!({"deny_domains": ["a.com"]}), None, Verdict::AllowIfKnown),
        (
            true,
            json!({"deny_domains": ["a.com"], "deny_out": ["203.0.113.7"]}),
            Some("b.com"),
            Verdict::Deny(DeniedAddress),
        ),
    ] {
        let policy = enforced(internet, network.clone());
        assert_eq!(connection(&policy, address, shown), verdict, "{internet} {network} {shown:?}");
    }
}
