//! What every engine of the store must do alike. One list of cases; each runs on SQLite as a test of its own,
//! and all of them on a real PostgreSQL that belongs to one test: starting a server per case would cost more
//! than all cases.

mod events;
mod idempotency;
mod keys;
mod lifecycle;
mod listing;
mod operating;
mod postgres;
mod secrets;
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
    listing::tenants_do_not_see_each_other,
    listing::metadata_is_matched_pair_by_pair_as_json,
    listing::pages_hold_what_passes_the_filter_once_and_in_order,
    listing::pages_lose_and_repeat_nothing_while_others_insert,
    events::a_reader_by_cursor_misses_nothing_of_many_writers,
    events::events_are_listed_by_tenant_filter_and_order,
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
