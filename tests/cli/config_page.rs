//! What ferry-config(5) says beside the table of annotations: which file is read, and what ferry decides where the
//! specification leaves it open or other runtimes do otherwise.

/// Title and text of each section, in the form of the verbs' own.
pub const SECTIONS: &[(&str, &str)] = &[
    (
        "DESCRIPTION",
        "A bundle is a directory with the file config.json, in the form of the OCI runtime specification 1.3.0. ferry reads it \
         once, when the container is made, and keeps a copy: what is changed in the bundle afterwards reaches the next \
         container. With --config another file is read in its place; relative paths in it still start at the bundle.\n\n\
         Unknown fields are ignored, null is as good as absent, and an error names the file, the line and the JSON path of \
         the field. `ferry explain` shows what a configuration comes to on this host, and `ferry spec` writes one to begin \
         with.",
    ),
    (
        "WHAT IS DECIDED OTHERWISE",
        "An unknown capability, and one that ferry itself does not hold, is left out with a warning. Any other name outside \
         its vocabulary (a namespace, a resource limit, a seccomp action) is an error, and nothing is left of the container \
         then.\n\nLimits are those of cgroup v2. One that cannot be enforced on this host is an error that names it; none is \
         dropped in silence. An ordinary user's container without limits needs no cgroup and goes on where none can be made \
         (--rootless).\n\nA container without a mount namespace has its mounts on the host, below its root, until it is deleted, \
         and ferry warns of it. Where its root is the host's own, or it has a user namespace, it can have none: asking for \
         mounts, masked or read-only paths is an error then, and so is linux.rootfsPropagation always. A host name without a \
         uts namespace is an error, too: it would be the host's.\n\nOptions that are for a new filesystem alone have no \
         effect on a bind mount, and ferry warns of them; on the command line they are refused.\n\nNothing may be \
         mounted over procfs but the files that LXCFS provides. Links of the image are followed inside its root, and not at \
         all on the way to procfs and sysfs.\n\nA system call that no rule of a seccomp profile names and that is newer than \
         all those it names answers ENOSYS, so that programs fall back as on an older kernel.\n\nA label for AppArmor or \
         SELinux, process.apparmorProfile, process.selinuxLabel or linux.mountLabel, is an error where that module is not in \
         force. linux.mountLabel is given to every new filesystem but procfs and sysfs; what is bound keeps its own.\n\nUsers \
         and groups are numbers and are never looked up in the image.",
    ),
];

/// What stands above the annotations.
pub const ANNOTATIONS: &str = "Most annotations are the engine's own notes, and change nothing. These do something, most of \
     them on the host, and are what crun(1) and systemd's runtimes understand by them; `ferry features` lists them for \
     engines that keep an image's author from setting them. Any other run.oci annotation is ignored.";
