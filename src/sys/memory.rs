//! Memory that a process lets the kernel merge, prctl(2) with PR_SET_MEMORY_MERGE, and that it gives back, madvise(2).

use nix::errno::Errno;

use super::answer;

/// linux/prctl.h, Linux 6.4.
const PR_SET_MEMORY_MERGE: libc::c_int = 67;

/// Lets the kernel merge every anonymous page of this process, of its children, and of what they execute, with pages of the
/// same content.
///
/// # Errors
/// EINVAL: the kernel is older than Linux 6.4, or was built without KSM.
pub fn set_memory_merge() -> Result<(), Errno> {
    // SAFETY: this prctl takes plain numbers.
    answer(unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 1usize, 0usize, 0usize, 0usize) }.into()).map(drop)
}

unsafe extern "C" {
    /// Where the program begins in memory, and where its code ends: names of the linker's. ld(1)
    #[link_name = "__executable_start"]
    static PROGRAM: u8;
    #[link_name = "etext"]
    static CODE_END: u8;
}

/// Gives back the memory of the program's own code and constants. What is used of them after that is read from its file again,
/// from the page cache for the most part.
///
/// # Errors
/// None in practice: a kernel that refuses this leaves the memory as it is.
pub fn give_back_code() -> Result<(), Errno> {
    let (start, end, page) = (&raw const PROGRAM as usize, &raw const CODE_END as usize, rustix::param::page_size());
    // The page of the end may hold more than code; where it begins, the linker has aligned it.
    let whole = (end - start) & !(page - 1);
    // SAFETY: from its beginning to the end of its code there is nothing but what is mapped of the program from its file, and nobody
    // writes to those mappings: after this their pages read the same.
    match answer(unsafe { libc::madvise(start as *mut libc::c_void, whole, libc::MADV_DONTNEED) }.into()) {
        // The linker has left a gap between two of them, and all of them are done. madvise(2)
        Err(Errno::ENOMEM) => Ok(()),
        answer => answer.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_given_back_is_there_when_it_is_needed() {
        let faults = || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
        let before = faults();
        for _ in 0..3 {
            give_back_code().unwrap();
            assert_eq!("1 2".split(' ').map(str::parse::<i32>).collect::<Result<Vec<_>, _>>(), Ok(vec![1, 2]));
        }
        assert!(faults().minor_page_faults() >= before.minor_page_faults() + 3, "nothing was given back");
    }
}
