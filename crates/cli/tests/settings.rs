//! Settings of the daemon as sandboxes of the real binary feel them.

#![cfg(test)]

use std::fs;

#[path = "world/serving.rs"]
mod serving;
#[path = "world/world.rs"]
mod world;

use serving::Serving;
use world::{Person, World};

#[test]
fn an_empty_request_is_what_the_settings_say() {
    let world = World::new(Person::Root);
    let cache = world.files().join("cache");
    fs::create_dir(&cache).unwrap();
    fs::write(cache.join("kept"), "from the host").unwrap();
    let config = world.write(
        "daemon.yaml",
        format!(
            "memory: 256m\ncpu_request: 0.5\nasync_default: true\nvolume_mode: pvc\n\
             cache_mode: hostpath\ncache_path: {}\ndenied_hosts: [evil.example]\n\
             env:\n  EVERYWHERE: yes\n  MINE: setting\n",
            cache.display()
        ),
    );
    let serving = Serving::begin(&world, &config, &[("PINFOLD_ENV_BY_PREFIX", "p")]);
    let made = serving.get("POST /sandboxes", r#"{"spec":{"env":{"MINE":"own"}}}"#, 201);
    let spec = &made["spec"];
    assert_eq!(spec["resources"]["memory"], 256 << 20);
    assert_eq!(spec["persist"], true);
    assert_eq!(spec["network"]["denied_hosts"][0], "evil.example");
    let exec = format!("POST /sandboxes/{}/exec", made["id"].as_str().unwrap());
    let script = "echo $EVERYWHERE $MINE $BY_PREFIX; cat /cache/kept; touch /cache/made /persist/x";
    let body = |more: &str| format!(r#"{{"command":["sh","-c","{script}"]{more}}}"#);
    let done = serving.get(&exec, &body(r#","async":false"#), 200);
    assert_eq!(done["stdout"], "yes own p\nfrom the host", "{done}");
    assert!(cache.join("made").exists());
    // An exec that does not say is asynchronous here.
    let begun = serving.get(&exec, &body(""), 202);
    assert!(begun["exec_id"].is_string());
    serving.end();
}

#[test]
fn requests_beyond_the_capacity_and_what_is_not_there_are_refused() {
    let world = World::new(Person::Root);
    let config = world.write(
        "daemon.yaml",
        "capacity_cpus: 2\ncapacity_memory: 1g\ncapacity_disk: 1g\n",
    );
    let serving = Serving::begin(&world, &config, &[]);
    let asking = |what: &str, value: u64| {
        format!(r#"{{"spec":{{"resources":{{"{what}_request":{value}}}}}}}"#)
    };
    let first = serving.get("POST /v1/sandboxes", &asking("cpu", 1500), 201);
    let (head, refused) = serving.ask("POST /v1/sandboxes", &asking("cpu", 501));
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    assert!(head.contains("\r\nretry-after: "), "{head}");
    assert_eq!(refused["error"]["code"], "capacity_exceeded");
    assert_eq!(refused["error"]["details"]["requested_by_others"], 1500);
    serving.get("POST /v1/sandboxes", &asking("cpu", 500), 201);
    serving.get("POST /v1/sandboxes", "{}", 201);
    for what in ["memory", "disk"] {
        let refused = serving.get("POST /v1/sandboxes", &asking(what, 2 << 30), 503);
        assert_eq!(refused["error"]["details"]["resource"], what);
    }
    // What is removed makes room.
    let id = first["id"].as_str().unwrap();
    serving.get(&format!("DELETE /sandboxes/{id}"), "", 200);
    serving.get("POST /v1/sandboxes", &asking("cpu", 1500), 201);
    let reach = r#"{"spec":{"network":{"allowed_hosts":["pypi.org"]}}}"#;
    let refused = serving.get("POST /v1/sandboxes", reach, 501);
    assert_eq!(refused["error"]["code"], "unsupported");
    let wrong = r#"{"spec":{"network":{"allowed_hosts":["https://pypi.org"]}}}"#;
    serving.get("POST /v1/sandboxes", wrong, 400);
    serving.end();
    // The requests of sandboxes that live on are kept.
    let serving = Serving::begin(&world, &config, &[]);
    serving.get("POST /v1/sandboxes", &asking("cpu", 1), 503);
    serving.end();
    for setting in [
        ("PINFOLD_ALLOWED_HOSTS", "pypi.org"),
        ("PINFOLD_CACHE_MODE", "pvc"),
    ] {
        let serving = Serving::begin(&world, &config, &[setting]);
        let refused = serving.get("POST /v1/sandboxes", "{}", 501);
        assert_eq!(refused["error"]["code"], "unsupported");
        serving.end();
    }
}

#[test]
fn an_image_that_is_named_wins_over_the_daemons_own() {
    let world = World::new(Person::Root);
    let config = world.write("daemon.yaml", "image: /not/there\n");
    let serving = Serving::begin(&world, &config, &[]);
    let failed = world.run(["run", "--", "true"]);
    assert!(failed.stderr.contains("/not/there"), "{failed:?}");
    world.run(["run", "--image", "host", "--", "true"]).ok();
    // What is run is volatile whoever says the rest.
    assert_eq!(world.json(["list", "--all"]), serde_json::json!([]));
    serving.end();
}
