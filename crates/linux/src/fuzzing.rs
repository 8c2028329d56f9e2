//! What the fuzz targets reach of the launcher's wire. No product has it.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

use crate::launcher::wire::{self, DESCRIPTORS_MAX, Request};

/// Reads bytes as the launcher reads what the daemon sent, with some descriptors beside them.
///
/// Returns how the request is written again, and how that is written again once it was read in its
/// turn; the two must be equal. Returns nothing where the other side has closed.
///
/// # Errors
///
/// Fails on what no daemon sends.
pub fn launcher_request(
    bytes: &[u8],
    descriptors: usize,
) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let sent = descriptors.min(DESCRIPTORS_MAX);
    let Some((request, taken)) = receive(bytes, sent)? else {
        return Ok(None);
    };
    if taken.len() != sent {
        return Err(io::Error::other("descriptors were lost"));
    }
    if let Request::Launch(plan) = &request {
        for mapped in [true, false] {
            // What it decides is the plan's affair; it must decide.
            drop(crate::launcher::check_plan(plan, &taken, mapped));
        }
    }
    let first = serde_json::to_vec(&request)?;
    let length = u32::try_from(first.len()).unwrap_or(u32::MAX);
    let again = [&length.to_ne_bytes()[..], &first].concat();
    let Some((request, _)) = receive(&again, 0)? else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    Ok(Some((first, serde_json::to_vec(&request)?)))
}

fn receive(bytes: &[u8], descriptors: usize) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    let (near, far) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let null: OwnedFd = File::open("/dev/null")?.into();
    std::thread::scope(|scope| {
        // A message may be larger than what a socket holds.
        scope.spawn(|| {
            let sent = send(&near, bytes, &null, descriptors);
            // The reader then finds the end.
            drop(near);
            sent
        });
        let received = wire::receive(&far);
        // A sender of more than one message ends when nobody reads.
        drop(far);
        received
    })
}

fn send(near: &OwnedFd, bytes: &[u8], null: &OwnedFd, descriptors: usize) -> io::Result<()> {
    let rights = vec![null.as_fd(); descriptors];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&rights));
    }
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg(near, &parts, &mut control, SendFlags::NOSIGNAL)?;
    wire::Socket(near.as_fd()).write_all(bytes.get(sent..).unwrap_or_default())
}
