//! `pinfold run -it` through a real pseudo terminal.

#![cfg(test)]

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Instant;

#[path = "world/world.rs"]
mod world;

#[path = "world/terminal.rs"]
mod terminal;

use terminal::{Terminal, resize};
use world::{PATIENCE, Person, World};

fn shell(world: &World) -> Terminal {
    let mut terminal = Terminal::open(
        world,
        &["run", "-it", "--", "bash", "--norc", "--noprofile"],
    );
    terminal.type_in("PS1='rea''dy> '\n");
    terminal.expect("ready> ");
    terminal
}

#[test]
fn a_shell_has_a_terminal_that_resizes() {
    let world = World::new(Person::Root);
    let mut terminal = shell(&world);
    terminal.type_in("tty && stty size\n");
    terminal.expect("/dev/pts/");
    terminal.expect("24 80");
    terminal.expect("ready> ");
    resize(&terminal.master, 100, 40);
    // The new size travels by itself; the shell is asked until it is there.
    terminal.type_in("until [ \"$(stty size)\" = '40 100' ]; do :; done; echo si''zed\n");
    terminal.expect("sized");
    terminal.expect("ready> ");
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.end(), 5);
}

#[test]
fn control_keys_reach_the_program() {
    let world = World::new(Person::Root);
    let mut terminal = shell(&world);
    // A key counts only once the program is in the foreground, so it says when it is.
    let program = "sh -c 'echo run''ning; exec sleep 1000'\n";
    terminal.type_in(program);
    terminal.expect("running");
    terminal.type_in("\x03");
    terminal.expect("ready> ");
    terminal.type_in("echo code=$?\n");
    terminal.expect("code=130");
    terminal.expect("ready> ");
    terminal.type_in(program);
    terminal.expect("running");
    terminal.type_in("\x1a");
    terminal.expect("Stopped");
    terminal.type_in("kill %1; wait; echo fin''ished\n");
    terminal.expect("finished");
    terminal.type_in("cat\n");
    terminal.expect("cat");
    terminal.type_in("echoed\n");
    terminal.expect("echoed\r\nechoed");
    terminal.type_in("\x04");
    terminal.expect("ready> ");
    terminal.type_in("\x04");
    terminal.expect("exit");
    // The last command of the shell was `cat`, which ended well.
    assert_eq!(terminal.end(), 0);
}

#[test]
fn full_screen_programs_are_usable() {
    let world = World::new(Person::Root);
    let mut terminal = shell(&world);
    terminal.type_in("cd /tmp && seq 1000 > lines && less lines\n");
    terminal.expect("\r\n22\r\n");
    terminal.type_in("/^777$\n");
    terminal.expect("777");
    terminal.type_in("q");
    terminal.expect("ready> ");
    terminal.type_in("vi -u NONE note\n");
    terminal.expect("note");
    terminal.type_in("iwritten in vi\x1b:wq\n");
    terminal.expect("ready> ");
    terminal.type_in("cat note; echo e''nd\n");
    terminal.expect("written in vi\r\nend");
    terminal.type_in("exit\n");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn a_terminal_is_as_it_was_afterwards() {
    let world = World::new(Person::Root);
    let mut terminal = shell(&world);
    terminal.type_in("exit\n");
    let attributes = |terminal: &Terminal| {
        let now = rustix::termios::tcgetattr(&terminal.master).unwrap();
        (now.local_modes, now.input_modes, now.output_modes)
    };
    let deadline = Instant::now() + PATIENCE;
    while terminal.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline);
        terminal.read_some();
    }
    let (local, _, output) = attributes(&terminal);
    assert!(
        local.contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO)
    );
    assert!(output.contains(rustix::termios::OutputModes::OPOST));
}

/// Standard input that is a pipe reaches the program and its end does too.
#[test]
fn input_from_a_pipe() {
    let world = World::new(Person::Root);
    let said = world.run_with_input(["run", "-i", "--", "wc", "-c"], &vec![b'x'; 3_000_000]);
    assert_eq!(said.ok().trim(), "3000000");
    let mut child = world
        .pinfold(["run", "-i", "--", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    input.write_all(b"ping\n").unwrap();
    let mut answer = [0; 5];
    output.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping\n");
    drop(input);
    assert!(child.wait().unwrap().success());
}
