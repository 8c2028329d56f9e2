//! What schemathesis finds when it asks a daemon everything that the daemon's own description offers.

use std::path::Path;

use crate::service::{Service, python};
use crate::world::{Person, World};

#[test]
fn every_answer_is_what_the_description_says() {
    let world = World::new(Person::Root);
    let service = Service::start(&world, &["--listen", "127.0.0.1:0"]);
    // Quotas bound what it can make: sandboxes in pools count too.
    let key = world
        .run(["key", "create", "asker", "--sandboxes", "4", "--execs", "4"])
        .ok();
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut asker = python();
    asker
        .args(["-m", "schemathesis.cli", "--no-color", "--config-file"])
        .arg(clients.join("schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/openapi.json", service.url))
        .env("KEY", key.trim())
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("PYTHONPATH", &clients)
        .current_dir(world.files());
    let output = service.enter(&asker).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{told}");
    // Every operation was asked, but for the one that the configuration leaves out, and the one that
    // answers with the description, which was asked for that.
    let document: serde_json::Value =
        serde_json::from_str(include_str!("../../../../openapi/pinfold.json")).unwrap();
    let items = document["paths"].as_object().unwrap().values();
    let operations: usize = items.map(|item| item.as_object().unwrap().len()).sum();
    assert!(
        text.contains(&format!("Tested: {}", operations - 2)),
        "{operations}: {text}"
    );
    // The daemon is as well as before, and what was made is there to be removed.
    world.json(["list", "--all"]);
    let log = service.log();
    assert!(!log.contains("ERROR"), "{log}");
    service.end();
}
