//! Items 65 to 90 of the list of bad inputs (vault, hosting), and the tests that send them; 1 to 64 are the rows beside.

use crate::faults::account::exists;

const VAULT: &[&str] = &["vault::bad_input_is_refused_without_effect_or_echo"];

const INPUTS: [(u8, &str, &[&str]); 26] = [
    (65, "an empty secret", VAULT),
    (66, "a secret of a mebibyte", VAULT),
    (67, "a secret with a line end, NUL, or not UTF-8", VAULT),
    (68, "a service that is empty, long, a path, or has control characters", VAULT),
    (69, "an end in the past, far away, negative, or no date", VAULT),
    (70, "the same service and label twice", VAULT),
    (71, "somebody else's secret", &[VAULT[0], "vault::nobody_elses_secret_can_be_told_from_one_that_is_not_there"]),
    (72, "an expired or revoked secret", &[VAULT[0], "vault::a_secret_is_stored_listed_changed_shown_and_deleted"]),
    (73, "a reveal by GET", VAULT),
    (74, "an id that is none", VAULT),
    (75, "fields that are not the caller's to set", VAULT),
    (76, "a hundred reveals at once", VAULT),
    (77, "a placeholder for a secret", VAULT),
    (78, "a search by a secret's value", VAULT),
    (79, "ports 0 and 65536", &["src/supervisor/manifest::mistakes_name_the_field_and_the_value"]),
    // Nothing takes environment variables: no process gets any.
    (
        80,
        "variables of the environment",
        &["src/supervisor/oneshot::output_and_status_are_kept_and_the_environment_is_empty"],
    ),
    (81, "a quota of -1, NaN, 2^63", &["quota::limits_beyond_sense_and_people_without_the_right_are_refused"]),
    // Archives of others are not taken: PocketBase's route for them does not exist, and our own backups are sealed.
    (
        82,
        "a backup with paths, links or bombs",
        &[
            "src/gateway/route::the_rest_of_pocketbase_is_absent",
            "backup::damage::nothing_is_readable_in_the_store_and_every_change_is_noticed",
            "backup::links_out_of_an_instance_are_not_followed",
        ],
    ),
    (83, "a hook that throws", &["templates::a_hook_that_throws_at_load_is_rolled_back_with_the_migrations"]),
    (
        84,
        "a migration that never ends",
        &["bad_input::hosting::a_migration_that_never_ends_is_stopped_and_rolled_back"],
    ),
    (
        85,
        "a database that is none",
        &[
            "faults::state::a_damaged_database_is_quarantined_with_its_reason_until_released",
            "store::files_that_are_not_ours_are_refused_and_left_alone",
        ],
    ),
    (
        86,
        "a database that is a folder, a pipe or a link",
        &["bad_input::hosting::a_database_that_is_a_folder_a_pipe_or_a_link_is_not_served"],
    ),
    (
        87,
        "addresses of this machine and of its network, in every spelling",
        &[
            "src/outbound/guard::what_a_url_says_itself_is_refused_before_anything_is_sent",
            "src/outbound/guard::a_name_that_turns_to_loopback_is_not_connected_to",
            "fathom_limits::a_redirect_is_not_followed_and_the_key_goes_nowhere",
            "delivery::routes::destinations_are_made_changed_and_removed_by_their_owner_alone",
        ],
    ),
    (
        88,
        "a call of a webhook that is old, from the future, or not signed",
        &["webhooks::only_what_is_signed_and_new_is_taken"],
    ),
    (89, "a thousand streams of one client", &["realtime_limits::streams_are_counted_per_user_per_address_and_in_all"]),
    (
        90,
        "a log line with escapes",
        &[
            "operators::instance_logs_are_shown_redacted_and_rotated",
            "src/supervisor/logs::tail_strips_escapes_and_is_bounded",
            "src/cli/output::control_characters_do_not_reach_the_terminal",
        ],
    ),
];

#[test]
fn every_item_beyond_the_rows_has_a_test_that_exists() {
    let numbers: Vec<u8> = INPUTS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (65..=90).collect::<Vec<u8>>());
    for (number, what, tests) in INPUTS {
        assert!(!tests.is_empty(), "{number} {what}");
        for test in tests {
            assert!(exists(test), "{number} {what}: no such test: {test}");
        }
    }
}
