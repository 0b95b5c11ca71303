//! Variables of this process' own environment, for a program that goes on for others than its starter.

/// Removes variables. Only while this is the one thread of its process, which it is where containers are made.
pub fn remove(names: &[&str]) {
    for name in names {
        // SAFETY: no other thread of this process reads the environment meanwhile, for there is none.
        unsafe { std::env::remove_var(name) };
    }
}
