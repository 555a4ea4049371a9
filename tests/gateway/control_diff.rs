//! `zeugma config diff --admin`: what a gateway that runs would end by another configuration.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::security_workload::{World, ask, at, open};

#[tokio::test]
async fn what_is_open_is_judged_by_the_new_configuration_and_nothing_is_ended() {
    let world = World::new().await;
    let east = &world.east;
    let _agent = world.agent();
    let gateway = world.start().await;
    let mut kept = open(&world.cart, east.mesh).await;
    ask(&mut kept).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path();
    let write = |replace: [&str; 2]| {
        for entry in fs::read_dir(east.config()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "yaml") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.replace(replace[0], replace[1]);
                fs::write(new.join(path.file_name().unwrap()), text).unwrap();
            }
        }
    };
    let diff = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command.args(["config", "diff", "-o", "json", "--admin"]);
        let socket = at(&east.config().join("admin.sock")).replace("unix://", "unix:");
        command.arg(socket).arg(east.config()).arg(new);
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let said: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        (output.status.code(), said["live"].clone())
    };
    write(["", ""]);
    let (code, live) = diff();
    assert_eq!((code, &live["ending"]), (Some(0), &json!([])), "{live}");
    assert_eq!(live["open"], live["judged"]);
    assert!(live["open"].as_u64().unwrap() >= 1, "{live}");
    // West's callers are let in no more.
    write(["'spiffe://west.example/*', ", ""]);
    let (code, live) = diff();
    assert_eq!((code, &live["gateway"]), (Some(2), &json!("east-gw")));
    let ending = live["ending"].as_array().unwrap();
    assert_eq!(ending.len(), 1, "{live}");
    assert_eq!(ending[0]["service"], "shop/orders");
    assert!(ending[0]["count"].as_u64().unwrap() >= 1, "{live}");
    // It was a question.
    ask(&mut kept).await.unwrap();
    // Nobody answers.
    gateway.finish().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command.args(["config", "diff", "--admin", "unix:/nobody.sock"]);
    let output = command.arg(east.config()).arg(new).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no gateway answers"), "{text}");
}
