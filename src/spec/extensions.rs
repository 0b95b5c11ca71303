//! The annotations that change what ferry does, in one table.
//!
//! Most are those that crun has taught engines to set: what the specification had no field for when it was needed. Other
//! annotations are the engine's own notes and change nothing. crun(1)

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};

/// What a configuration says beside its fields: `annotations`.
pub type Annotations = BTreeMap<String, String>;

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// Its key.
    pub name: &'static str,
    /// The form of its value, as a person reads it.
    pub value: &'static str,
    /// What it does, in sentences.
    pub help: &'static str,
    form: Form,
}

/// What a value must be.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// `0` is off and anything else on.
    Switch,
    /// An absolute path.
    Path,
    /// One of the words.
    Word(&'static [&'static str]),
    /// base64, which its reader judges.
    Base64,
    /// Another module reads and judges it; a name that ends in a dot is the beginning of many.
    Elsewhere,
    /// Anything: it is not carried out, and a value that asks for something is warned about.
    Unheeded,
}

const HOOKS_STDOUT: &str = "run.oci.hooks.stdout";
const HOOKS_STDERR: &str = "run.oci.hooks.stderr";
const KEEP_ORIGINAL_GROUPS: &str = "run.oci.keep_original_groups";
const MOUNT_CONTEXT_TYPE: &str = "run.oci.mount_context_type";
const PIDFD_RECEIVER: &str = "run.oci.pidfd_receiver";
const SECCOMP_BPF_DATA: &str = "run.oci.seccomp_bpf_data";
const SECCOMP_FAIL_UNKNOWN: &str = "run.oci.seccomp_fail_unknown_syscall";
const SECCOMP_RECEIVER: &str = "run.oci.seccomp.receiver";

/// The mount options of SELinux. mount(8)
const CONTEXTS: &[&str] = &["context", "fscontext", "defcontext", "rootcontext"];

const fn row(name: &'static str, form: Form, value: &'static str, help: &'static str) -> Row {
    Row { name, value, help, form }
}

/// Every annotation that ferry looks at, those it only warns about last.
pub const TABLE: &[Row] = &[
    row(
        "dev.ferry.ksm",
        Form::Elsewhere,
        "true|false",
        "Merge equal pages of the container's memory with those of others, as --ksm does: cheaper, and a container can tell by \
         timing what others have in memory.",
    ),
    row(
        "dev.ferry.network.egress",
        Form::Elsewhere,
        "RATE",
        "Let each of the container's network interfaces send so many bits each second; k, M or G behind the number stand for \
         thousands, millions or billions: 10M. It holds for interfaces that are there once the createRuntime hooks have run, and \
         for all containers in the same network namespace. Without an interface but the loopback, or on the host's network, it is \
         an error.",
    ),
    row(
        "dev.ferry.network.ingress",
        Form::Elsewhere,
        "RATE",
        "The same for what the interfaces receive: what comes in beyond the rate is dropped.",
    ),
    row(
        HOOKS_STDERR,
        Form::Path,
        "FILE",
        "Append what hooks write to their standard error to FILE, which is made where it is missing. Without it the words \
         of a hook that fails are part of ferry's error.",
    ),
    row(
        HOOKS_STDOUT,
        Form::Path,
        "FILE",
        "Append what hooks write to their standard output to FILE, which is made where it is missing. Without it the \
         output goes nowhere.",
    ),
    row(
        KEEP_ORIGINAL_GROUPS,
        Form::Switch,
        "1",
        "Leave the process the supplementary groups of whoever called ferry, and do not set process.user.additionalGids. \
         An ordinary user's container so keeps the right to files of the user's groups.",
    ),
    row(
        MOUNT_CONTEXT_TYPE,
        Form::Word(CONTEXTS),
        "context|fscontext|defcontext|rootcontext",
        "The mount option by which linux.mountLabel is given to filesystems. The default is context.",
    ),
    row(
        PIDFD_RECEIVER,
        Form::Path,
        "PATH",
        "Send a pidfd of the container's process to the Unix socket at PATH, as --pidfd-socket does; the flag comes first.",
    ),
    row(
        SECCOMP_RECEIVER,
        Form::Path,
        "PATH",
        "The agent's socket for rules with SCMP_ACT_NOTIFY, where linux.seccomp.listenerPath names none.",
    ),
    row(
        SECCOMP_BPF_DATA,
        Form::Base64,
        "BASE64",
        "The filter itself, as struct sock_filter instructions of this machine in base64: it is installed in place of \
         linux.seccomp, which is then not looked at.",
    ),
    row(
        SECCOMP_FAIL_UNKNOWN,
        Form::Switch,
        "1",
        "Refuse a seccomp profile that names a system call which no architecture has, instead of passing over the name with \
         a warning.",
    ),
    row(
        "org.systemd.property.",
        Form::Elsewhere,
        "VALUE",
        "Followed by the name of a property that bounds resources or says how a scope ends: with --systemd-cgroup, set it on the \
         container's scope. VALUE is written as systemd writes it, such as uint64 5000000 or 'inactive-or-failed'.",
    ),
    row("run.oci.delegate-cgroup", Form::Unheeded, "NAME", UNHEEDED),
    row("run.oci.handler", Form::Unheeded, "NAME", UNHEEDED),
    row("run.oci.seccomp.plugins", Form::Unheeded, "FILE[:FILE...]", UNHEEDED),
    row("run.oci.systemd.force_cgroup_v1", Form::Unheeded, "PATH", UNHEEDED),
    row(
        "run.oci.systemd.subgroup",
        Form::Unheeded,
        "NAME",
        "Empty, the container is in its scope itself, which it always is with ferry. A name is not carried out: ferry warns \
         and goes on.",
    ),
];

const UNHEEDED: &str = "Not carried out: ferry warns and goes on.";

/// The keys that change what is done on the host, for `features`.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|row| row.form != Form::Unheeded).map(|row| row.name)
}

/// Checks the values of the annotations in the table.
///
/// # Errors
/// A value of another form.
pub fn check(annotations: &Annotations) -> Result<()> {
    for Row { name, form, .. } in TABLE {
        let Some(value) = annotations.get(*name) else { continue };
        let fault = |why: String| Err(Error::config(format!("annotations.{name}"), why));
        match form {
            Form::Path if !Path::new(value).is_absolute() => {
                return fault(format!("{value:?} is not an absolute path"));
            }
            Form::Word(known) if !known.contains(&value.as_str()) => {
                return fault(format!("{value:?} is not one of {}", known.join(", ")));
            }
            Form::Switch | Form::Path | Form::Word(_) | Form::Base64 | Form::Elsewhere | Form::Unheeded => (),
        }
    }
    Ok(())
}

/// What is asked for and not done, in words for the log.
pub fn unheeded(annotations: &Annotations) -> impl Iterator<Item = String> {
    let asked = TABLE
        .iter()
        .filter(|row| row.form == Form::Unheeded && annotations.get(row.name).is_some_and(|value| !value.is_empty()));
    asked.map(|row| format!("annotations.{}: ignored: ferry does not carry it out", row.name))
}

fn path<'a>(annotations: &'a Annotations, name: &str) -> Option<&'a Path> {
    annotations.get(name).map(Path::new)
}

fn is_on(annotations: &Annotations, name: &str) -> bool {
    annotations.get(name).is_some_and(|value| value != "0")
}

/// Where the standard output and the standard error of hooks go.
pub fn hook_streams(annotations: &Annotations) -> (Option<&Path>, Option<&Path>) {
    (path(annotations, HOOKS_STDOUT), path(annotations, HOOKS_STDERR))
}

/// Whether the process keeps the caller's supplementary groups.
pub fn keeps_groups(annotations: &Annotations) -> bool {
    is_on(annotations, KEEP_ORIGINAL_GROUPS)
}

/// The mount option that carries `linux.mountLabel`.
pub fn mount_context(annotations: &Annotations) -> &str {
    annotations.get(MOUNT_CONTEXT_TYPE).map_or("context", String::as_str)
}

/// The socket that is sent a pidfd.
pub fn pidfd_receiver(annotations: &Annotations) -> Option<&Path> {
    path(annotations, PIDFD_RECEIVER)
}

/// The socket of the seccomp agent.
pub fn seccomp_receiver(annotations: &Annotations) -> Option<&Path> {
    path(annotations, SECCOMP_RECEIVER)
}

/// The filter in base64.
pub fn seccomp_filter(annotations: &Annotations) -> Option<&str> {
    annotations.get(SECCOMP_BPF_DATA).map(String::as_str)
}

/// The JSON path of the filter, for errors about it.
pub fn seccomp_filter_path() -> String {
    format!("annotations.{SECCOMP_BPF_DATA}")
}

/// Whether an unknown system call is an error.
pub fn refuses_unknown_calls(annotations: &Annotations) -> bool {
    is_on(annotations, SECCOMP_FAIL_UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_table_names_each_once_and_says_what_it_does() {
        let names: std::collections::BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
        assert!(
            TABLE.iter().all(
                |row| row.help.ends_with('.') && (row.form == Form::Elsewhere) != row.name.starts_with("run.oci.")
            )
        );
    }

    #[test]
    fn values_have_their_form() {
        let refused = |name: &str, value: &str| check(&annotations(&[(name, value)])).unwrap_err().to_string();
        assert_eq!(
            refused("run.oci.hooks.stdout", "x"),
            "annotations.run.oci.hooks.stdout: \"x\" is not an absolute path"
        );
        assert!(refused("run.oci.mount_context_type", "label").contains("is not one of context, fscontext"));
        let fine = [("run.oci.hooks.stderr", "/x"), ("run.oci.mount_context_type", "defcontext"), ("run.oci.new", "x")];
        check(&annotations(&fine)).unwrap();
    }

    #[test]
    fn a_switch_is_off_with_zero_alone() {
        let keeps = |value| keeps_groups(&annotations(&[(KEEP_ORIGINAL_GROUPS, value)]));
        assert!(keeps("1") && keeps("true") && !keeps("0") && !keeps_groups(&Annotations::new()));
    }

    #[test]
    fn what_is_not_done_is_warned_about_once_it_is_asked_for() {
        let unheeded = |pairs: &[(&str, &str)]| unheeded(&annotations(pairs)).collect::<Vec<_>>();
        assert_eq!(
            unheeded(&[("run.oci.handler", "krun"), ("run.oci.systemd.subgroup", ""), ("run.oci.other", "x")]),
            ["annotations.run.oci.handler: ignored: ferry does not carry it out"]
        );
    }
}
