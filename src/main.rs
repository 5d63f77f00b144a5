//! The program: the jailer, or who looks at a database, when started as such by itself; the command line otherwise.

use std::process::ExitCode;

use pocketfleet::cli;
use pocketfleet::supervisor::apart;
use pocketfleet::supervisor::jail;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    // Before anything else, without parsing the command line: a start of an instance passes through here.
    let hidden = args.nth(1).filter(|first| *first == jail::SUBCOMMAND || *first == apart::SUBCOMMAND);
    if let Some(hidden) = hidden {
        let spec = args.next().and_then(|spec| spec.into_string().ok()).unwrap_or_default();
        let code = if hidden == jail::SUBCOMMAND { jail::run(&spec) } else { apart::run(&spec) };
        return ExitCode::from(code);
    }
    #[cfg(feature = "testing")]
    #[expect(clippy::disallowed_methods, reason = "failpoints are armed before there is a configuration")]
    let failpoint = std::env::var("PF_FAILPOINT");
    #[cfg(feature = "testing")]
    if let Ok(step) = failpoint {
        let (step, nth) = step.split_once(':').unwrap_or((&step, "1"));
        pocketfleet::failpoint::arm(step, nth.parse().unwrap_or(1));
    }
    #[cfg(feature = "testing")]
    #[expect(clippy::disallowed_methods, reason = "as failpoints")]
    let stand_in = std::env::var("PF_STAND_IN");
    #[cfg(feature = "testing")]
    if let Some((choice, value)) = stand_in.as_ref().ok().and_then(|text| text.split_once('=')) {
        let (choice, nth) = choice.split_once(':').unwrap_or((choice, "1"));
        pocketfleet::failpoint::choose(choice, nth.parse().unwrap_or(1), value);
    }
    cli::run(std::env::args_os())
}
