//! Every verb, with a fault at every system call it makes: killed there, or answered with an error.
//!
//! Each time it either does what it should or says what it could not do; nothing is left once `delete --force` has been; and
//! a container that came into being all the same sees what it sees after a run without a fault. A few dozen places of each
//! verb in the usual run, all of them in a long one, which also tells the counts, and what it finds as it finds it.
//!
//! `FERRY_FAULTS=poll,recvmsg,EIO,Kill` for these calls and these faults alone; `FERRY_FAULTS_MINUTES=60` for a long run that ends
//! then, and `FERRY_FAULTS_FROM=500` for one that begins where that had come to. The first, the middle and the last of each call are
//! before all others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, marked_processes, names_in};
use super::fault_counts::{Counts, count, tell};
use super::fault_points::{Call, Ended, FAULTS, Fault, Point, find, inject};
use super::image;
use super::need::Need::{CgroupV2, Ferry, Peer, Root, Tool};
use super::output;
use super::scenario::{Outcome, Scenario, scenario};
use super::stage::is_long;
use crate::rootfs_fixtures::config::{add, bind};

pub const SCENARIOS: &[Scenario] = &[
    scenario("create_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &CREATE)),
    scenario("start_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &START)),
    scenario("run_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &RUN)),
    // An ordinary user maps subordinate ids through newuidmap, which has no rights of its own under strace.
    scenario("run_from_an_image_with_a_fault", &[Ferry, STRACE, Root], |case| matrix(case, &RUN_IMAGE)),
    scenario("exec_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &EXEC)),
    scenario("kill_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &KILL)),
    scenario("delete_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &DELETE)),
    scenario("pause_with_a_fault", &[STRACE, Root, CgroupV2(&[]), RUNC, CRUN], |case| matrix(case, &PAUSE)),
    scenario("resume_with_a_fault", &[STRACE, Root, CgroupV2(&[]), RUNC, CRUN], |case| matrix(case, &RESUME)),
    scenario("update_with_a_fault", &[STRACE, Root, CgroupV2(&["pids"]), RUNC, CRUN], |case| matrix(case, &UPDATE)),
    scenario("state_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &STATE)),
    scenario("list_with_a_fault", &[STRACE, RUNC, CRUN], |case| matrix(case, &LIST)),
];

const STRACE: super::need::Need = Tool("strace");
const RUNC: super::need::Need = Peer("runc", "leaves traces");
const CRUN: super::need::Need = Peer("crun", "leaves traces");

/// Where the container's program reports.
const REPORT: &str = "report";

/// One verb: how the container stands when it is called, its words, and what is there afterwards.
struct Verb {
    /// Brings the container to where the verb is called.
    before: fn(&mut Case) -> Outcome,
    /// The words before the id, and those after it.
    words: (&'static [&'static str], &'static [&'static str]),
    /// Goes on from there until the program has reported, where there is one.
    after: fn(&mut Case) -> Outcome,
    /// Whether the container is to be as before, and is used again.
    keeps: bool,
}

impl Verb {
    fn is(&self, word: &str) -> bool {
        self.words.0.contains(&word)
    }
}

const CREATE: Verb =
    Verb { before: reporting, words: (&["create", "--bundle", "BUNDLE"], &[]), after: started, keeps: false };
const START: Verb = Verb { before: created, words: (&["start"], &[]), after: ended, keeps: false };
const RUN: Verb = Verb { before: reporting, words: (&["run", "--bundle", "BUNDLE"], &[]), after: ended, keeps: false };
const RUN_IMAGE: Verb = Verb {
    before: imported,
    words: (&["--store", "STORE", "run", "--image", "test"], &["--", "/probe"]),
    after: ended,
    keeps: false,
};
const EXEC: Verb = Verb { before: running, words: (&["exec"], &["/probe"]), after: nothing, keeps: true };
const KILL: Verb = Verb { before: running, words: (&["kill"], &["USR1"]), after: nothing, keeps: true };
const DELETE: Verb = Verb { before: running, words: (&["delete", "--force"], &[]), after: nothing, keeps: false };
const PAUSE: Verb = Verb { before: running, words: (&["pause"], &[]), after: resumed, keeps: true };
const RESUME: Verb = Verb { before: paused, words: (&["resume"], &[]), after: resumed, keeps: true };
const UPDATE: Verb =
    Verb { before: running, words: (&["update", "--pids-limit", "99"], &[]), after: nothing, keeps: true };
const STATE: Verb = Verb { before: running, words: (&["state"], &[]), after: nothing, keeps: true };
const LIST: Verb = Verb { before: running, words: (&["list"], &["LAST"]), after: nothing, keeps: true };

/// A container with something of every kind of wall.
pub(super) fn furnish(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    fs::write(source.join("cargo"), "tea")?;
    case.bundle.file("home/secret", "treasure")?;
    case.config["linux"]["seccomp"] = super::security::filter("getpgid", "SCMP_ACT_ERRNO", json!(1));
    case.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]);
    case.config["process"]["user"]["umask"] = 0o027.into();
    case.config["process"]["oomScoreAdj"] = 100.into();
    case.config["root"]["readonly"] = true.into();
    add(&mut case.config, "/mounts", bind(&source, "/mnt", &["rbind", "ro", "nosuid", "nodev", "noexec"]));
    add(&mut case.config, "/linux/maskedPaths", json!("/home/secret"));
    Ok(())
}

fn reporting(case: &mut Case) -> Outcome {
    case.args(&["/probe"]).write_config().map(drop)
}

fn imported(case: &mut Case) -> Outcome {
    if case.directory.join("store").exists() { Ok(()) } else { image::import(case, vec![], &json!({})) }
}

fn created(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe"]).write_config()?, case.id.clone());
    let report = case.directory.join(REPORT);
    let mut command = case.command(&["create", "--bundle", &bundle, &id]);
    command.stdout(File::create(report)?).stderr(File::create(case.directory.join("errors"))?);
    if output::wait(&mut command.spawn()?, case.patience())?.success() { Ok(()) } else { Err("create fails".into()) }
}

fn running(case: &mut Case) -> Outcome {
    if case.state_root().join(&case.id).exists() { Ok(()) } else { case.start_waiting() }
}

fn paused(case: &mut Case) -> Outcome {
    running(case)?;
    let id = case.id.clone();
    case.call(&["pause", &id])?.success().map(drop)
}

fn nothing(_: &mut Case) -> Outcome {
    Ok(())
}

fn status(case: &mut Case) -> Result<Option<String>, Failed> {
    let id = case.id.clone();
    let state = case.call(&["state", &id])?;
    if state.code != 0 { Ok(None) } else { Ok(state.json()?["status"].as_str().map(str::to_owned)) }
}

fn started(case: &mut Case) -> Outcome {
    if status(case)?.as_deref() == Some("created") {
        let id = case.id.clone();
        // Its process may have been killed.
        case.call(&["start", &id])?;
    }
    ended(case)
}

/// Waits for the end of a program that runs.
fn ended(case: &mut Case) -> Outcome {
    match status(case)?.as_deref() {
        Some("running") => {
            let pid = case.pid()?;
            if pid == 0 { Ok(()) } else { case.wait_for(pid) }
        }
        _ => Ok(()),
    }
}

fn resumed(case: &mut Case) -> Outcome {
    if status(case)?.as_deref() == Some("paused") {
        let id = case.id.clone();
        case.call(&["resume", &id])?.success()?;
    }
    Ok(())
}

fn matrix(case: &mut Case, verb: &Verb) -> Outcome {
    furnish(case)?;
    (verb.before)(case)?;
    let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
    let store = case.path("store");
    let place = |word: &&'static str| match *word {
        "BUNDLE" => &bundle,
        "STORE" => &store,
        word => word,
    };
    let mut words: Vec<&str> = verb.words.0.iter().map(place).collect();
    if verb.words.1 != ["LAST"] {
        words.push(&id);
        words.extend(verb.words.1);
    }
    let places = find(case, &words, "/probe", REPORT)?;
    let early = before_main(&places);
    (verb.after)(case)?;
    let clean = walls(case)?;
    clean_up(case, verb, &mut Vec::new())?;
    let counts = each(
        case,
        &places,
        6,
        |point| early.contains(&(false, point.call.clone())),
        |case, point, counts| {
            (verb.before)(case)?;
            one(case, verb, &words, point, &clean, counts)
        },
    )?;
    let name = verb.words.0.iter().find(|word| !word.starts_with("--") && **word != "STORE");
    tell(case, name.unwrap_or(&""), &counts)
}

/// Every fault at every place, or `least` and as many more as there is time for; answers, but for kills, where `left_out` says so are not
/// given.
pub(super) fn each(
    case: &mut Case,
    places: &[(bool, Call)],
    least: u32,
    left_out: impl Fn(&Point) -> bool,
    mut deed: impl FnMut(&mut Case, &Point, &mut Counts) -> Outcome,
) -> Result<Counts, Failed> {
    let only = std::env::var("FERRY_FAULTS").unwrap_or_default();
    let points: Vec<Point> = FAULTS
        .iter()
        .flat_map(|fault| {
            places.iter().map(|(cloned, call)| Point { cloned: *cloned, call: call.clone(), fault: *fault })
        })
        .filter(|point| is_asked(&only, point))
        .filter(|point| point.fault == Fault::Kill || !(NEVER_REFUSED.contains(&&*point.call.0) || left_out(point)))
        .collect();
    let mut counts = Counts { of: points.len(), ..Counts::default() };
    let from = std::env::var("FERRY_FAULTS_FROM").map_or(Ok(0), |from| from.parse())?;
    let (until, mut told) = (Instant::now() + time()?, BTreeSet::new());
    for point in order(points).into_iter().skip(from) {
        let is_late = Instant::now() > until;
        if (is_long() && is_late) || (!is_long() && (counts.injected >= 50 || (is_late && counts.injected >= least))) {
            break;
        }
        deed(case, &point, &mut counts).map_err(|why| format!("{point}: {}", why.message().unwrap_or("")))?;
        case.forget_transcript();
        if is_long() {
            counts.tell_progress(&mut told);
        }
    }
    Ok(counts)
}

/// Whether a list has the point's call, or none at all, and its fault, or none at all. Names of faults begin with a capital.
fn is_asked(list: &str, point: &Point) -> bool {
    let (faults, calls): (Vec<&str>, Vec<&str>) =
        list.split(',').filter(|name| !name.is_empty()).partition(|name| name.starts_with(char::is_uppercase));
    let has = |names: &[&str], name: &str| names.is_empty() || names.contains(&name);
    has(&calls, &point.call.0) && has(&faults, point.fault.name())
}

/// How long may be spent on a verb.
fn time() -> Result<Duration, Failed> {
    match (is_long(), std::env::var("FERRY_FAULTS_MINUTES")) {
        (false, _) => Ok(Duration::from_secs(3)),
        (true, Ok(minutes)) => Ok(Duration::from_secs(60 * minutes.parse::<u64>()?)),
        (true, Err(_)) => Ok(Duration::from_secs(1_000_000)),
    }
}

/// close(2) frees the descriptor whatever it answers, where strace would leave it open. brk(2) answers where the heap ends, and the
/// number of an error reads as an address there: memory that is none.
const NEVER_REFUSED: [&str; 2] = ["close", "brk"];

/// The places up to where the language's own runtime is ready and the runtime under test begins: when it has a stack for
/// signals, which is the second call of that name, and has set the last handler.
pub(super) fn before_main(places: &[(bool, Call)]) -> Vec<(bool, Call)> {
    let of_caller: Vec<_> = places.iter().filter(|(cloned, _)| !cloned).collect();
    let stack = of_caller.iter().position(|(_, (name, count))| name == "sigaltstack" && *count == 2);
    let Some(stack) = stack else { return Vec::new() };
    let after = |place: &&(bool, Call)| ["gettid", "rt_sigaction"].contains(&place.1.0.as_str());
    let handlers = of_caller[stack + 1..].iter().take_while(|place| after(place)).count();
    of_caller[..=stack + handlers].iter().map(|place| (*place).clone()).collect()
}

/// Spread over all, by a stride prime to their number. In a long run the first, the middle and the last of each call come before the
/// others.
fn order(points: Vec<Point>) -> Vec<Point> {
    if !is_long() {
        return spread(&points);
    }
    let mut of_a_call = BTreeMap::<_, Vec<usize>>::new();
    for (at, point) in points.iter().enumerate() {
        of_a_call.entry((point.fault, point.cloned, &point.call.0)).or_default().push(at);
    }
    let ends = |all: &Vec<usize>| [all[0], all[all.len() / 2], all[all.len() - 1]];
    let early: BTreeSet<usize> = of_a_call.values().flat_map(ends).collect();
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for (at, point) in points.iter().enumerate() {
        if early.contains(&at) { first.push(point.clone()) } else { then.push(point.clone()) }
    }
    [spread(&first), spread(&then)].concat()
}

fn spread(points: &[Point]) -> Vec<Point> {
    let stride = (points.len() * 10 / 31) | 1;
    let stride = (stride..).find(|stride| gcd(*stride, points.len()) == 1).unwrap_or(1);
    (0..points.len()).map(|at| points[at * stride % points.len()].clone()).collect()
}

fn gcd(one: usize, other: usize) -> usize {
    if other == 0 { one } else { gcd(other, one % other) }
}

fn one(case: &mut Case, verb: &Verb, words: &[&str], point: &Point, clean: &Value, counts: &mut Counts) -> Outcome {
    fs::write(case.directory.join(REPORT), "")?;
    counts.injected += 1;
    let Ok(end) = inject(case, point, words, REPORT) else {
        counts.hangs.push(point.to_string());
        return case.clear();
    };
    judge(case, verb, point, &end, counts)?;
    (verb.after)(case)?;
    let seen = walls(case)?;
    if !seen.is_null() && seen != *clean && !is_excused(point) {
        counts.weaker.push(format!("{point}: {}", difference(clean, &seen)));
    }
    let mut left = Vec::new();
    clean_up(case, verb, &mut left)?;
    if !left.is_empty() {
        counts.left.push(format!("{point}: {left:?} ({})", end.stderr.trim()));
        // So that it is not found again at every later point.
        case.clear()?;
    }
    Ok(())
}

/// A kernel that has no keyrings has none to share.
fn is_excused(point: &Point) -> bool {
    point.call.0 == "keyctl" && point.fault == Fault::Answer("ENOSYS")
}

fn judge(case: &Case, verb: &Verb, point: &Point, end: &Ended, counts: &mut Counts) -> Outcome {
    count(point, end, counts);
    let told = end.stderr.trim();
    let failed = point.fault != Fault::Kill && end.code != 0;
    // What has ended is deleted, and where that cannot be done it is for `delete --force` to do.
    let reported = fs::metadata(case.directory.join(REPORT)).is_ok_and(|report| report.len() > 0);
    let is_over = verb.is("run") && reported && ends(case)?;
    let made = !verb.keeps && !is_over && !verb.is("start") && !verb.is("delete");
    if failed && made && end.code != 137 && !names_in(&case.state_root()).is_empty() {
        counts.left_by_errors.push(format!("{point}: {told}"));
    }
    Ok(())
}

/// Whether every process of the case ends, strace among them.
fn ends(case: &Case) -> Result<bool, Failed> {
    let mut ended = marked_processes(&case.directory).into_iter().map(|pid| output::wait_for_pid(pid, case.patience()));
    ended.try_fold(true, |all, ended| Ok::<_, Failed>(all && ended?))
}

/// Back to where the next point begins; what is left that should not be.
fn clean_up(case: &mut Case, verb: &Verb, left: &mut Vec<String>) -> Outcome {
    let id = case.id.clone();
    if verb.keeps && status(case)?.as_deref() == Some("running") {
        let pid = case.pid()?;
        for other in marked_processes(&case.directory).into_iter().filter(|other| *other != pid) {
            if !output::wait_for_pid(other, case.patience())? {
                left.push(format!("process {other}"));
            }
        }
        return Ok(());
    }
    let end = case.call(&["delete", "--force", &id])?;
    if end.code != 0 {
        left.push(format!("delete --force: {}", end.stderr));
    }
    for pid in marked_processes(&case.directory) {
        if !output::wait_for_pid(pid, case.patience())? {
            break;
        }
    }
    left.extend(case.leftovers()?);
    let used = names_in(&case.directory.join("store/containers"));
    left.extend(used.into_iter().map(|name| format!("use of the store {name}")));
    let known = ["bundle", "state", "errors", "source", "store", "layout", REPORT];
    left.extend(names_in(&case.directory).into_iter().filter(|name| !known.contains(&name.as_str())));
    Ok(())
}

/// What the program reported of its walls, without what differs from one run to the next; null where it reported nothing.
fn walls(case: &Case) -> Result<Value, Failed> {
    let text = fs::read_to_string(case.directory.join(REPORT))?;
    let Some(report) = text.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()).filter(Value::is_object)
    else {
        return Ok(Value::Null);
    };
    if report["capabilities"].is_null() {
        return Ok(Value::Null);
    }
    let outside: BTreeSet<String> = fs::read_dir("/proc/self/ns")?
        .flatten()
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    let own = |link: &Value| link.as_str().is_some_and(|link| !outside.contains(link));
    let namespaces: Vec<_> =
        report["namespaces"].as_object().into_iter().flatten().map(|(kind, link)| json!([kind, own(link)])).collect();
    let keyring = report["session_keyring"].as_str().is_some_and(|name| name.contains(&case.id));
    let mut walls = json!({
        "namespaces": namespaces, "mounts": mounts(&report), "keyring": keyring,
        "descriptors": report["descriptors"].as_object().map(serde_json::Map::len),
    });
    for field in [
        "uid",
        "gid",
        "groups",
        "umask",
        "capabilities",
        "no_new_privs",
        "seccomp",
        "signals",
        "cwd",
        "hostname",
        "rlimits",
        "uid_map",
        "gid_map",
        "setgroups",
        "oom_score_adj",
        "cgroup",
        "personality",
        "scheduler",
    ] {
        walls[field] = report[field].clone();
    }
    Ok(walls)
}

/// Where an image's layers could not be stacked the root is a copy of their files, which is no less of a wall.
fn mounts(report: &Value) -> Vec<Value> {
    let mut mounts = super::old_kernels::mounts(report);
    for root in mounts.iter_mut().filter(|row| row["point"] == "/") {
        if root["root"].as_str().is_some_and(|path| path.ends_with("/copy/rootfs")) {
            (root["root"], root["source"], root["type"]) = ("/".into(), "ferry".into(), "overlay".into());
        }
    }
    mounts
}

fn difference(clean: &Value, seen: &Value) -> String {
    let fields = clean.as_object().into_iter().flatten();
    let different = fields.filter(|(field, value)| seen[*field] != **value);
    different.map(|(field, value)| format!("{field}: {value} became {}", seen[field])).collect::<Vec<_>>().join("; ")
}
