//! The promises of `Sandbox`, each run on every backend that claims it. A promise is one function; the table stamps it on the arms.

mod arms;
mod copy;
pub(crate) mod crash;
mod files;
mod image;
mod inside;
mod life;
mod limits;
mod network;
mod process;
mod stage;
mod users;

use crate::runner::{Case, Need};

/// Cases `conformance::ARM::PROMISE`, each promise on one arm.
macro_rules! promises {
    ($arm:ident $needs:tt: $($module:ident :: $promise:ident),* $(,)?) => {
        &[$(Case {
            name: concat!("conformance::", stringify!($arm), "::", stringify!($promise)),
            needs: &$needs,
            run: || $module::$promise(&arms::$arm()?),
        }),*]
    };
}

/// Stamps the promises that every backend keeps.
macro_rules! all_promises {
    ($arm:ident $needs:tt $(, $module:ident :: $promise:ident)*) => {
        promises!($arm $needs:
            life::states_follow_the_picture,
            life::plain_commands_end_as_they_do,
            life::neighbours_are_apart,
            process::exit_code,
            process::signal_ends_the_command,
            process::streams_stay_apart,
            process::stdin_arrives_whole,
            process::environment_is_the_specs,
            process::working_folder_is_made,
            process::users_come_from_the_image,
            process::not_found_is_127,
            process::unknown_user_is_told,
            process::terminal_has_its_size,
            process::term_ends_a_first_process_without_a_handler,
            process::kill_always_ends,
            files::read_only_root_refuses_writes,
            files::files_come_and_go_on_the_overlay,
            files::etc_files_are_ours,
            files::nothing_of_the_host_is_seen,
            files::folders_of_the_host_are_shared,
            files::a_folder_that_is_not_there_is_told,
            limits::memory_ends_with_137,
            limits::processes_are_counted,
            limits::limits_change_while_it_runs,
            limits::limits_of_processes_are_the_specs,
            limits::file_systems_in_memory_are_the_specs,
            limits::kernel_parameters_are_the_specs,
            limits::nothing_is_left,
            inside::further_commands_run_beside,
            inside::further_commands_are_as_the_first,
            inside::a_pause_is_told,
            inside::paused_processes_stop_and_clocks_go_on,
            inside::processes_are_listed,
            copy::files_go_in_and_come_out,
            network::no_network_is_loopback_only,
            network::a_network_has_addresses_routes_and_names,
            network::ports_are_told,
            network::published_ports_reach_the_command,
            network::closed_addresses_are_closed,
            network::members_of_a_network_find_each_other,
            network::neighbours_share_no_port
            $(, $module :: $promise)*
        )
    };
}

const FAKE: &[Case] = promises!(fake []:
    life::states_follow_the_picture,
    life::plain_commands_end_as_they_do,
    life::neighbours_are_apart,
    inside::further_commands_run_beside,
    inside::a_pause_is_told,
    inside::processes_are_listed,
    copy::files_go_in_and_come_out,
    limits::limits_change_while_it_runs,
    network::ports_are_told,
);

const CONTAINER: &[Case] = all_promises!(
    container [Need::Host, Need::CgroupV2, Need::Root, Need::Program("mkfs.erofs"), Need::Program("ip"), Need::Program("passt")],
    process::missing_interpreter_is_127,
    process::not_executable_is_126,
    process::an_init_hands_on_and_reaps,
    files::devices_of_the_host_stay_closed,
    inside::further_commands_have_their_own_user_and_folder,
    inside::further_commands_have_terminals,
    inside::signals_reach_one_command,
    inside::what_is_left_behind_is_not_waited_for,
    inside::nothing_leads_out,
    copy::copies_are_what_the_inside_sees,
    copy::copies_stay_inside,
    inside::stats_are_the_kernels,
    inside::nothing_is_left
);

const PRIVATE: &[Case] = all_promises!(
    private [Need::Host, Need::CgroupV2, Need::Root, Need::Program("mkfs.erofs"), Need::Program("ip"), Need::Program("passt")],
    process::missing_interpreter_is_127,
    process::not_executable_is_126,
    process::an_init_hands_on_and_reaps,
    users::users_are_not_the_hosts,
    users::files_are_its_users,
    users::far_users_are_nobody,
    users::rights_end_at_the_namespace,
    inside::further_commands_have_their_own_user_and_folder,
    inside::further_commands_have_terminals,
    inside::signals_reach_one_command,
    inside::what_is_left_behind_is_not_waited_for,
    inside::nothing_leads_out,
    copy::copies_are_what_the_inside_sees,
    copy::copies_stay_inside,
    inside::stats_are_the_kernels,
    inside::nothing_is_left
);

// An outside runtime tells of a program that the kernel refuses by the program's own exit code only: no promise of 126,
// and none of 127 for a missing interpreter.
const CRUN: &[Case] = all_promises!(
    crun [Need::Host, Need::CgroupV2, Need::Root, Need::Program("mkfs.erofs"), Need::Program("ip"), Need::Program("passt"), Need::Program("crun")],
    files::devices_of_the_host_stay_closed
);

const RUNC: &[Case] = all_promises!(
    runc [Need::Host, Need::CgroupV2, Need::Root, Need::Program("mkfs.erofs"), Need::Program("ip"), Need::Program("passt"), Need::Program("runc")],
    files::devices_of_the_host_stay_closed
);

// Device nodes that a command makes in a microVM are the guest's own: there are none of the host to close.
const MICROVM: &[Case] = all_promises!(
    microvm [Need::Host, Need::Kvm, Need::CgroupV2, Need::Root, Need::Program("mkfs.erofs"), Need::Program("ip"), Need::Program("passt")],
    process::missing_interpreter_is_127,
    process::not_executable_is_126,
    process::an_init_hands_on_and_reaps,
    inside::further_commands_have_their_own_user_and_folder,
    inside::further_commands_have_terminals,
    inside::signals_reach_one_command,
    inside::what_is_left_behind_is_not_waited_for,
    inside::nothing_leads_out,
    copy::copies_are_what_the_inside_sees,
    copy::copies_stay_inside,
    inside::stats_are_the_kernels,
    inside::nothing_is_left
);

const CONTAINERS: &[Need] = &[Need::Host, Need::CgroupV2, Need::Root, Need::Program("mkfs.erofs")];

const CRASH: &[Case] = &[
    Case {
        name: "conformance::crash::a_killed_keeper_leaves_nothing_that_is_not_cleared",
        needs: CONTAINERS,
        run: crash::a_killed_keeper_leaves_nothing_that_is_not_cleared,
    },
    Case {
        name: "conformance::crash::a_killed_container_init_ends_the_sandbox",
        needs: CONTAINERS,
        run: crash::a_killed_container_init_ends_the_sandbox,
    },
];

pub(crate) const CASES: &[&[Case]] = &[FAKE, CRASH, CONTAINER, PRIVATE, CRUN, RUNC, MICROVM];
