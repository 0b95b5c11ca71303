//! What a compiled filter answers for a call of this machine's own convention, as far as the number alone decides it.

use super::Program;
use super::emit::{AND, ARCHITECTURE, JUMP, JUMP_ANY_BIT, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL};
use super::emit::{LOAD, NUMBER, RETURN};
use super::vocabulary::Abi;
use crate::sys::seccomp::Instruction;

impl Program {
    /// Whether all of these calls, by number, are carried out whatever their arguments are.
    pub fn lets_through(&self, numbers: &[i64]) -> bool {
        let passes = |number: &i64| {
            let number = u32::try_from(*number).ok()?;
            let answer = answer(&self.instructions, Abi::NATIVE?.audit(), number)?;
            Some([libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG].contains(&answer))
        };
        numbers.iter().all(|number| passes(number).unwrap_or(false))
    }
}

/// Runs the program on a number. `None`: it asks for an argument, or is none that this module understands.
fn answer(program: &[Instruction], audit: u32, number: u32) -> Option<u32> {
    let (mut at, mut loaded) = (0_usize, 0_u32);
    // Jumps go forward only, so that this ends.
    loop {
        let Instruction { code, jt, jf, k } = *program.get(at)?;
        at += 1;
        let skipped = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            LOAD if k == NUMBER => loaded = number,
            LOAD if k == ARCHITECTURE => loaded = audit,
            AND => loaded &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += skipped(loaded == k),
            JUMP_GREATER => at += skipped(loaded > k),
            JUMP_GREATER_OR_EQUAL => at += skipped(loaded >= k),
            JUMP_ANY_BIT => at += skipped(loaded & k != 0),
            RETURN => return Some(k),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compile;
    use crate::spec::seccomp::Seccomp;

    fn lets_through(json: &str, numbers: &[i64]) -> bool {
        let profile: Seccomp = serde_json::from_str(json).unwrap();
        compile(&profile).unwrap().unwrap().lets_through(numbers)
    }

    #[test]
    fn what_the_number_decides() {
        let docker = include_str!("../../../rootfs-fixtures/seccomp/docker-default.json");
        assert!(lets_through(docker, &[libc::SYS_read, libc::SYS_execveat, libc::SYS_fcntl]));
        assert!(!lets_through(docker, &[libc::SYS_read, libc::SYS_mount]));
        let log = r#"{"defaultAction": "SCMP_ACT_LOG"}"#;
        assert!(lets_through(log, &[libc::SYS_read]));
    }

    #[test]
    fn what_hangs_on_an_argument_is_not_sure_to_pass() {
        let some = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["fcntl"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]}]}"#;
        assert!(!lets_through(some, &[libc::SYS_fcntl]));
        assert!(lets_through(some, &[libc::SYS_write]));
    }
}
