//! What every engine of the store must do alike. One list of cases; each runs on SQLite as a test of its own,
//! and all of them on a real PostgreSQL that belongs to one test: starting a server per case would cost more
//! than all cases.

mod events;
mod forks;
mod idempotency;
mod keys;
mod lifecycle;
mod listing;
mod networks;
mod operating;
mod pausing;
mod postgres;
mod previews;
mod secrets;
mod snapshots;
mod vault;
mod webhooks;
mod world;

use futures::future::BoxFuture;
use world::World;

macro_rules! suite {
    ($($file:ident::$case:ident,)*) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let directory = tempfile::tempdir().unwrap();
                    let world = super::World::open(super::world::sqlite_url(&directory)).await;
                    super::$file::$case(&world).await;
                    world.store.close().await;
                }
            )*
        }

        type Case = for<'a> fn(&'a World) -> BoxFuture<'a, ()>;

        const CASES: &[(&str, Case)] = &[
            $((stringify!($case), |world| Box::pin($file::$case(world))),)*
        ];
    };
}

suite! {
    keys::a_tenant_is_made_once_however_many_ask_for_it,
    keys::a_key_is_found_by_its_digest_and_revoked_once,
    keys::a_key_needs_a_tenant_and_a_digest_of_its_own,
    secrets::the_first_to_come_makes_a_secret_for_all,
    idempotency::the_same_request_again_answers_what_it_made,
    idempotency::ten_callers_at_once_with_one_key_make_one_sandbox,
    idempotency::a_freed_key_can_be_used_again,
    idempotency::old_keys_are_forgotten,
    lifecycle::a_new_sandbox_is_read_back_as_it_was_written,
    lifecycle::a_machine_that_runs_starts_the_window,
    lifecycle::stale_news_changes_nothing,
    lifecycle::a_destroy_is_asked_for_once_and_ends_once,
    lifecycle::a_failed_create_ends_without_being_asked_to,
    lifecycle::a_window_is_set_only_while_the_machine_runs,
    lifecycle::windows_that_are_over_are_found_in_order,
    lifecycle::what_is_unfinished_is_found_in_pages,
    lifecycle::a_failed_event_undoes_the_change,
    pausing::a_sandbox_is_paused_and_runs_again_with_a_new_life,
    pausing::a_step_out_of_order_is_stale,
    pausing::a_failed_step_is_undone,
    pausing::a_hibernation_replaces_the_one_before_and_goes_with_the_sandbox,
    pausing::sandboxes_are_counted_by_what_they_are_on_the_way_to,
    forks::a_fork_makes_all_children_or_none_once_per_key,
    forks::a_failed_create_from_a_snapshot_leaves_the_snapshots_key_alone,
    forks::descendants_are_found_through_every_generation,
    snapshots::a_snapshot_is_seen_once_it_is_ready,
    snapshots::a_snapshot_that_failed_frees_its_key,
    snapshots::snapshots_are_listed_newest_first_by_sandbox_and_metadata,
    snapshots::a_snapshot_that_a_paused_sandbox_needs_stays,
    listing::tenants_do_not_see_each_other,
    listing::metadata_is_matched_pair_by_pair_as_json,
    listing::pages_hold_what_passes_the_filter_once_and_in_order,
    listing::pages_lose_and_repeat_nothing_while_others_insert,
    events::a_reader_by_cursor_misses_nothing_of_many_writers,
    events::events_are_listed_by_tenant_filter_and_order,
    events::an_event_is_found_by_every_part_of_it_once,
    events::events_are_found_by_metadata_in_whatever_batch_they_are,
    webhooks::a_webhook_is_its_tenants_and_changes_what_is_named,
    webhooks::a_webhook_hears_once_of_what_it_wants_and_of_nothing_before_it,
    webhooks::deliveries_of_one_sandbox_come_in_order_and_hold_up_no_other,
    webhooks::every_attempt_is_kept_with_its_delivery,
    webhooks::a_redelivery_comes_before_what_waits_and_is_counted_from_new,
    webhooks::what_waits_and_what_is_over_is_bounded,
    networks::settings_are_kept_with_sandboxes_and_snapshots_and_changed_while_wanted,
    networks::equal_denials_are_one_and_the_latest_come_first,
    networks::of_a_sandboxs_denials_the_latest_thousand_are_kept_whatever_their_names,
    previews::a_grant_is_read_back_and_listed_by_its_owner_alone,
    previews::a_grant_is_revoked_once_and_only_as_its_sandboxs,
    previews::what_grants_were_used_is_added_up,
    previews::grants_and_addresses_outlive_a_hibernation_and_end_with_the_sandbox,
    previews::of_a_sandboxs_grants_the_newest_thousand_are_kept,
    previews::a_port_has_one_address_however_many_ask,
    previews::one_address_is_given_to_one_port_however_many_want_it,
    vault::a_secret_is_its_tenants_until_it_is_deleted,
    vault::a_tenant_has_a_thousand_secrets_however_many_are_stored_at_once,
    operating::a_wrong_state_cannot_be_written,
    operating::texts_that_one_engine_refuses_are_refused_by_both,
    operating::an_opened_store_can_be_opened_again_at_once,
    operating::a_closed_store_is_unavailable,
    operating::a_newer_database_is_refused,
}

#[test]
fn postgresql_passes_the_whole_suite() {
    let Some(server) = postgres::Server::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let failed: Vec<_> = runtime.block_on(async {
        let mut failed = vec![];
        for (name, case) in CASES {
            let url = server.database(name).await;
            let run = tokio::spawn(async move {
                let world = World::open(url).await;
                case(&world).await;
                world.store.close().await;
            });
            if run.await.is_err() {
                failed.push(*name);
            }
        }
        operating::faults_of_postgresql_are_told_apart(&World::open(server.database("faults").await).await)
            .await;
        failed
    });
    assert!(failed.is_empty(), "on PostgreSQL: {failed:?} (the panics are above)");
}
