use nullspace_types::Code;
use proptest::prelude::*;

use super::*;

const SECRET: &str = "a secret of 16 to 256 characters";

fn create(change: impl FnOnce(&mut WebhookCreate)) -> Result<WebhookSpec> {
    let mut request = WebhookCreate {
        url: Some("https://example.com/hook?token=1".into()),
        operations: Some(vec!["create".into(), "fork".into(), "create".into()]),
        signing_secret: Some(SECRET.into()),
        enabled: None,
    };
    change(&mut request);
    validate_create(request, false)
}

fn url(text: &str) -> Result<WebhookSpec> {
    create(|request| request.url = Some(text.into()))
}

fn refusal<T>(answer: Result<T>) -> Error {
    match answer {
        Ok(_) => panic!("it is not refused"),
        Err(error) => error,
    }
}

#[test]
fn a_webhook_is_taken_as_it_was_given_with_each_operation_once() {
    let spec = create(|_| {}).ok().unwrap();
    assert_eq!(spec.operations, [Operation::Create, Operation::Fork]);
    assert!(spec.enabled && spec.url == "https://example.com/hook?token=1");
    let nothing = validate_update(WebhookUpdate::default(), false).ok().unwrap();
    assert!(nothing == WebhookUpdateSpec::default());
}

#[test]
fn every_field_out_of_its_rules_is_named_and_no_secret_repeated() {
    let long = format!("https://example.com/{}", "x".repeat(2048));
    let refused: [(Result<WebhookSpec>, &str); 15] = [
        (create(|request| request.url = None), "url is missing"),
        (url("ftp://example.com/"), "url must be an http or https URL"),
        (url("https://"), "url must be an http or https URL"),
        (url("nonsense"), "url must be an http or https URL"),
        (url("https://user:secret@example.com/"), "user or password"),
        (url("https://example.com/#x"), "fragment"),
        (url(" https://example.com/"), "url"),
        (url(&long), "url must have at most 2048 bytes, got 2068"),
        (create(|request| request.operations = None), "operations is missing"),
        (create(|request| request.operations = Some(vec![])), "operations must name at least one"),
        (create(|request| request.operations = Some(vec!["explode".into()])), "operations must be one of"),
        (create(|request| request.signing_secret = None), "signing_secret is missing"),
        (
            create(|request| request.signing_secret = Some("short".into())),
            "signing_secret must have 16 to 256",
        ),
        (
            create(|request| request.signing_secret = Some("x".repeat(257))),
            "signing_secret must have 16 to 256",
        ),
        (
            create(|request| request.signing_secret = Some("ä".repeat(16))),
            "signing_secret must have 16 to 256",
        ),
    ];
    for (answer, says) in refused {
        let error = refusal(answer);
        assert!(error.code == Code::InvalidRequest && error.message.contains(says), "{says}: {error}");
        assert!(!error.message.contains("secret@") && !error.message.contains("short"), "{error}");
    }
}

#[test]
fn however_a_private_address_is_spelled_it_is_refused_unless_the_operator_allows_it() {
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.31.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a01:203]",
        "[64:ff9b::10.0.0.1]",
        "[2002:7f00:1::]",
        "[::127.0.0.1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[ff02::1]",
        "[fec0::1]",
        "[2001:db8::1]",
    ] {
        let text = format!("http://{host}:8080/");
        let error = refusal(url(&text));
        assert!(error.message.contains("url must not lead to"), "{host}: {error}");
        let request = WebhookUpdate { url: Some(text), ..WebhookUpdate::default() };
        assert!(validate_update(request, true).is_ok(), "{host}");
    }
    for host in
        ["1.1.1.1", "172.32.0.1", "100.128.0.1", "[2606:4700::1111]", "[64:ff9b::1.1.1.1]", "localhost"]
    {
        assert!(url(&format!("http://{host}/")).is_ok(), "{host}");
    }
}

proptest! {
    #[test]
    fn no_address_of_a_private_network_is_public_in_either_family(host in any::<u32>(), network in 0_usize..8) {
        let (base, bits) = [
            ([127, 0, 0, 0], 8), ([10, 0, 0, 0], 8), ([172, 16, 0, 0], 12), ([192, 168, 0, 0], 16),
            ([169, 254, 0, 0], 16), ([100, 64, 0, 0], 10), ([224, 0, 0, 0], 4), ([0, 0, 0, 0], 8),
        ][network];
        let address = Ipv4Addr::from(u32::from_be_bytes(base) | (host & (u32::MAX >> bits)));
        prop_assert!(address_refused(address.into()).is_some());
        prop_assert!(address_refused(address.to_ipv6_mapped().into()).is_some());
    }

    #[test]
    fn what_the_standard_library_calls_private_is_refused(bits in any::<u128>(), narrow in any::<u32>()) {
        let six = Ipv6Addr::from(bits);
        let private = six.is_loopback() || six.is_multicast() || six.is_unspecified()
            || six.is_unique_local() || six.is_unicast_link_local();
        prop_assert!(!private || address_refused(six.into()).is_some());
        let four = Ipv4Addr::from(narrow);
        let private = four.is_loopback() || four.is_multicast() || four.is_unspecified() || four.is_private()
            || four.is_link_local() || four.is_broadcast() || four.is_documentation();
        prop_assert!(!private || address_refused(four.into()).is_some());
        prop_assert_eq!(address_refused(four.into()), address_refused(four.to_ipv6_mapped().into()));
    }

    #[test]
    fn delays_grow_within_their_bounds(attempt in 1_u32..10_000, chance in 0.0_f64..1.0) {
        let delay = retry_delay(attempt, chance);
        prop_assert!(delay >= SHORTEST_DELAY && delay <= LONGEST_DELAY);
        prop_assert!(delay <= retry_delay(attempt + 1, chance));
        prop_assert!(delay <= retry_delay(attempt, 1.0));
    }

    #[test]
    fn a_delivery_that_never_succeeds_is_given_up_after_a_day_and_not_before(chances in prop::collection::vec(0.0_f64..1.0, 1..50)) {
        let created = Timestamp::UNIX_EPOCH;
        let (mut now, mut attempt) = (created, 1);
        let mut chances = chances.into_iter().cycle();
        while let Some(next) = next_attempt(created, now, attempt, chances.next().unwrap_or(0.5)) {
            prop_assert!(next > now && next.duration_since(created) <= DELIVERY_LIFETIME.try_into().unwrap());
            (now, attempt) = (next, attempt + 1);
        }
        prop_assert_eq!(now.duration_since(created), DELIVERY_LIFETIME.try_into().unwrap());
    }
}
