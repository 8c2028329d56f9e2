//! What the launcher reads from its socket: a length, descriptors beside it, then JSON.

use pinfold_linux::fuzzing::launcher_request;
use pinfold_linux::launcher::plan::{Boot, PLAN_BYTES_MAX, Plan};

use crate::input::Input;

/// A request that is read is written and read again without change; plans and boot records too.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let descriptors = usize::from(choice >> 1 & 31);
    let rest = input.rest();
    if let Ok(plan) = serde_json::from_slice::<Plan>(rest) {
        let again = serde_json::to_vec(&plan).expect("a plan can be written");
        assert_eq!(serde_json::from_slice(&again).ok().as_ref(), Some(&plan));
    }
    if let Ok(boot) = serde_json::from_slice::<Boot>(rest) {
        let again = serde_json::to_vec(&boot).expect("a boot record can be written");
        assert_eq!(serde_json::from_slice(&again).ok().as_ref(), Some(&boot));
    }
    let framed;
    let bytes = if choice & 1 == 0 {
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        framed = [&length.to_ne_bytes()[..], rest].concat();
        framed.as_slice()
    } else {
        rest
    };
    if let Ok(Some((first, second))) = launcher_request(bytes, descriptors) {
        assert!(bytes.len() <= PLAN_BYTES_MAX + 4, "longer than a message");
        assert_eq!(first, second);
    }
}
