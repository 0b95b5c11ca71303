//! Measures container runtimes against each other and against the floor, in one run and taking turns.
//!
//! The parent is this small program: posix_spawn, execve, wait4 and nothing between. Every runtime gets the same bundle,
//! a state directory on the same tmpfs, the same (pure v2) view of cgroups, and no environment but PATH. A command that
//! does not end with 0 ends the comparison: a runtime that fails fast must not look quick. See benches/README.md.

mod bundle;
mod host;
mod json;
mod measure;
mod options;
mod report;
mod runtime;
mod scenario;

use std::path::Path;
use std::process::ExitCode;

use options::Options;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    let done = match options::parse(arguments) {
        Ok(options) => compare(&options),
        Err(why) => Err(format!("{why}\n{}", options::USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("compare: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|why| format!("cannot find this program's own path: {why}"))?;
    let beside = own.parent().unwrap_or(Path::new("."));
    let facts = host::Facts::read();
    if options.realtime {
        host::realtime()?;
    }
    let workspace = host::enter()?;
    let done = compare_in(workspace.path(), beside, &facts, options);
    done.and(workspace.leave())
}

fn compare_in(workspace: &Path, beside: &Path, facts: &host::Facts, options: &Options) -> Result<(), String> {
    // Found out now rather than after the work.
    std::fs::write(&options.json, "").map_err(|why| format!("cannot write {}: {why}", options.json.display()))?;
    let mut output = measure::Output::new()?;
    let state = workspace.join("state");
    std::fs::create_dir(&state).map_err(|why| format!("cannot make {}: {why}", state.display()))?;
    let bundles = bundle::make(workspace, &beside.join("bench-program"), options)?;
    let (found, mut missing) = runtime::discover(beside, &state, bundles.has_devices(), &mut output)?;
    let mut runtimes = Vec::new();
    for runtime in found {
        match runtime.trial(&bundles, &mut output)? {
            None => runtimes.push(runtime),
            Some(why) => missing.push(why),
        }
    }
    print_head(facts, options, &runtimes, &missing);
    let mut all = Vec::new();
    for scenario in &options.scenarios {
        let samples = scenario::measure(*scenario, &runtimes, &bundles, options.rounds, &mut output)?;
        println!("{}", report::table(*scenario, &runtimes, &samples));
        all.push((*scenario, samples));
    }
    let text = report::json(facts, &bundles.config, &runtimes, &all);
    std::fs::write(&options.json, text).map_err(|why| format!("cannot write {}: {why}", options.json.display()))
}

fn print_head(facts: &host::Facts, options: &Options, runtimes: &[runtime::Runtime], missing: &[String]) {
    println!("Linux {}, {} processors, {} rounds", facts.kernel, facts.processors, options.rounds);
    if facts.busy() {
        let so = if options.realtime { "held off by --realtime" } else { "the figures will scatter, see --realtime" };
        println!("THE MACHINE IS NOT IDLE: load average {:.2}; {so}", facts.load);
    }
    for runtime in runtimes {
        println!("  {}: {} ({})", runtime.name, runtime.version, runtime.binary.display());
    }
    for line in missing {
        println!("  {line}");
    }
    println!();
}
