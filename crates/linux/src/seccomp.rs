//! The system call filter, as a range tree that the kernel walks quickly.
//!
//! What a sandbox does not need and what past escapes used is refused; everything else is allowed.
//! A call that this list does not know yet answers `ENOSYS`, so that a newer kernel brings nothing
//! in unseen and programs fall back. The numbers are searched as a binary tree of ranges: the
//! kernel runs a new filter once for every number there is, and a linear list of this length costs
//! 400 µs there where a tree costs 60.

#![expect(unsafe_code, reason = "prctl and seccomp have no safe form")]

use std::io;

use libc::{c_long, sock_filter, sock_fprog};

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes on.
    Allow,
    /// It answers this error number.
    Errno(i32),
    /// The process is killed: only for calls of another machine's numbering.
    Kill,
}

impl Action {
    fn code(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | (errno.unsigned_abs() & 0xffff),
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// What may differ between sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// The sandbox may make namespaces and mounts of its own, one level deeper.
    pub nested_namespaces: bool,
}

const REFUSED: Action = Action::Errno(libc::EPERM);
const UNKNOWN: Action = Action::Errno(libc::ENOSYS);

/// The last call that this list was checked against, `mseal` of Linux 6.10.
const LAST_KNOWN: u32 = 462;

/// Calls that nothing in a sandbox needs, in groups by what they reach.
const ALWAYS_REFUSED: &[c_long] = &[
    // Programs and hooks in the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_userfaultfd,
    // Keys are not namespaced in full.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Files by handle leave the root directory.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Other processes' descriptors.
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The machine as a whole.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // Memory of other nodes and processes.
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_process_madvise,
];

/// Calls of the machine's past.
#[cfg(target_arch = "x86_64")]
const ALWAYS_REFUSED_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS__sysctl,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS_getpmsg,
    libc::SYS_putpmsg,
    libc::SYS_tuxcall,
    libc::SYS_security,
    libc::SYS_afs_syscall,
    libc::SYS_vserver,
];
#[cfg(not(target_arch = "x86_64"))]
const ALWAYS_REFUSED_HERE: &[c_long] = &[];

/// Calls that answer as a kernel without them would, so that programs fall back quietly.
const ABSENT: &[c_long] = &[
    // Its flags are behind a pointer, which a filter cannot look at; the C library uses `clone`.
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Calls for namespaces and mounts.
const NESTING: &[c_long] = &[
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
];

/// `CLONE_NEW*` as `clone` takes them; `CLONE_NEWTIME` is `unshare`'s alone.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
const CLONE_NEWTIME: u32 = 0x80;

/// Socket families that programs without a network of their own can use.
const FAMILIES: &[u32] = &[1, 2, 10, 16];
/// `AF_UNIX`, the one family of which pairs exist that matter.
const PAIR_FAMILIES: &[u32] = &[1];

/// Requests that type into somebody's terminal.
const TERMINAL_REQUESTS: &[u32] = &[0x5412, 0x541c];

/// `PER_LINUX`, `PER_LINUX32`, both with old time-outs, and the question for the present one.
const PERSONALITIES: &[u32] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// What is done with one call number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Always(Action),
    /// Refused when any of these bits of the first argument is set.
    UnlessBits(u32),
    /// Allowed when the argument of that index is one of these, else the action.
    Only(usize, &'static [u32], Action),
    /// Refused when the argument of that index is one of these.
    Except(usize, &'static [u32]),
    /// Refused when a process other than the caller, the first argument, would be changed by what
    /// the third points to.
    OwnOrRead,
}

/// Installs the default filter for the calling thread and all that it starts.
pub(crate) fn install() -> io::Result<()> {
    Filter::new(Policy::default()).install()
}

/// A filter, ready to be installed. Making one allocates; installing one does not.
#[derive(Debug, Clone)]
pub struct Filter {
    instructions: Vec<sock_filter>,
}

impl Filter {
    /// Compiles the filter of a policy.
    pub fn new(policy: Policy) -> Self {
        let mut instructions = vec![
            load(OFFSET_ARCHITECTURE),
            jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
            answer(Action::Kill),
            load(OFFSET_NUMBER),
        ];
        let ranges = ranges(policy);
        instructions.extend(tree(&ranges));
        Self { instructions }
    }

    /// Returns how many instructions the kernel is given.
    pub fn instruction_count(&self) -> usize {
        self.instructions.len()
    }

    /// Installs the filter on the calling thread, for ever. Safe between `fork` and `exec`.
    ///
    /// The caller holds `CAP_SYS_ADMIN` in its user namespace or has `no_new_privs` set.
    ///
    /// # Errors
    ///
    /// Fails if the kernel has no filters or the caller may not.
    pub fn install(&self) -> io::Result<()> {
        let program = sock_fprog {
            len: u16::try_from(self.instructions.len())
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            filter: self.instructions.as_ptr().cast_mut(),
        };
        // SAFETY: the program and its instructions outlive the call; the kernel copies them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Says what is done with a call number.
fn verdict(number: u32, policy: Policy) -> Verdict {
    let is = |calls: &[c_long]| calls.contains(&c_long::from(number));
    if number > LAST_KNOWN || is(ABSENT) {
        return Verdict::Always(UNKNOWN);
    }
    if is(ALWAYS_REFUSED) || is(ALWAYS_REFUSED_HERE) {
        return Verdict::Always(REFUSED);
    }
    if is(NESTING) && !policy.nested_namespaces {
        return Verdict::Always(REFUSED);
    }
    if !policy.nested_namespaces {
        if is(&[libc::SYS_clone]) {
            return Verdict::UnlessBits(CLONE_NAMESPACES);
        }
        if is(&[libc::SYS_unshare]) {
            return Verdict::UnlessBits(CLONE_NAMESPACES | CLONE_NEWTIME);
        }
    }
    if is(&[libc::SYS_socket]) {
        return Verdict::Only(0, FAMILIES, Action::Errno(libc::EAFNOSUPPORT));
    }
    if is(&[libc::SYS_socketpair]) {
        return Verdict::Only(0, PAIR_FAMILIES, Action::Errno(libc::EAFNOSUPPORT));
    }
    if is(&[libc::SYS_ioctl]) {
        return Verdict::Except(1, TERMINAL_REQUESTS);
    }
    // Whoever has the agent's user id could else take its descriptors and its time.
    if is(&[libc::SYS_prlimit64]) {
        return Verdict::OwnOrRead;
    }
    if is(&[libc::SYS_personality]) {
        return Verdict::Only(0, PERSONALITIES, REFUSED);
    }
    Verdict::Always(Action::Allow)
}

/// Numbers from `first` on have a verdict, up to the next range.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: u32,
    verdict: Verdict,
}

/// Joins neighbours with one verdict. The last range reaches to the largest number, which covers
/// the numbers of the x32 convention too.
fn ranges(policy: Policy) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for number in 0..=LAST_KNOWN + 1 {
        let verdict = verdict(number, policy);
        if ranges.last().is_none_or(|last| last.verdict != verdict) {
            ranges.push(Range {
                first: number,
                verdict,
            });
        }
    }
    ranges
}

/// Writes the search for the range that holds the number in the accumulator.
fn tree(ranges: &[Range]) -> Vec<sock_filter> {
    let Some((first, rest)) = ranges.split_first() else {
        return vec![answer(UNKNOWN)];
    };
    if rest.is_empty() {
        return leaf(first.verdict);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let pivot = high.first().map_or(0, |range| range.first);
    let below = tree(low);
    let above = tree(high);
    let mut instructions = Vec::with_capacity(below.len() + above.len() + 2);
    if let Ok(distance) = u8::try_from(below.len()) {
        instructions.push(jump(libc::BPF_JGE, pivot, distance, 0));
    } else {
        // A conditional jump reaches 255 instructions; a plain one reaches all.
        instructions.push(jump(libc::BPF_JGE, pivot, 0, 1));
        let distance = u32::try_from(below.len()).unwrap_or(u32::MAX);
        instructions.push(instruction(libc::BPF_JMP | libc::BPF_JA, distance, 0, 0));
    }
    instructions.extend(below);
    instructions.extend(above);
    instructions
}

fn leaf(verdict: Verdict) -> Vec<sock_filter> {
    match verdict {
        Verdict::Always(action) => vec![answer(action)],
        Verdict::UnlessBits(bits) => vec![
            load(offset_argument(0)),
            jump(libc::BPF_JSET, bits, 0, 1),
            answer(REFUSED),
            answer(Action::Allow),
        ],
        Verdict::Only(index, values, otherwise) => one_of(index, values, Action::Allow, otherwise),
        Verdict::Except(index, values) => one_of(index, values, REFUSED, Action::Allow),
        Verdict::OwnOrRead => vec![
            load(offset_argument(0)),
            jump(libc::BPF_JEQ, 0, 4, 0),
            load(offset_argument(2)),
            jump(libc::BPF_JEQ, 0, 0, 3),
            load(offset_argument(2) + 4),
            jump(libc::BPF_JEQ, 0, 0, 1),
            answer(Action::Allow),
            answer(REFUSED),
        ],
    }
}

/// Answers `then` when the low half of an argument is one of a few values, else `otherwise`.
fn one_of(index: usize, values: &[u32], then: Action, otherwise: Action) -> Vec<sock_filter> {
    let mut instructions = vec![load(offset_argument(index))];
    for (place, value) in values.iter().enumerate() {
        // Over the comparisons that are left, and over the answer to none.
        let distance = u8::try_from(values.len() - place).unwrap_or(u8::MAX);
        instructions.push(jump(libc::BPF_JEQ, *value, distance, 0));
    }
    instructions.push(answer(otherwise));
    instructions.push(answer(then));
    instructions
}

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;

/// Offset of the low 32 bits of an argument on a machine with little-endian words.
fn offset_argument(index: usize) -> u32 {
    16 + 8 * u32::try_from(index).unwrap_or(0)
}

/// `AUDIT_ARCH_*` of the machine that this is built for.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn jump(kind: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | kind | libc::BPF_K, value, then, otherwise)
}

fn answer(action: Action) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action.code(), 0, 0)
}

fn instruction(code: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter {
        // Every code is below 256.
        code: u16::try_from(code).unwrap_or(0),
        jt: then,
        jf: otherwise,
        k: value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would.
    fn run(filter: &Filter, number: u32, arguments: [u64; 6], architecture: u32) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend([0u8; 8]);
        for argument in arguments {
            data.extend(argument.to_le_bytes());
        }
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let step = &filter.instructions[at];
            at += 1;
            let code = u32::from(step.code);
            match code & 0x07 {
                libc::BPF_LD => {
                    let offset = step.k as usize;
                    let word = data[offset..offset + 4].try_into().unwrap();
                    accumulator = u32::from_le_bytes(word);
                }
                libc::BPF_RET => return step.k,
                libc::BPF_JMP => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JA => {
                            at += step.k as usize;
                            continue;
                        }
                        libc::BPF_JEQ => accumulator == step.k,
                        libc::BPF_JGE => accumulator >= step.k,
                        libc::BPF_JSET => accumulator & step.k != 0,
                        other => panic!("jump {other}"),
                    };
                    at += usize::from(if holds { step.jt } else { step.jf });
                }
                other => panic!("class {other}"),
            }
        }
    }

    fn decide(policy: Policy, number: c_long, arguments: [u64; 6]) -> u32 {
        let number = u32::try_from(number).unwrap();
        run(&Filter::new(policy), number, arguments, ARCHITECTURE)
    }

    #[test]
    fn limits_of_others_are_read_and_not_set() {
        for (process, new, expected) in [
            (0, 0, Action::Allow),
            (0, 0x7fff_0000_1000, Action::Allow),
            (1, 0, Action::Allow),
            (1, 0x7fff_0000_1000, REFUSED),
            (1, 0x7fff_0000_0000, REFUSED),
            (1, 0x1000, REFUSED),
        ] {
            let arguments = [process, 7, new, 0, 0, 0];
            let seen = decide(Policy::default(), libc::SYS_prlimit64, arguments);
            assert_eq!(seen, expected.code(), "{process} {new:#x}");
        }
    }

    #[test]
    fn every_number_gets_its_verdict() {
        for nested_namespaces in [false, true] {
            let policy = Policy { nested_namespaces };
            let filter = Filter::new(policy);
            for number in (0..1000).chain([0x3fff_ffff, 0x4000_0000, 0x4000_003b, u32::MAX]) {
                let expected = match verdict(number, policy) {
                    Verdict::Always(action) => action,
                    Verdict::UnlessBits(_) | Verdict::Except(..) => Action::Allow,
                    Verdict::Only(_, _, otherwise) => otherwise,
                    Verdict::OwnOrRead => REFUSED,
                };
                // 7 is no family and no personality, and has no namespace bit.
                let seen = run(&filter, number, [7; 6], ARCHITECTURE);
                assert_eq!(seen, expected.code(), "{number}");
            }
        }
    }

    #[test]
    fn another_machines_numbering_is_killed() {
        let filter = Filter::new(Policy::default());
        let i386 = 0x4000_0003;
        assert_eq!(run(&filter, 1, [0; 6], i386), Action::Kill.code());
    }

    #[test]
    fn namespaces_are_refused_by_their_bits() {
        let policy = Policy::default();
        let flags = |flags: u64| [flags, 0, 0, 0, 0, 0];
        for bit in [
            0x2_0000u64,
            0x0200_0000,
            0x0400_0000,
            0x0800_0000,
            0x1000_0000,
            0x2000_0000,
            0x4000_0000,
        ] {
            for call in [libc::SYS_clone, libc::SYS_unshare] {
                assert_eq!(decide(policy, call, flags(bit | 0x11)), REFUSED.code());
            }
        }
        assert_eq!(
            decide(policy, libc::SYS_unshare, flags(0x80)),
            REFUSED.code()
        );
        // A thread, and a child whose exit signal shares a bit with CLONE_NEWTIME.
        for plain in [0x003d_0f00u64, 0x11, 0x91] {
            assert_eq!(
                decide(policy, libc::SYS_clone, flags(plain)),
                Action::Allow.code()
            );
        }
        let nested = Policy {
            nested_namespaces: true,
        };
        assert_eq!(
            decide(nested, libc::SYS_unshare, flags(0x1000_0000)),
            Action::Allow.code()
        );
        assert_eq!(
            decide(nested, libc::SYS_mount, [0; 6]),
            Action::Allow.code()
        );
        assert_eq!(decide(policy, libc::SYS_mount, [0; 6]), REFUSED.code());
    }

    #[test]
    fn arguments_are_compared_as_the_kernel_reads_them() {
        let policy = Policy::default();
        let family = |family: u64| decide(policy, libc::SYS_socket, [family, 1, 0, 0, 0, 0]);
        for allowed in [1, 2, 10, 16] {
            assert_eq!(family(allowed), Action::Allow.code());
        }
        for refused in [17, 38, 40, 44] {
            assert_eq!(family(refused), Action::Errno(libc::EAFNOSUPPORT).code());
        }
        let request = |request: u64| decide(policy, libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
        assert_eq!(request(0x5412), REFUSED.code());
        assert_eq!(request(0x541c), REFUSED.code());
        assert_eq!(request(0x5413), Action::Allow.code());
        // The kernel looks at 32 bits of a request, so bits above them must not hide it.
        assert_eq!(request(0x1_0000_5412), REFUSED.code());
    }

    #[test]
    fn the_tree_is_small() {
        let count = Filter::new(Policy::default()).instruction_count();
        assert!(count < 200, "{count}");
    }

    /// A real process under the filter. Installing needs `no_new_privs`, so a thread does it.
    #[test]
    fn a_thread_under_the_filter_is_refused_and_goes_on() {
        std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            Filter::new(Policy::default()).install().unwrap();
            // SAFETY: the call takes no pointer that matters before it is refused.
            let result = unsafe { libc::syscall(libc::SYS_bpf, 0, 0, 0) };
            assert_eq!(result, -1);
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
            // SAFETY: as above.
            let result = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
            assert_eq!(result, -1);
            assert_eq!(
                io::Error::last_os_error().raw_os_error(),
                Some(libc::ENOSYS)
            );
            assert!(std::fs::read("/proc/self/status").is_ok());
        })
        .join()
        .unwrap();
    }
}
