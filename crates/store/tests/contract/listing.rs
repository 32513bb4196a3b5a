//! Lists: whose, which, and how they are paged.

use std::collections::BTreeSet;

use nullspace_store::Error;
use nullspace_store::event::EventFilter;
use nullspace_store::sandbox::{
    DesiredState, Destruction, ObservedState, SandboxCounts, SandboxFilter, SandboxRow, StateFilter,
};
use nullspace_store::{Store, now};
use nullspace_types::event::{EventStatus, Operation};
use nullspace_types::id::{IncarnationId, SandboxId, TenantId};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::world::{World, applied, event, hibernation, new, object, seen};

fn all() -> SandboxFilter {
    SandboxFilter { limit: 1000, ..SandboxFilter::default() }
}

/// Every page after another, each as long as the filter's limit at most.
async fn paged(store: &dyn Store, tenant: TenantId, mut filter: SandboxFilter) -> Vec<SandboxRow> {
    let mut rows: Vec<SandboxRow> = vec![];
    loop {
        let page = store.sandbox_list(tenant, &filter).await.unwrap();
        assert!(page.len() <= filter.limit as usize);
        let Some(last) = page.last() else { return rows };
        filter.after = Some(last.id);
        rows.extend(page);
    }
}

pub async fn tenants_do_not_see_each_other(world: &World) {
    let (one, two) = (world.tenant("one").await, world.tenant("two").await);
    let mut tagged = new(one);
    tagged.metadata = object(r#"{"team":"red"}"#);
    let created = event(Operation::Create, EventStatus::Requested);
    let row = world.insert(&tagged, None, std::slice::from_ref(&created)).await;

    assert_eq!(world.store.sandbox_get(one, row.id).await.unwrap(), row);
    for (tenant, id) in [(two, row.id), (one, SandboxId::new())] {
        assert!(matches!(world.store.sandbox_get(tenant, id).await, Err(Error::NotFound("sandbox"))));
    }
    let team = SandboxFilter { metadata: tagged.metadata, ..all() };
    assert_eq!(world.store.sandbox_list(one, &team).await.unwrap(), [row]);
    assert_eq!(world.store.sandbox_list(two, &team).await.unwrap(), []);
    assert_eq!(world.store.sandbox_list(two, &all()).await.unwrap(), []);
    assert_eq!(world.store.sandbox_counts(two).await.unwrap(), SandboxCounts::default());
    assert_eq!(world.store.sandbox_counts(one).await.unwrap().creating, 1);
    let events = EventFilter { limit: 10, ..EventFilter::default() };
    assert_eq!(world.store.event_list(one, &events).await.unwrap().len(), 1);
    assert_eq!(world.store.event_list(two, &events).await.unwrap(), []);
    assert!(world.store.event_cursor(one, created.id).await.unwrap().is_some());
    assert_eq!(world.store.event_cursor(two, created.id).await.unwrap(), None);
}

pub async fn metadata_is_matched_pair_by_pair_as_json(world: &World) {
    let tenant = world.tenant("one").await;
    let mut asked = new(tenant);
    asked.metadata = object(
        r#"{"s":"x","n":1,"f":0.5,"b":true,"z":null,"a":[1,{"p":1,"q":2}],"o":{"p":{"q":[]},"r":"s"},
            "":"empty","we.ird '\"$%\u0000":"\u0000","big":9007199254740993}"#,
    );
    let row = world.insert(&asked, None, &[]).await;
    let mut other = new(tenant);
    other.metadata = object(r#"{"s":"x"}"#);
    let other = world.insert(&other, None, &[]).await;
    world.asked(tenant).await;

    let found = async |filter: &str| {
        let filter = SandboxFilter { metadata: object(filter), ..all() };
        let rows = world.store.sandbox_list(tenant, &filter).await.unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(found("{}").await.len(), 3);
    assert_eq!(found(r#"{"s":"x"}"#).await, [other.id, row.id]);
    for filter in [
        r#"{"s":"x","n":1}"#,
        r#"{"n":1.0}"#,
        r#"{"f":5e-1}"#,
        r#"{"b":true,"z":null}"#,
        r#"{"a":[1.0,{"q":2,"p":1}]}"#,
        r#"{"o":{"r":"s","p":{"q":[]}}}"#,
        r#"{"":"empty"}"#,
        r#"{"we.ird '\"$%\u0000":"\u0000"}"#,
        r#"{"big":9007199254740993}"#,
    ] {
        assert_eq!(found(filter).await, [row.id], "{filter}");
    }
    for filter in [
        r#"{"s":"X"}"#,
        r#"{"s":null}"#,
        r#"{"n":"1"}"#,
        r#"{"b":1}"#,
        r#"{"missing":null}"#,
        r#"{"a":[1]}"#,
        r#"{"a":[{"p":1,"q":2},1]}"#,
        r#"{"o":{"r":"s"}}"#,
        r#"{"s":"x","n":2}"#,
        r#"{"big":9007199254740992}"#,
    ] {
        assert_eq!(found(filter).await, [], "{filter}");
    }
}

const STATES: [(DesiredState, ObservedState); 7] = [
    (DesiredState::Running, ObservedState::None),
    (DesiredState::Running, ObservedState::Running),
    (DesiredState::Running, ObservedState::Lost),
    (DesiredState::Destroyed, ObservedState::Running),
    (DesiredState::Paused, ObservedState::Running),
    (DesiredState::Paused, ObservedState::Paused),
    (DesiredState::Running, ObservedState::Paused),
];

const TEMPLATES: [&str; 2] = ["base", "python"];

/// What the filter means, without a database.
fn passes(row: &SandboxRow, filter: &SandboxFilter) -> bool {
    let state = |state: &StateFilter| {
        state.desired == row.desired.state
            && state.observed.is_none_or(|observed| observed == row.observed.state)
    };
    filter.states.as_ref().is_none_or(|states| states.iter().any(state))
        && filter.template.as_ref().is_none_or(|template| *template == row.desired.template)
        && filter.metadata.iter().all(|(name, value)| row.desired.metadata.get(name) == Some(value))
        && filter.after.is_none_or(|after| row.id < after)
}

fn metadata() -> impl Strategy<Value = String> {
    prop::collection::btree_map("[ab]", 0..3_u8, 0..=2).prop_map(|map| serde_json::to_string(&map).unwrap())
}

fn filters(ids: Vec<SandboxId>) -> impl Strategy<Value = SandboxFilter> {
    let observed = prop::option::of(prop::sample::select(vec![
        ObservedState::None,
        ObservedState::Running,
        ObservedState::Paused,
        ObservedState::Lost,
    ]));
    let desired =
        prop::sample::select(vec![DesiredState::Running, DesiredState::Paused, DesiredState::Destroyed]);
    let state = (desired, observed).prop_map(|(desired, observed)| StateFilter { desired, observed });
    (
        prop::option::of(prop::collection::vec(state, 0..3)),
        prop::option::of(prop::sample::select(TEMPLATES.to_vec())),
        metadata(),
        prop::option::of(prop::sample::select(ids)),
        1..20_u32,
    )
        .prop_map(|(states, template, metadata, after, limit)| SandboxFilter {
            states,
            template: template.map(Into::into),
            metadata: object(&metadata),
            after,
            limit,
        })
}

pub async fn pages_hold_what_passes_the_filter_once_and_in_order(world: &World) {
    let tenant = world.tenant("one").await;
    let mut runner = TestRunner::deterministic();
    for index in 0..84_usize {
        let mut asked = new(tenant);
        asked.template = TEMPLATES[index % TEMPLATES.len()].into();
        asked.metadata = object(&metadata().new_tree(&mut runner).unwrap().current());
        let row = world.insert(&asked, None, &[]).await;
        let (desired, observed) = STATES[index / 2 % STATES.len()];
        if observed != ObservedState::None {
            applied(
                world.store.sandbox_running(row.id, &seen(&row, ObservedState::Running, 1), now(), &[]).await,
            );
        }
        if observed == ObservedState::Lost {
            applied(world.store.sandbox_observed(row.id, &seen(&row, ObservedState::Lost, 2), &[]).await);
        }
        let snapshot = hibernation(&row);
        if desired == DesiredState::Paused || observed == ObservedState::Paused {
            applied(world.store.sandbox_pause_begin(row.id, snapshot.id, &[]).await);
        }
        if observed == ObservedState::Paused {
            applied(world.store.sandbox_paused(row.id, &snapshot, &[]).await);
        }
        if (desired, observed) == (DesiredState::Running, ObservedState::Paused) {
            applied(world.store.sandbox_resume_begin(row.id, IncarnationId::new(), &[]).await);
        }
        if desired == DesiredState::Destroyed {
            applied(world.store.sandbox_destroy_request(row.id, "manual", false, &[]).await);
        }
    }
    let rows = world.store.sandbox_list(tenant, &all()).await.unwrap();
    assert_eq!(rows.len(), 84);
    assert!(rows.is_sorted_by(|newer, older| newer.id > older.id));
    let filters = filters(rows.iter().map(|row| row.id).collect());
    for _ in 0..80 {
        let filter = filters.new_tree(&mut runner).unwrap().current();
        let expected: Vec<_> = rows.iter().filter(|row| passes(row, &filter)).cloned().collect();
        assert_eq!(paged(&*world.store, tenant, filter.clone()).await, expected, "{filter:?}");
    }
}

pub async fn pages_lose_and_repeat_nothing_while_others_insert(world: &World) {
    let tenant = world.tenant("one").await;
    let mut before = BTreeSet::new();
    for _ in 0..30 {
        before.insert(world.asked(tenant).await.id);
    }
    let store = world.store.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let writer = tokio::spawn(async move {
        let mut stopped = std::pin::pin!(stopped);
        // Ends what it inserts too: history moves nothing in the pages.
        while futures::poll!(&mut stopped).is_pending() {
            let asked = new(tenant);
            store.sandbox_insert(&asked, None, &[]).await.unwrap();
            let end =
                Destruction { reason: "manual".into(), error_message: None, free_key: false, at: now() };
            store.sandbox_destroyed(asked.id, &end, &[]).await.unwrap();
        }
    });
    for limit in [1, 3, 7] {
        let rows = paged(&*world.store, tenant, SandboxFilter { limit, ..SandboxFilter::default() }).await;
        assert!(rows.is_sorted_by(|newer, older| newer.id > older.id), "a repetition");
        let seen: BTreeSet<_> = rows.into_iter().map(|row| row.id).collect();
        assert!(seen.is_superset(&before), "a loss");
    }
    stop.send(()).unwrap();
    writer.await.unwrap();
}
