//! Child processes for work on strangers' input that has no limits of its own: how one confines itself, and how its parent waits.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Waits for the child, and kills it when its time is up: then None.
///
/// # Errors
/// What the operating system refuses.
pub fn wait(mut child: Child, time: Duration) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    // std has no wait with a timeout. Compiling takes 100 ms at least, so that a few milliseconds' delay is nothing.
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= time {
            // It may have ended in this instant; then killing fails, and waiting gives its status.
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(8));
    }
}

/// Limits on this process, address space and files in bytes.
///
/// # Errors
/// What the operating system refuses.
pub fn limit(memory: u64, file: u64) -> std::io::Result<()> {
    set(libc::RLIMIT_CORE, 0)?;
    set(libc::RLIMIT_FSIZE, file)?;
    set(libc::RLIMIT_AS, memory)
}

#[expect(unsafe_code, reason = "libc")]
fn set(resource: libc::__rlimit_resource_t, limit: u64) -> std::io::Result<()> {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: `limit` is a valid rlimit that lives through the call, and setrlimit only reads it.
    match unsafe { libc::setrlimit(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Limits on this process, address space and files in bytes, processor time in seconds; and an end to it when its parent dies.
///
/// # Errors
/// What the operating system refuses.
#[cfg_attr(target_os = "linux", expect(unsafe_code, reason = "libc"))]
pub fn restrict(memory: u64, seconds: u64, file: u64) -> std::io::Result<()> {
    limit(memory, file)?;
    set(libc::RLIMIT_CPU, seconds)?;
    #[cfg(target_os = "linux")]
    {
        // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory of this process.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
