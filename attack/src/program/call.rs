//! System calls as numbers, and a few tries that many attacks share.

#![expect(
    unsafe_code,
    reason = "attacks are calls that no safe wrapper offers, and wrong on purpose"
)]

use std::ffi::{CString, c_long};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::Found;

/// Makes any system call. Addresses in the arguments must be of memory of the caller's that
/// outlives the call, and is as large as the call wants.
pub(super) fn call(number: c_long, arguments: [usize; 6]) -> io::Result<usize> {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: every address that this program passes is of a value that is alive and large enough;
    // with any other number the kernel answers an error and touches nothing.
    let result = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Makes a system call with fewer arguments.
pub(super) fn call_with(number: c_long, arguments: &[usize]) -> io::Result<usize> {
    let mut all = [0; 6];
    for (place, argument) in all.iter_mut().zip(arguments) {
        *place = *argument;
    }
    call(number, all)
}

/// Makes a text that the kernel can read.
pub(super) fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// Has this process ended by a signal some time from now.
pub(super) fn end_after(seconds: u32) {
    // SAFETY: a plain system call.
    unsafe { libc::alarm(seconds) };
}

/// Makes a process and runs a function there, with no thread beside it.
pub(super) fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: this program has one thread, so the child may do what this process may.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => {
            let code = child();
            // SAFETY: ends the child; nothing of the parent's is run.
            unsafe { libc::_exit(code) }
        }
        pid if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for a child and answers its status.
pub(super) fn wait(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the place for the status outlives the call.
    if unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
}

/// Waits until this process is ended.
pub(super) fn wait_for_ever() -> i32 {
    loop {
        // SAFETY: a plain system call.
        unsafe { libc::pause() };
    }
}

/// Makes a call of the 32-bit convention: `getpid`.
#[cfg(target_arch = "x86_64")]
pub(super) fn old_getpid() -> i64 {
    let result: i64;
    // SAFETY: the call takes no argument and touches no memory; it may end this process.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("rax") 20_i64 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// Other machines have no such convention.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn old_getpid() -> i64 {
    -1
}

/// Tries to read the beginning of a file.
pub(super) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let length = File::open(path)?.read(&mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Has worked when something can be read from a file.
pub(super) fn reads(path: &str) -> Found {
    match read(path) {
        Ok(bytes) if bytes.is_empty() => Found::Failed("empty".to_owned()),
        Ok(bytes) => Found::Worked(format!("read {} bytes", bytes.len())),
        Err(error) => Found::Failed(error.to_string()),
    }
}

/// Has worked when a file can be opened for writing; nothing is written.
pub(super) fn opens_for_writing(path: &str) -> Found {
    Found::of(
        OpenOptions::new().write(true).open(path),
        "opened for writing",
    )
}

/// Has worked when a file's own content can be written to it, which changes nothing.
pub(super) fn writes_again(path: &str) -> Found {
    let written = read(path).and_then(|content| {
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(&content))
    });
    Found::of(written, "written")
}

/// Has worked when a directory can be listed and is not empty.
pub(super) fn lists(path: &str) -> Found {
    match std::fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Found::Failed("empty".to_owned()),
            Some(_) => Found::Worked("listed".to_owned()),
        },
        Err(error) => Found::Failed(error.to_string()),
    }
}

/// Has worked when one of several tries has; else the last one speaks.
pub(super) fn any(tries: impl IntoIterator<Item = Found>) -> Found {
    let mut last = Found::NotExpressible("there is nothing to try".to_owned());
    for found in tries {
        if matches!(found, Found::Worked(_)) {
            return found;
        }
        last = found;
    }
    last
}

/// Has worked when a file that is listed as secret can be read and holds the secret.
pub(super) fn steals(path: &str) -> Found {
    match read(path) {
        Ok(bytes) if holds_secret(&bytes) => Found::Worked("read the secret".to_owned()),
        Ok(_) => Found::Failed("another file".to_owned()),
        Err(error) => Found::Failed(error.to_string()),
    }
}

/// Returns whether the secret is in some bytes.
pub(super) fn holds_secret(bytes: &[u8]) -> bool {
    let secret = pinfold_attack::SECRET.as_bytes();
    bytes.windows(secret.len()).any(|window| window == secret)
}
