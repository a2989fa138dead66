//! What peers fell into, and what no honest guest does: which test holds each.
//!
//! User-mode networks of others failed at 1 to 11; the rest is bad input. What is promised beside
//! it, docs/network.md has in a table, whose tests are looked for, too.

use std::path::{Path, PathBuf};

/// What is stated, and the tests that hold it.
const TESTS: &[(&str, &[&str])] = &[
    (
        "1 the guest closes first: its end arrives, what the peer says later too, and no flow is left",
        &[
            "whichever_side_closes_first_the_other_is_heard_to_its_end",
            "ten_thousand_flows_that_the_guest_closes_leave_the_table_empty",
        ],
    ),
    (
        "2 the host closes first: the guest's answer is delivered whole",
        &[
            "whichever_side_closes_first_the_other_is_heard_to_its_end",
            "an_answer_after_the_peers_end_is_written_whole_before_the_socket_is_closed",
        ],
    ),
    (
        "3 a slow reader on either side loses nothing, stalls itself alone, and is woken",
        &[
            "a_slow_reader_loses_nothing_and_holds_up_nobody_and_costs_nothing",
            "a_peer_that_does_not_read_closes_the_guests_window_and_opens_it_again",
        ],
    ),
    (
        "4 a call is answered when the host is connected; refused, unreachable, black holes",
        &[
            "a_call_is_answered_only_when_the_peer_has_answered",
            "a_refusal_is_a_reset_and_an_unreachable_network_is_icmp",
            "a_thousand_calls_that_nobody_answers_delay_nobody",
        ],
    ),
    ("5 health checks leave nothing", &["health_checks_leave_nothing"]),
    (
        "6 names: streams, long answers, dead resolvers, resolv.conf, IPv6, a day",
        &[
            "names_are_asked_of_resolvers_that_answer_and_the_host_has_one",
            "an_answer_that_fits_no_datagram_is_had_in_a_stream_of_a_resolver_with_ipv6",
            "what_is_asked_in_a_stream_is_answered_there_by_the_same_rules",
            "everything_is_served_without_rights_and_when_resolv_conf_changes",
            "a_resolv_conf_is_read",
            "a_day_of_lookups_leaves_nothing_and_the_last_is_as_good_as_the_first",
        ],
    ),
    (
        "7 datagrams: idle and active flows, no bytes, who was not asked, nobody there, fragments",
        &[
            "udp_flows_end_in_silence_only",
            "datagrams_go_and_come_of_every_length_and_from_who_was_asked_only",
            "a_datagram_for_nobody_is_answered_as_unreachable",
            "a_datagram_in_fragments_arrives_and_goes_back_in_fragments",
        ],
    ),
    (
        "8 limits of silence, by a clock that is played",
        &[
            "silence_is_asked_about_and_ended_and_an_active_flow_never",
            "half_closed_and_silent_connections_end",
        ],
    ),
    (
        "9 offloads as they were acknowledged, merged buffers, fair shares",
        &[
            "frames_are_as_long_as_the_guest_can_take_them",
            "a_datagram_of_several_is_cut_as_the_guest_says",
            "a_frame_fills_as_many_buffers_as_it_needs",
            "eight_streams_have_their_shares",
        ],
    ),
    (
        "10 rules hold for every protocol, for addresses dialled directly, names behind names, suffixes",
        &[
            "what_is_no_hosts_business_is_refused_by_default",
            "rules_open_what_they_name_and_nothing_else",
            "a_server_of_the_host_is_reached_by_none_of_its_addresses",
            "under_denial_by_default_a_name_opens_its_addresses_and_nothing_else",
            "the_first_bytes_go_on_when_they_name_who_is_allowed",
            "a_denied_name_has_no_answer_whatever_name_it_hides_behind",
            "a_name_is_itself_and_a_star_is_all_below",
            "a_tap_and_no_network_are_what_they_are_called",
        ],
    ),
    (
        "11 IPv6 at once and only where it leads; two callers at one instant; a port that is taken",
        &[
            "containers_are_in_the_guests_network",
            "a_family_that_the_host_does_not_have_has_no_addresses",
            "a_default_route_is_named_only_while_the_host_has_one",
            "published_ports_lead_to_the_guest",
            "a_port_that_cannot_be_is_refused_before_the_network_is_asked",
        ],
    ),
    (
        "frames of every length with a lie in each header (and the fuzz targets usernet, switch and net)",
        &[
            "every_cut_and_every_lie_in_each_header_is_survived",
            "every_cut_and_every_lie_is_no_panic_and_no_forged_frame",
        ],
    ),
    ("100,000 calls", &["a_storm_of_calls_is_bounded_and_ends_no_connection"]),
    (
        "10,000 flows, and more than there are files",
        &[
            "ten_thousand_flows_that_the_guest_closes_leave_the_table_empty",
            "ten_thousand_flows_have_their_files_and_leave_none",
            "few_files_are_few_flows_which_is_told_and_who_talks_goes_on",
            "a_flow_that_finds_no_file_is_refused_and_told_and_the_others_go_on",
            "a_caller_waits_while_there_are_too_many_open_files_and_costs_nothing",
            "without_files_left_a_client_waits_and_it_is_told_once",
        ],
    ),
    (
        "a peer, and a guest, that never reads",
        &[
            "a_peer_that_does_not_read_closes_the_guests_window_and_opens_it_again",
            "many_peers_that_take_nothing_cost_bounded_memory_and_lose_nothing",
            "a_guest_that_takes_nothing_costs_bounded_memory",
            "a_stream_of_questions_costs_bounded_memory",
        ],
    ),
    ("storms of fragments", &["lies_are_forgotten_and_storms_are_bounded"]),
    (
        "long answers of names",
        &["an_answer_that_fits_no_datagram_is_had_in_a_stream_of_a_resolver_with_ipv6"],
    ),
    ("forged sources", &["forged_sources_are_dropped", "sources_that_are_not_its_own_are_dropped"]),
    ("exhaustion of DHCP", &["whoever_asks_by_dhcp_is_told_of_the_one_address"]),
    (
        "ports that are taken, and those that need more rights",
        &[
            "what_cannot_be_is_refused_and_nothing_is_left",
            "what_cannot_begin_says_why_and_leaves_nothing",
            "a_port_that_needs_more_rights_says_what_to_do",
        ],
    ),
    (
        "a relay whose target is gone, or that there is no room for",
        &[
            "a_free_port_is_found_and_told_and_a_target_that_is_gone_is_a_reset",
            "what_the_monitor_does_not_take_is_closed_in_the_container",
        ],
    ),
    (
        "one name asked for by many at once",
        &[
            "the_same_question_of_many_is_asked_once_and_all_are_answered",
            "who_waits_for_an_answer_that_does_not_come_is_told_and_not_too_many_wait",
        ],
    ),
    (
        "a peer of vhost-user that breaks the protocol, goes, or makes doorbells block",
        &[
            "a_peer_that_does_not_know_the_protocol_is_told_of_at_the_start",
            "a_peer_that_fails_later_takes_down_the_link_alone",
            "a_peer_that_makes_doorbells_block_holds_nobody_up",
            "a_ring_over_two_regions_of_memory_is_not_given_away",
            "a_machine_whose_peer_is_lost_is_saved_or_says_why_and_goes_on",
            "the_limit_of_time_is_that_of_all_pairs_together",
        ],
    ),
    ("a switch in the place of another", &["what_another_switch_has_put_in_its_place_is_let_be"]),
    ("no IPv6 on the host", &["a_family_that_the_host_does_not_have_has_no_addresses"]),
    ("no route", &["a_refusal_is_a_reset_and_an_unreachable_network_is_icmp"]),
    (
        "a resolv.conf that is empty or changes",
        &["everything_is_served_without_rights_and_when_resolv_conf_changes", "a_resolv_conf_is_read"],
    ),
];

/// The text of each source below a directory.
fn sources(at: &Path, found: &mut String) {
    let mut all: Vec<PathBuf> = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    for path in all {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn each_statement_has_a_test_that_is_there() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut text = String::new();
    for at in ["vmm/net", "vmm/monitor/src", "vmm/sandbox/src", "guest-agent/agent/tests", "tests/tests/e2e"]
    {
        sources(&top.join(at), &mut text);
    }
    for (what, tests) in TESTS {
        for test in *tests {
            assert!(text.contains(&format!("fn {test}(")), "{what}: there is no {test}");
        }
    }
    for number in 1..=11 {
        assert!(TESTS.iter().any(|(what, _)| what.starts_with(&format!("{number} "))), "{number}");
    }
    let page = std::fs::read_to_string(top.join("docs/network.md")).unwrap();
    let (_, page) = page.split_once("## Which test holds what").unwrap();
    let rows: Vec<&str> = page.lines().take_while(|line| !line.starts_with("## ")).collect();
    let named =
        rows.iter().filter_map(|row| row.strip_prefix("| ")?.rsplit_once(" | ").map(|(_, tests)| tests));
    let named: Vec<&str> = named.flat_map(|tests| tests.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 50, "the table is not read");
    for test in named {
        assert!(text.contains(&format!("fn {test}(")), "docs/network.md: there is no {test}");
    }
}
