//! Giving up rights: what the process of an isolated tool, or of the compiler, can still ask of the system.
//!
//! It computes, and reads and writes the pipes and files that it has open. It cannot open a file or a connection, start a program, a thread
//! or another process, signal one, or change its limits; whatever else it asks is refused with EPERM.

use std::io;

/// Gives up the rights of this process for good. `memory` is its address space in bytes.
///
/// # Errors
/// What the operating system refuses; then the process must not go on.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn give_up(memory: u64) -> io::Result<()> {
    // Files that can be written are memory files only: the images of linear memories.
    crate::confine::limit(memory, 1 << 32)?;
    filter_calls()
}

/// Puts all threads of this process under the filter of system calls, for good.
///
/// # Errors
/// What the operating system refuses; then the process must not go on.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn filter_calls() -> io::Result<()> {
    use std::collections::BTreeMap;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter_all_threads,
    };

    let wrong = |e: &dyn std::fmt::Display| io::Error::other(format!("the system-call filter: {e}"));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Of what can be done with an open file, sealing alone: wasmtime seals the images of linear memories.
    let seals = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(libc::F_ADD_SEALS.unsigned_abs()));
    let seals = seals.and_then(|condition| SeccompRule::new(vec![condition])).map_err(|e| wrong(&e))?;
    rules.insert(libc::SYS_fcntl, vec![seals]);
    let target = std::env::consts::ARCH.try_into().map_err(|e| wrong(&e))?;
    let errno = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, errno, SeccompAction::Allow, target).map_err(|e| wrong(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e| wrong(&e))?;
    // Sets "no new privileges" too. Of all threads, so that the one which keeps deadlines has no more rights than the rest.
    apply_filter_all_threads(&program).map_err(|e| wrong(&e))
}

/// Elsewhere there is no such filter here, and isolation is not promised.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(super) fn give_up(_memory: u64) -> io::Result<()> {
    Err(io::Error::other("isolated tools need Linux on x86-64 or ARM64"))
}

/// Where there is no filter, the compiler's process has its limits alone.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(crate) fn filter_calls() -> io::Result<()> {
    Ok(())
}

/// Memory, time, the two pipes, threads' waiting, signals of this process to itself, and ending.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
];

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    /// What the re-executed test tries after it has given up its rights; each line must say that it was refused.
    fn attempts() -> Vec<(&'static str, bool)> {
        let refused = |e: std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
        vec![
            ("read a file", std::fs::read("/etc/passwd").is_err_and(refused)),
            ("write a file", std::fs::write("/tmp/trainer-rights", "x").is_err_and(refused)),
            ("list a folder", std::fs::read_dir("/").is_err_and(refused)),
            ("connect", std::net::TcpStream::connect("127.0.0.1:9").is_err_and(refused)),
            ("listen", std::net::UdpSocket::bind("127.0.0.1:0").is_err_and(refused)),
            ("run a program", Command::new("/bin/true").status().is_err()),
            ("start a thread", std::thread::Builder::new().spawn(|| ()).is_err()),
        ]
    }

    #[test]
    fn rights_are_given_up() {
        const INSIDE: &str = "TRAINER_TEST_WITHOUT_RIGHTS";
        if std::env::var_os(INSIDE).is_some() {
            super::give_up(64 << 30).unwrap();
            for (what, refused) in attempts() {
                println!("attempt to {what}: {}", if refused { "refused" } else { "ALLOWED" });
            }
            // What it still needs: memory and the clock.
            let _ = vec![1u8; 64 << 20];
            let _ = std::time::Instant::now();
            println!("alive");
            return;
        }
        let name = "process::rights::tests::rights_are_given_up";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("alive") && !said.contains("ALLOWED"), "{said} {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.matches(": refused").count(), 7, "{said}");
    }
}
