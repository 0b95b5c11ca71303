//! System call names to numbers, for every convention a container can use here.
//!
//! One table for all conventions, so that a name is looked up once for a profile and not once for each architecture.
//! The numbers are the kernel's: arch/x86/entry/syscalls/syscall_{32,64}.tbl, scripts/syscall.tbl (arm64),
//! arch/arm/tools/syscall.tbl and the private calls of arch/arm/include/uapi/asm/unistd.h, up to Linux 7.0.

use super::vocabulary::Abi;

/// The numbers of one name: x86_64, x86, x32 (without its bit), aarch64, arm; [`N`] where it does not exist.
pub(super) type Numbers = [i32; 5];

/// No such call in this convention.
const N: i32 = -1;

/// Set in the number of every x32 call. arch/x86/include/uapi/asm/unistd.h
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The numbers of the call named `name`.
pub(super) fn lookup(name: &str) -> Option<&'static Numbers> {
    let index = TABLE.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    TABLE.get(index).map(|(_, numbers)| numbers)
}

/// The number in one convention, as a filter sees it.
pub(super) fn number(numbers: &Numbers, abi: Abi) -> Option<u32> {
    let (column, bit) = match abi {
        Abi::X86_64 => (0, 0),
        Abi::X86 => (1, 0),
        Abi::X32 => (2, X32_BIT),
        Abi::Aarch64 => (3, 0),
        Abi::Arm => (4, 0),
    };
    u32::try_from(numbers[column]).ok().map(|number| number | bit)
}

/// Calls that 32-bit x86 also reaches through `socketcall` and `ipc`, whose first argument says which one is meant:
/// name, number of the multiplexer, value of that argument. include/uapi/linux/net.h, include/uapi/linux/ipc.h
#[rustfmt::skip]
const MULTIPLEXED: [(&str, u32, u64); 32] = [
    ("accept", 102, 5), ("accept4", 102, 18), ("bind", 102, 2), ("connect", 102, 3), ("getpeername", 102, 7),
    ("getsockname", 102, 6), ("getsockopt", 102, 15), ("listen", 102, 4), ("msgctl", 117, 14), ("msgget", 117, 13),
    ("msgrcv", 117, 12), ("msgsnd", 117, 11), ("recv", 102, 10), ("recvfrom", 102, 12), ("recvmmsg", 102, 19),
    ("recvmsg", 102, 17), ("semctl", 117, 3), ("semget", 117, 2), ("semop", 117, 1), ("semtimedop", 117, 4),
    ("send", 102, 9), ("sendmmsg", 102, 20), ("sendmsg", 102, 16), ("sendto", 102, 11), ("setsockopt", 102, 14),
    ("shmat", 117, 21), ("shmctl", 117, 24), ("shmdt", 117, 22), ("shmget", 117, 23), ("shutdown", 102, 13),
    ("socket", 102, 1), ("socketpair", 102, 8),
];

/// The multiplexer's number and the value of its first argument, for a call that 32-bit x86 also reaches that way.
pub(super) fn multiplexed(name: &str) -> Option<(u32, u64)> {
    let index = MULTIPLEXED.binary_search_by(|(known, ..)| (*known).cmp(name)).ok()?;
    MULTIPLEXED.get(index).map(|(_, number, call)| (*number, *call))
}

#[rustfmt::skip]
static TABLE: [(&str, Numbers); 486] = [
    ("_llseek", [N, 140, N, N, 140]), ("_newselect", [N, 142, N, N, 142]), ("_sysctl", [156, 149, N, N, 149]),
    ("accept", [43, N, 43, 202, 285]), ("accept4", [288, 364, 288, 242, 366]), ("access", [21, 33, 21, N, 33]),
    ("acct", [163, 51, 163, 89, 51]), ("add_key", [248, 286, 248, 217, 309]), ("adjtimex", [159, 124, 159, 171, 124]),
    ("afs_syscall", [183, 137, 183, N, N]), ("alarm", [37, 27, 37, N, N]), ("arch_prctl", [158, 384, 158, N, N]),
    ("arm_fadvise64_64", [N, N, N, N, 270]), ("arm_sync_file_range", [N, N, N, N, 341]),
    ("bdflush", [N, 134, N, N, 134]), ("bind", [49, 361, 49, 200, 282]), ("bpf", [321, 357, 321, 280, 386]),
    ("break", [N, 17, N, N, N]), ("breakpoint", [N, N, N, N, 0xf0001]), ("brk", [12, 45, 12, 214, 45]),
    ("cacheflush", [N, N, N, N, 0xf0002]), ("cachestat", [451, 451, 451, 451, 451]),
    ("capget", [125, 184, 125, 90, 184]), ("capset", [126, 185, 126, 91, 185]), ("chdir", [80, 12, 80, 49, 12]),
    ("chmod", [90, 15, 90, N, 15]), ("chown", [92, 182, 92, N, 182]), ("chown32", [N, 212, N, N, 212]),
    ("chroot", [161, 61, 161, 51, 61]), ("clock_adjtime", [305, 343, 305, 266, 372]),
    ("clock_adjtime64", [N, 405, N, N, 405]), ("clock_getres", [229, 266, 229, 114, 264]),
    ("clock_getres_time64", [N, 406, N, N, 406]), ("clock_gettime", [228, 265, 228, 113, 263]),
    ("clock_gettime64", [N, 403, N, N, 403]), ("clock_nanosleep", [230, 267, 230, 115, 265]),
    ("clock_nanosleep_time64", [N, 407, N, N, 407]), ("clock_settime", [227, 264, 227, 112, 262]),
    ("clock_settime64", [N, 404, N, N, 404]), ("clone", [56, 120, 56, 220, 120]), ("clone3", [435, 435, 435, 435, 435]),
    ("close", [3, 6, 3, 57, 6]), ("close_range", [436, 436, 436, 436, 436]), ("connect", [42, 362, 42, 203, 283]),
    ("copy_file_range", [326, 377, 326, 285, 391]), ("creat", [85, 8, 85, N, 8]),
    ("create_module", [174, 127, N, N, N]), ("delete_module", [176, 129, 176, 106, 129]), ("dup", [32, 41, 32, 23, 41]),
    ("dup2", [33, 63, 33, N, 63]), ("dup3", [292, 330, 292, 24, 358]), ("epoll_create", [213, 254, 213, N, 250]),
    ("epoll_create1", [291, 329, 291, 20, 357]), ("epoll_ctl", [233, 255, 233, 21, 251]),
    ("epoll_ctl_old", [214, N, N, N, N]), ("epoll_pwait", [281, 319, 281, 22, 346]),
    ("epoll_pwait2", [441, 441, 441, 441, 441]), ("epoll_wait", [232, 256, 232, N, 252]),
    ("epoll_wait_old", [215, N, N, N, N]), ("eventfd", [284, 323, 284, N, 351]), ("eventfd2", [290, 328, 290, 19, 356]),
    ("execve", [59, 11, 520, 221, 11]), ("execveat", [322, 358, 545, 281, 387]), ("exit", [60, 1, 60, 93, 1]),
    ("exit_group", [231, 252, 231, 94, 248]), ("faccessat", [269, 307, 269, 48, 334]),
    ("faccessat2", [439, 439, 439, 439, 439]), ("fadvise64", [221, 250, 221, 223, N]),
    ("fadvise64_64", [N, 272, N, N, N]), ("fallocate", [285, 324, 285, 47, 352]),
    ("fanotify_init", [300, 338, 300, 262, 367]), ("fanotify_mark", [301, 339, 301, 263, 368]),
    ("fchdir", [81, 133, 81, 50, 133]), ("fchmod", [91, 94, 91, 52, 94]), ("fchmodat", [268, 306, 268, 53, 333]),
    ("fchmodat2", [452, 452, 452, 452, 452]), ("fchown", [93, 95, 93, 55, 95]), ("fchown32", [N, 207, N, N, 207]),
    ("fchownat", [260, 298, 260, 54, 325]), ("fcntl", [72, 55, 72, 25, 55]), ("fcntl64", [N, 221, N, N, 221]),
    ("fdatasync", [75, 148, 75, 83, 148]), ("fgetxattr", [193, 231, 193, 10, 231]),
    ("file_getattr", [468, 468, 468, 468, 468]), ("file_setattr", [469, 469, 469, 469, 469]),
    ("finit_module", [313, 350, 313, 273, 379]), ("flistxattr", [196, 234, 196, 13, 234]),
    ("flock", [73, 143, 73, 32, 143]), ("fork", [57, 2, 57, N, 2]), ("fremovexattr", [199, 237, 199, 16, 237]),
    ("fsconfig", [431, 431, 431, 431, 431]), ("fsetxattr", [190, 228, 190, 7, 228]),
    ("fsmount", [432, 432, 432, 432, 432]), ("fsopen", [430, 430, 430, 430, 430]),
    ("fspick", [433, 433, 433, 433, 433]), ("fstat", [5, 108, 5, 80, 108]), ("fstat64", [N, 197, N, N, 197]),
    ("fstatat64", [N, 300, N, N, 327]), ("fstatfs", [138, 100, 138, 44, 100]), ("fstatfs64", [N, 269, N, N, 267]),
    ("fsync", [74, 118, 74, 82, 118]), ("ftime", [N, 35, N, N, N]), ("ftruncate", [77, 93, 77, 46, 93]),
    ("ftruncate64", [N, 194, N, N, 194]), ("futex", [202, 240, 202, 98, 240]),
    ("futex_requeue", [456, 456, 456, 456, 456]), ("futex_time64", [N, 422, N, N, 422]),
    ("futex_wait", [455, 455, 455, 455, 455]), ("futex_waitv", [449, 449, 449, 449, 449]),
    ("futex_wake", [454, 454, 454, 454, 454]), ("futimesat", [261, 299, 261, N, 326]),
    ("get_kernel_syms", [177, 130, N, N, N]), ("get_mempolicy", [239, 275, 239, 236, 320]),
    ("get_robust_list", [274, 312, 531, 100, 339]), ("get_thread_area", [211, 244, N, N, N]),
    ("get_tls", [N, N, N, N, 0xf0006]), ("getcpu", [309, 318, 309, 168, 345]), ("getcwd", [79, 183, 79, 17, 183]),
    ("getdents", [78, 141, 78, N, 141]), ("getdents64", [217, 220, 217, 61, 217]), ("getegid", [108, 50, 108, 177, 50]),
    ("getegid32", [N, 202, N, N, 202]), ("geteuid", [107, 49, 107, 175, 49]), ("geteuid32", [N, 201, N, N, 201]),
    ("getgid", [104, 47, 104, 176, 47]), ("getgid32", [N, 200, N, N, 200]), ("getgroups", [115, 80, 115, 158, 80]),
    ("getgroups32", [N, 205, N, N, 205]), ("getitimer", [36, 105, 36, 102, 105]),
    ("getpeername", [52, 368, 52, 205, 287]), ("getpgid", [121, 132, 121, 155, 132]),
    ("getpgrp", [111, 65, 111, N, 65]), ("getpid", [39, 20, 39, 172, 20]), ("getpmsg", [181, 188, 181, N, N]),
    ("getppid", [110, 64, 110, 173, 64]), ("getpriority", [140, 96, 140, 141, 96]),
    ("getrandom", [318, 355, 318, 278, 384]), ("getresgid", [120, 171, 120, 150, 171]),
    ("getresgid32", [N, 211, N, N, 211]), ("getresuid", [118, 165, 118, 148, 165]),
    ("getresuid32", [N, 209, N, N, 209]), ("getrlimit", [97, 76, 97, 163, N]), ("getrusage", [98, 77, 98, 165, 77]),
    ("getsid", [124, 147, 124, 156, 147]), ("getsockname", [51, 367, 51, 204, 286]),
    ("getsockopt", [55, 365, 542, 209, 295]), ("gettid", [186, 224, 186, 178, 224]),
    ("gettimeofday", [96, 78, 96, 169, 78]), ("getuid", [102, 24, 102, 174, 24]), ("getuid32", [N, 199, N, N, 199]),
    ("getxattr", [191, 229, 191, 8, 229]), ("getxattrat", [464, 464, 464, 464, 464]), ("gtty", [N, 32, N, N, N]),
    ("idle", [N, 112, N, N, N]), ("init_module", [175, 128, 175, 105, 128]),
    ("inotify_add_watch", [254, 292, 254, 27, 317]), ("inotify_init", [253, 291, 253, N, 316]),
    ("inotify_init1", [294, 332, 294, 26, 360]), ("inotify_rm_watch", [255, 293, 255, 28, 318]),
    ("io_cancel", [210, 249, 210, 3, 247]), ("io_destroy", [207, 246, 207, 1, 244]),
    ("io_getevents", [208, 247, 208, 4, 245]), ("io_pgetevents", [333, 385, 333, 292, 399]),
    ("io_pgetevents_time64", [N, 416, N, N, 416]), ("io_setup", [206, 245, 543, 0, 243]),
    ("io_submit", [209, 248, 544, 2, 246]), ("io_uring_enter", [426, 426, 426, 426, 426]),
    ("io_uring_register", [427, 427, 427, 427, 427]), ("io_uring_setup", [425, 425, 425, 425, 425]),
    ("ioctl", [16, 54, 514, 29, 54]), ("ioperm", [173, 101, 173, N, N]), ("iopl", [172, 110, 172, N, N]),
    ("ioprio_get", [252, 290, 252, 31, 315]), ("ioprio_set", [251, 289, 251, 30, 314]), ("ipc", [N, 117, N, N, N]),
    ("kcmp", [312, 349, 312, 272, 378]), ("kexec_file_load", [320, N, 320, 294, 401]),
    ("kexec_load", [246, 283, 528, 104, 347]), ("keyctl", [250, 288, 250, 219, 311]), ("kill", [62, 37, 62, 129, 37]),
    ("landlock_add_rule", [445, 445, 445, 445, 445]), ("landlock_create_ruleset", [444, 444, 444, 444, 444]),
    ("landlock_restrict_self", [446, 446, 446, 446, 446]), ("lchown", [94, 16, 94, N, 16]),
    ("lchown32", [N, 198, N, N, 198]), ("lgetxattr", [192, 230, 192, 9, 230]), ("link", [86, 9, 86, N, 9]),
    ("linkat", [265, 303, 265, 37, 330]), ("listen", [50, 363, 50, 201, 284]), ("listmount", [458, 458, 458, 458, 458]),
    ("listns", [470, 470, 470, 470, 470]), ("listxattr", [194, 232, 194, 11, 232]),
    ("listxattrat", [465, 465, 465, 465, 465]), ("llistxattr", [195, 233, 195, 12, 233]), ("lock", [N, 53, N, N, N]),
    ("lookup_dcookie", [212, 253, 212, 18, 249]), ("lremovexattr", [198, 236, 198, 15, 236]),
    ("lseek", [8, 19, 8, 62, 19]), ("lsetxattr", [189, 227, 189, 6, 227]),
    ("lsm_get_self_attr", [459, 459, 459, 459, 459]), ("lsm_list_modules", [461, 461, 461, 461, 461]),
    ("lsm_set_self_attr", [460, 460, 460, 460, 460]), ("lstat", [6, 107, 6, N, 107]), ("lstat64", [N, 196, N, N, 196]),
    ("madvise", [28, 219, 28, 233, 220]), ("map_shadow_stack", [453, 453, 453, 453, 453]),
    ("mbind", [237, 274, 237, 235, 319]), ("membarrier", [324, 375, 324, 283, 389]),
    ("memfd_create", [319, 356, 319, 279, 385]), ("memfd_secret", [447, 447, 447, 447, N]),
    ("migrate_pages", [256, 294, 256, 238, 400]), ("mincore", [27, 218, 27, 232, 219]), ("mkdir", [83, 39, 83, N, 39]),
    ("mkdirat", [258, 296, 258, 34, 323]), ("mknod", [133, 14, 133, N, 14]), ("mknodat", [259, 297, 259, 33, 324]),
    ("mlock", [149, 150, 149, 228, 150]), ("mlock2", [325, 376, 325, 284, 390]),
    ("mlockall", [151, 152, 151, 230, 152]), ("mmap", [9, 90, 9, 222, N]), ("mmap2", [N, 192, N, N, 192]),
    ("modify_ldt", [154, 123, 154, N, N]), ("mount", [165, 21, 165, 40, 21]),
    ("mount_setattr", [442, 442, 442, 442, 442]), ("move_mount", [429, 429, 429, 429, 429]),
    ("move_pages", [279, 317, 533, 239, 344]), ("mprotect", [10, 125, 10, 226, 125]), ("mpx", [N, 56, N, N, N]),
    ("mq_getsetattr", [245, 282, 245, 185, 279]), ("mq_notify", [244, 281, 527, 184, 278]),
    ("mq_open", [240, 277, 240, 180, 274]), ("mq_timedreceive", [243, 280, 243, 183, 277]),
    ("mq_timedreceive_time64", [N, 419, N, N, 419]), ("mq_timedsend", [242, 279, 242, 182, 276]),
    ("mq_timedsend_time64", [N, 418, N, N, 418]), ("mq_unlink", [241, 278, 241, 181, 275]),
    ("mremap", [25, 163, 25, 216, 163]), ("mseal", [462, 462, 462, 462, 462]), ("msgctl", [71, 402, 71, 187, 304]),
    ("msgget", [68, 399, 68, 186, 303]), ("msgrcv", [70, 401, 70, 188, 302]), ("msgsnd", [69, 400, 69, 189, 301]),
    ("msync", [26, 144, 26, 227, 144]), ("munlock", [150, 151, 150, 229, 151]),
    ("munlockall", [152, 153, 152, 231, 153]), ("munmap", [11, 91, 11, 215, 91]),
    ("name_to_handle_at", [303, 341, 303, 264, 370]), ("nanosleep", [35, 162, 35, 101, 162]),
    ("newfstatat", [262, N, 262, 79, N]), ("nfsservctl", [180, 169, N, 42, 169]), ("nice", [N, 34, N, N, 34]),
    ("oldfstat", [N, 28, N, N, N]), ("oldlstat", [N, 84, N, N, N]), ("oldolduname", [N, 59, N, N, N]),
    ("oldstat", [N, 18, N, N, N]), ("olduname", [N, 109, N, N, N]), ("open", [2, 5, 2, N, 5]),
    ("open_by_handle_at", [304, 342, 304, 265, 371]), ("open_tree", [428, 428, 428, 428, 428]),
    ("open_tree_attr", [467, 467, 467, 467, 467]), ("openat", [257, 295, 257, 56, 322]),
    ("openat2", [437, 437, 437, 437, 437]), ("pause", [34, 29, 34, N, 29]), ("pciconfig_iobase", [N, N, N, N, 271]),
    ("pciconfig_read", [N, N, N, N, 272]), ("pciconfig_write", [N, N, N, N, 273]),
    ("perf_event_open", [298, 336, 298, 241, 364]), ("personality", [135, 136, 135, 92, 136]),
    ("pidfd_getfd", [438, 438, 438, 438, 438]), ("pidfd_open", [434, 434, 434, 434, 434]),
    ("pidfd_send_signal", [424, 424, 424, 424, 424]), ("pipe", [22, 42, 22, N, 42]),
    ("pipe2", [293, 331, 293, 59, 359]), ("pivot_root", [155, 217, 155, 41, 218]),
    ("pkey_alloc", [330, 381, 330, 289, 395]), ("pkey_free", [331, 382, 331, 290, 396]),
    ("pkey_mprotect", [329, 380, 329, 288, 394]), ("poll", [7, 168, 7, N, 168]), ("ppoll", [271, 309, 271, 73, 336]),
    ("ppoll_time64", [N, 414, N, N, 414]), ("prctl", [157, 172, 157, 167, 172]), ("pread64", [17, 180, 17, 67, 180]),
    ("preadv", [295, 333, 534, 69, 361]), ("preadv2", [327, 378, 546, 286, 392]),
    ("prlimit64", [302, 340, 302, 261, 369]), ("process_madvise", [440, 440, 440, 440, 440]),
    ("process_mrelease", [448, 448, 448, 448, 448]), ("process_vm_readv", [310, 347, 539, 270, 376]),
    ("process_vm_writev", [311, 348, 540, 271, 377]), ("prof", [N, 44, N, N, N]), ("profil", [N, 98, N, N, N]),
    ("pselect6", [270, 308, 270, 72, 335]), ("pselect6_time64", [N, 413, N, N, 413]),
    ("ptrace", [101, 26, 521, 117, 26]), ("putpmsg", [182, 189, 182, N, N]), ("pwrite64", [18, 181, 18, 68, 181]),
    ("pwritev", [296, 334, 535, 70, 362]), ("pwritev2", [328, 379, 547, 287, 393]),
    ("query_module", [178, 167, N, N, N]), ("quotactl", [179, 131, 179, 60, 131]),
    ("quotactl_fd", [443, 443, 443, 443, 443]), ("read", [0, 3, 0, 63, 3]), ("readahead", [187, 225, 187, 213, 225]),
    ("readdir", [N, 89, N, N, N]), ("readlink", [89, 85, 89, N, 85]), ("readlinkat", [267, 305, 267, 78, 332]),
    ("readv", [19, 145, 515, 65, 145]), ("reboot", [169, 88, 169, 142, 88]), ("recv", [N, N, N, N, 291]),
    ("recvfrom", [45, 371, 517, 207, 292]), ("recvmmsg", [299, 337, 537, 243, 365]),
    ("recvmmsg_time64", [N, 417, N, N, 417]), ("recvmsg", [47, 372, 519, 212, 297]),
    ("remap_file_pages", [216, 257, 216, 234, 253]), ("removexattr", [197, 235, 197, 14, 235]),
    ("removexattrat", [466, 466, 466, 466, 466]), ("rename", [82, 38, 82, N, 38]),
    ("renameat", [264, 302, 264, 38, 329]), ("renameat2", [316, 353, 316, 276, 382]),
    ("request_key", [249, 287, 249, 218, 310]), ("restart_syscall", [219, 0, 219, 128, 0]),
    ("rmdir", [84, 40, 84, N, 40]), ("rseq", [334, 386, 334, 293, 398]),
    ("rseq_slice_yield", [471, 471, 471, 471, 471]), ("rt_sigaction", [13, 174, 512, 134, 174]),
    ("rt_sigpending", [127, 176, 522, 136, 176]), ("rt_sigprocmask", [14, 175, 14, 135, 175]),
    ("rt_sigqueueinfo", [129, 178, 524, 138, 178]), ("rt_sigreturn", [15, 173, 513, 139, 173]),
    ("rt_sigsuspend", [130, 179, 130, 133, 179]), ("rt_sigtimedwait", [128, 177, 523, 137, 177]),
    ("rt_sigtimedwait_time64", [N, 421, N, N, 421]), ("rt_tgsigqueueinfo", [297, 335, 536, 240, 363]),
    ("sched_get_priority_max", [146, 159, 146, 125, 159]), ("sched_get_priority_min", [147, 160, 147, 126, 160]),
    ("sched_getaffinity", [204, 242, 204, 123, 242]), ("sched_getattr", [315, 352, 315, 275, 381]),
    ("sched_getparam", [143, 155, 143, 121, 155]), ("sched_getscheduler", [145, 157, 145, 120, 157]),
    ("sched_rr_get_interval", [148, 161, 148, 127, 161]), ("sched_rr_get_interval_time64", [N, 423, N, N, 423]),
    ("sched_setaffinity", [203, 241, 203, 122, 241]), ("sched_setattr", [314, 351, 314, 274, 380]),
    ("sched_setparam", [142, 154, 142, 118, 154]), ("sched_setscheduler", [144, 156, 144, 119, 156]),
    ("sched_yield", [24, 158, 24, 124, 158]), ("seccomp", [317, 354, 317, 277, 383]), ("security", [185, N, 185, N, N]),
    ("select", [23, 82, 23, N, N]), ("semctl", [66, 394, 66, 191, 300]), ("semget", [64, 393, 64, 190, 299]),
    ("semop", [65, N, 65, 193, 298]), ("semtimedop", [220, N, 220, 192, 312]),
    ("semtimedop_time64", [N, 420, N, N, 420]), ("send", [N, N, N, N, 289]), ("sendfile", [40, 187, 40, 71, 187]),
    ("sendfile64", [N, 239, N, N, 239]), ("sendmmsg", [307, 345, 538, 269, 374]), ("sendmsg", [46, 370, 518, 211, 296]),
    ("sendto", [44, 369, 44, 206, 290]), ("set_mempolicy", [238, 276, 238, 237, 321]),
    ("set_mempolicy_home_node", [450, 450, 450, 450, 450]), ("set_robust_list", [273, 311, 530, 99, 338]),
    ("set_thread_area", [205, 243, N, N, N]), ("set_tid_address", [218, 258, 218, 96, 256]),
    ("set_tls", [N, N, N, N, 0xf0005]), ("setdomainname", [171, 121, 171, 162, 121]),
    ("setfsgid", [123, 139, 123, 152, 139]), ("setfsgid32", [N, 216, N, N, 216]),
    ("setfsuid", [122, 138, 122, 151, 138]), ("setfsuid32", [N, 215, N, N, 215]), ("setgid", [106, 46, 106, 144, 46]),
    ("setgid32", [N, 214, N, N, 214]), ("setgroups", [116, 81, 116, 159, 81]), ("setgroups32", [N, 206, N, N, 206]),
    ("sethostname", [170, 74, 170, 161, 74]), ("setitimer", [38, 104, 38, 103, 104]),
    ("setns", [308, 346, 308, 268, 375]), ("setpgid", [109, 57, 109, 154, 57]),
    ("setpriority", [141, 97, 141, 140, 97]), ("setregid", [114, 71, 114, 143, 71]),
    ("setregid32", [N, 204, N, N, 204]), ("setresgid", [119, 170, 119, 149, 170]), ("setresgid32", [N, 210, N, N, 210]),
    ("setresuid", [117, 164, 117, 147, 164]), ("setresuid32", [N, 208, N, N, 208]),
    ("setreuid", [113, 70, 113, 145, 70]), ("setreuid32", [N, 203, N, N, 203]), ("setrlimit", [160, 75, 160, 164, 75]),
    ("setsid", [112, 66, 112, 157, 66]), ("setsockopt", [54, 366, 541, 208, 294]),
    ("settimeofday", [164, 79, 164, 170, 79]), ("setuid", [105, 23, 105, 146, 23]), ("setuid32", [N, 213, N, N, 213]),
    ("setxattr", [188, 226, 188, 5, 226]), ("setxattrat", [463, 463, 463, 463, 463]), ("sgetmask", [N, 68, N, N, N]),
    ("shmat", [30, 397, 30, 196, 305]), ("shmctl", [31, 396, 31, 195, 308]), ("shmdt", [67, 398, 67, 197, 306]),
    ("shmget", [29, 395, 29, 194, 307]), ("shutdown", [48, 373, 48, 210, 293]), ("sigaction", [N, 67, N, N, 67]),
    ("sigaltstack", [131, 186, 525, 132, 186]), ("signal", [N, 48, N, N, N]), ("signalfd", [282, 321, 282, N, 349]),
    ("signalfd4", [289, 327, 289, 74, 355]), ("sigpending", [N, 73, N, N, 73]), ("sigprocmask", [N, 126, N, N, 126]),
    ("sigreturn", [N, 119, N, N, 119]), ("sigsuspend", [N, 72, N, N, 72]), ("socket", [41, 359, 41, 198, 281]),
    ("socketcall", [N, 102, N, N, N]), ("socketpair", [53, 360, 53, 199, 288]), ("splice", [275, 313, 275, 76, 340]),
    ("ssetmask", [N, 69, N, N, N]), ("stat", [4, 106, 4, N, 106]), ("stat64", [N, 195, N, N, 195]),
    ("statfs", [137, 99, 137, 43, 99]), ("statfs64", [N, 268, N, N, 266]), ("statmount", [457, 457, 457, 457, 457]),
    ("statx", [332, 383, 332, 291, 397]), ("stime", [N, 25, N, N, N]), ("stty", [N, 31, N, N, N]),
    ("swapoff", [168, 115, 168, 225, 115]), ("swapon", [167, 87, 167, 224, 87]), ("symlink", [88, 83, 88, N, 83]),
    ("symlinkat", [266, 304, 266, 36, 331]), ("sync", [162, 36, 162, 81, 36]),
    ("sync_file_range", [277, 314, 277, 84, N]), ("sync_file_range2", [N, N, N, N, 341]),
    ("syncfs", [306, 344, 306, 267, 373]), ("sysfs", [139, 135, 139, N, 135]), ("sysinfo", [99, 116, 99, 179, 116]),
    ("syslog", [103, 103, 103, 116, 103]), ("tee", [276, 315, 276, 77, 342]), ("tgkill", [234, 270, 234, 131, 268]),
    ("time", [201, 13, 201, N, N]), ("timer_create", [222, 259, 526, 107, 257]),
    ("timer_delete", [226, 263, 226, 111, 261]), ("timer_getoverrun", [225, 262, 225, 109, 260]),
    ("timer_gettime", [224, 261, 224, 108, 259]), ("timer_gettime64", [N, 408, N, N, 408]),
    ("timer_settime", [223, 260, 223, 110, 258]), ("timer_settime64", [N, 409, N, N, 409]),
    ("timerfd_create", [283, 322, 283, 85, 350]), ("timerfd_gettime", [287, 326, 287, 87, 354]),
    ("timerfd_gettime64", [N, 410, N, N, 410]), ("timerfd_settime", [286, 325, 286, 86, 353]),
    ("timerfd_settime64", [N, 411, N, N, 411]), ("times", [100, 43, 100, 153, 43]),
    ("tkill", [200, 238, 200, 130, 238]), ("truncate", [76, 92, 76, 45, 92]), ("truncate64", [N, 193, N, N, 193]),
    ("tuxcall", [184, N, 184, N, N]), ("ugetrlimit", [N, 191, N, N, 191]), ("ulimit", [N, 58, N, N, N]),
    ("umask", [95, 60, 95, 166, 60]), ("umount", [N, 22, N, N, N]), ("umount2", [166, 52, 166, 39, 52]),
    ("uname", [63, 122, 63, 160, 122]), ("unlink", [87, 10, 87, N, 10]), ("unlinkat", [263, 301, 263, 35, 328]),
    ("unshare", [272, 310, 272, 97, 337]), ("uprobe", [336, N, 336, N, N]), ("uretprobe", [335, N, 335, N, N]),
    ("uselib", [134, 86, N, N, 86]), ("userfaultfd", [323, 374, 323, 282, 388]), ("usr26", [N, N, N, N, 0xf0003]),
    ("usr32", [N, N, N, N, 0xf0004]), ("ustat", [136, 62, 136, N, 62]), ("utime", [132, 30, 132, N, N]),
    ("utimensat", [280, 320, 280, 88, 348]), ("utimensat_time64", [N, 412, N, N, 412]),
    ("utimes", [235, 271, 235, N, 269]), ("vfork", [58, 190, 58, N, 190]), ("vhangup", [153, 111, 153, 58, 111]),
    ("vm86", [N, 166, N, N, N]), ("vm86old", [N, 113, N, N, N]), ("vmsplice", [278, 316, 532, 75, 343]),
    ("vserver", [236, 273, N, N, 313]), ("wait4", [61, 114, 61, 260, 114]), ("waitid", [247, 284, 529, 95, 280]),
    ("waitpid", [N, 7, N, N, N]), ("write", [1, 4, 1, 64, 4]), ("writev", [20, 146, 516, 66, 146]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_are_sorted_and_name_nothing_twice() {
        assert!(TABLE.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(MULTIPLEXED.is_sorted_by(|(a, ..), (b, ..)| a < b));
    }

    #[test]
    fn no_number_is_given_to_two_names() {
        for column in 0..5 {
            let mut numbers: Vec<i32> = TABLE.iter().map(|(_, row)| row[column]).filter(|n| *n != N).collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            // arm has two names for 341.
            assert_eq!(count - numbers.len(), usize::from(column == 4), "column {column}");
        }
    }

    /// What the C library's headers say is another witness of the native column.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn agrees_with_libc() {
        let witnesses = [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("pread64", libc::SYS_pread64),
            ("fchmodat2", libc::SYS_fchmodat2),
            ("mseal", libc::SYS_mseal),
            ("umount2", libc::SYS_umount2),
            ("newfstatat", libc::SYS_newfstatat),
        ];
        for (name, expected) in witnesses {
            assert_eq!(lookup(name).and_then(|row| number(row, Abi::X86_64)).map(i64::from), Some(expected), "{name}");
        }
    }

    #[test]
    fn x32_numbers_carry_their_bit_and_names_may_be_missing() {
        assert_eq!(lookup("execve").and_then(|row| number(row, Abi::X32)), Some(0x4000_0208));
        assert_eq!(lookup("socketcall").and_then(|row| number(row, Abi::X86_64)), None);
        assert_eq!(lookup("no_such_call"), None);
        assert_eq!(lookup("breakpoint").and_then(|row| number(row, Abi::Arm)), Some(0x0f_0001));
    }
}
