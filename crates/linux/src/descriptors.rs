//! Descriptors that a program must not inherit.

#![expect(unsafe_code, reason = "close_range has no safe form")]

use std::io;

/// Marks every descriptor from `first` upwards as closed on exec.
///
/// A process that outlives its caller must not keep the caller's files, pipes and sockets open.
///
/// # Errors
///
/// Fails on kernels before 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(4);
    // SAFETY: the call takes no pointers, and with CLOEXEC it closes nothing: every descriptor of
    // this process stays valid.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_does_not_inherit_what_was_marked() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let kept = rustix::io::fcntl_dupfd_cloexec(&file, 200).unwrap();
        rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
        let has = || {
            let mut command = Command::new("test");
            command
                .args(["-e", "/proc/self/fd/200"])
                .status()
                .unwrap()
                .success()
        };
        assert!(has());
        close_on_exec_from(200).unwrap();
        assert!(!has());
    }
}
