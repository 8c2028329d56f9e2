//! Templates, pools and claims of the real product.

#![cfg(test)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{Value, json};

#[path = "world/world.rs"]
mod world;

#[path = "world/owned.rs"]
mod owned;

use world::{Person, World, eventually};

/// Sends one request as any program could, and reads its answer.
fn ask(world: &World, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let length = body.len();
    let mut socket = UnixStream::connect(world.socket()).unwrap();
    let request = format!(
        "{method} /v1{path} HTTP/1.1\r\nhost: pinfold\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn pool(world: &World, name: &str) -> Value {
    let pools = world.json(["pool", "list"]);
    let mut pools = pools.as_array().unwrap().iter();
    pools.find(|pool| pool["name"] == name).unwrap().clone()
}

fn full(world: &World, name: &str) {
    eventually("the pool to be full", || {
        let pool = pool(world, name);
        pool["metrics"]["depth"] == pool["target"] && pool["starting"] == 0
    });
}

fn with_pool(person: Person, size: &str) -> World {
    let world = World::new(person);
    world
        .run(["template", "create", "t", "--env", "FROM=template"])
        .ok();
    world
        .run(["pool", "create", "p", "--template", "t", "--size", size])
        .ok();
    full(&world, "p");
    world
}

fn comes_warm_and_works(person: Person) {
    let world = with_pool(person, "2");
    let hidden = world.json(["list", "--all"]);
    assert_eq!(hidden, json!([]));
    let made = world.json([
        "create",
        "--template",
        "t",
        "--name",
        "one",
        "--env",
        "ALSO=mine",
    ]);
    assert_eq!(made["origin"], "warm", "{made}");
    let said = world
        .run(["exec", "one", "--", "sh", "-c", "echo $FROM $ALSO"])
        .ok();
    assert_eq!(said, "template mine\n");
    // A host path comes to the running sandbox, as readable as it was asked for.
    let shown = world.files().join("shown");
    std::fs::create_dir(&shown).unwrap();
    std::fs::write(shown.join("file"), "from the host\n").unwrap();
    world.give(&shown);
    world.give(&shown.join("file"));
    full(&world, "p");
    let mount = format!("{}:/mnt/shown", shown.display());
    let made = world.json([
        "create",
        "--template",
        "t",
        "--name",
        "two",
        "--mount",
        &mount,
    ]);
    assert_eq!(made["origin"], "warm", "{made}");
    let said = world
        .run(["exec", "two", "--", "cat", "/mnt/shown/file"])
        .ok();
    assert_eq!(said, "from the host\n");
    world
        .run(["exec", "two", "--", "sh", "-c", "echo x > /mnt/shown/file"])
        .fails(2);
    // It is there again after a stop, as any mount.
    world.run(["stop", "two"]).ok();
    world.run(["start", "two"]).ok();
    let said = world
        .run(["exec", "two", "--", "cat", "/mnt/shown/file"])
        .ok();
    assert_eq!(said, "from the host\n");
    full(&world, "p");
    let said = world
        .run(["run", "--template", "t", "--", "sh", "-c", "echo $FROM"])
        .ok();
    assert_eq!(said, "template\n");
    let cold = world.json(["create", "--template", "t", "--name", "three", "--persist"]);
    let reason = "a running sandbox cannot be given a directory at /persist";
    assert_eq!(
        (&cold["origin"], &cold["cold_reason"]),
        (&json!("cold"), &json!(reason))
    );
    world.run(["pool", "rm", "p"]).ok();
    world.run(["rm", "--all"]).ok();
    owned::check(&world, &owned::States::new(), "after all are removed");
}

#[test]
fn a_warm_sandbox_comes_with_everything_as_root() {
    comes_warm_and_works(Person::Root);
}

#[test]
fn a_warm_sandbox_comes_with_everything_with_subordinate_ids() {
    comes_warm_and_works(Person::Plain);
}

#[test]
fn a_warm_sandbox_comes_with_everything_with_a_single_id() {
    comes_warm_and_works(Person::Single);
}

#[test]
fn limits_come_to_a_warm_sandbox() {
    let world = with_pool(Person::Root, "1");
    let made = world.json([
        "create",
        "--template",
        "t",
        "--name",
        "small",
        "--memory",
        "32m",
    ]);
    assert_eq!(made["origin"], "warm", "{made}");
    let limit = made["granted"]["limits"]["memory"].as_str().unwrap();
    assert!(limit.starts_with("32"), "{limit}");
    let eats = "head -c 200000000 /dev/zero | tail -c 190000000 > /dev/null";
    let eaten = world.run(["exec", "small", "--", "sh", "-c", eats]);
    assert_ne!(eaten.code, 0, "{eaten:?}");
    world.run(["exec", "small", "--", "true"]).ok();
}

#[test]
fn a_burst_beyond_the_pool_is_served_cold_and_none_fails() {
    let world = with_pool(Person::Root, "10");
    let before = Instant::now();
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let claims: Vec<_> = (0..100)
            .map(|_| scope.spawn(|| ask(&world, "POST", "/claims", &json!({ "template": "t" }))))
            .collect();
        claims
            .into_iter()
            .map(|claim| claim.join().unwrap())
            .collect()
    });
    println!("100 claims against a pool of 10: {:?}", before.elapsed());
    let mut ids = BTreeSet::new();
    let mut warm = 0;
    for (status, claim) in &answers {
        assert_eq!(*status, 201, "{claim}");
        assert!(ids.insert(claim["sandbox"]["id"].to_string()));
        assert_eq!(claim["sandbox"]["state"], "running");
        if claim["warm"] == true {
            warm += 1;
        } else {
            assert_eq!(claim["cold_reason"], "the pool had no warm sandbox left");
        }
    }
    println!("{warm} warm, {} cold", 100 - warm);
    // The pool goes on filling meanwhile, so a few more than it held may be warm.
    assert!((10..100).contains(&warm), "{warm}");
    world.run(["pool", "rm", "p"]).ok();
    world.run(["rm", "--all"]).ok();
    owned::check(&world, &owned::States::new(), "after the burst");
}

#[test]
fn warm_sandboxes_outlive_a_killed_daemon() {
    let world = with_pool(Person::Root, "3");
    let ids = || {
        let warm = world.json(["list", "--warm"]);
        let warm = warm.as_array().unwrap().iter();
        warm.map(|one| one["id"].to_string())
            .collect::<BTreeSet<_>>()
    };
    let before = ids();
    assert_eq!(before.len(), 3);
    world.kill_daemon();
    full(&world, "p");
    assert_eq!(ids(), before);
    let made = world.json(["create", "--template", "t"]);
    assert!(before.contains(&made["id"].to_string()), "{made}");
    world
        .run(["exec", made["name"].as_str().unwrap(), "--", "true"])
        .ok();
}

#[test]
fn the_configuration_names_pools() {
    let world = World::new(Person::Root);
    let config = world.write(
        "config.yaml",
        "warm_pool_size: 1\npools:\n- name: quick\n  template: t\n  spec: {env: {A: b}}\n  max: 2\n  min: 1\n",
    );
    let mut first = world.pinfold(["pool", "list"]);
    let listed = first.env("PINFOLD_CONFIG", &config).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    for name in ["default", "quick"] {
        full(&world, name);
    }
    let made = world.json(["create"]);
    assert_eq!(made["origin"], "warm", "{made}");
    let made = world.json(["create", "--template", "t"]);
    assert_eq!(
        (&made["origin"], &made["spec"]["env"]["A"]),
        (&json!("warm"), &json!("b"))
    );
    // What the next daemon's configuration does not name goes.
    world.kill_daemon();
    eventually("the pools to be gone", || {
        world.json(["pool", "list"]) == json!([])
    });
    eventually("their sandboxes to be gone", || {
        world.json(["list", "--warm"]) == json!([])
    });
    let refused = world.run([
        "--config",
        world
            .write("bad.yaml", "pools: [{name: x}]")
            .to_str()
            .unwrap(),
        "config",
        "show",
    ]);
    refused.fails(125);
}
