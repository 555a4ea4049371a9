//! `zeugma simulate`, as a person or a pipeline types it.

use std::fs;

use serde_json::Value;

use super::{GOOD, zeugma};

/// The example's configuration of a service in two zones and another cluster.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/failover/east.yaml");

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn simulate(words: &[&str]) -> Said {
    let output = zeugma(&[&["simulate", "--config", EXAMPLE], words].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

#[test]
fn half_of_a_cluster_down_is_told_with_shares_losses_and_times() {
    let said = simulate(&["--down", "east=50%"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let first = said.out.lines().next().unwrap();
    assert!(
        first.starts_with("of 600") && first.contains("none is lost"),
        "{first}"
    );
    // 1.5 of three, rounded.
    let fault = "  down east: 2 of 3 endpoint(s), from 30s to 180s";
    assert!(said.out.contains(fault), "{}", said.out);
    // By hand: 0.5 / 0.7 where one of eu-1's two is down.
    assert!(said.out.contains("71.4 % at 30s"), "{}", said.out);
    for line in [
        "down east begins at 30s: shares stay after ",
        "down east ends at 180s: ",
    ] {
        assert!(said.out.contains(line), "{}", said.out);
    }
}

#[test]
fn a_capacity_that_falls_moves_what_is_over_and_refuses_what_fits_nowhere() {
    let less = "eu-1=50/s@30s..2m";
    let said = simulate(&["--capacity", less]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let first = said.out.lines().next().unwrap();
    assert!(first.contains("none is lost"), "{first}");
    let fault = "  capacity eu-1 of 50/s: 2 of 2 endpoint(s), from 30s to 120s";
    assert!(said.out.contains(fault), "{}", said.out);
    // Of 200 in a second eu-1 keeps a quarter, eu-2 and west 10 each, and 130 fit nowhere.
    let words = [
        "--capacity",
        "eu-1=50/s@0s",
        "--capacity",
        "eu-2=10/s@0s",
        "--capacity",
        "west=10/s@0s",
        "--expect",
        "share-end(eu/eu-1)<=26%",
        "--expect",
        "share-end(eu/eu-1)>=24%",
        "--expect",
        "lost<=66%",
        "--expect",
        "lost>=60%",
        "--expect",
        "headroom<=0%",
    ];
    let said = simulate(&words);
    assert_eq!(
        (said.code, said.err.as_str()),
        (Some(0), ""),
        "{}",
        said.out
    );
    assert!(said.out.contains("of those over capacity)"), "{}", said.out);
    let wrong = simulate(&["--capacity", "west=50%"]);
    assert_eq!(wrong.code, Some(64), "{}", wrong.err);
    assert!(wrong.err.contains("ZG1062"), "{}", wrong.err);
}

/// A pipeline must not pass for want of a measurement.
#[test]
fn an_expectation_of_what_was_never_measured_fails() {
    for words in [
        // The fault has no end, so nothing recovers.
        &["--down", "eu/eu-1@30s", "--expect", "recover<=1s"][..],
        &["--expect", "converge<=0s"],
    ] {
        let said = simulate(words);
        assert_eq!(said.code, Some(2), "{}", said.out);
        assert!(said.err.contains("it was nothing"), "{}", said.err);
    }
}

#[test]
fn a_rate_of_nearly_nothing_is_played_too() {
    let said = simulate(&["--rate", "0.00000000000000000001/s", "--for", "1m"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
}

#[test]
fn an_expectation_that_fails_is_exit_2_and_says_what_was_measured() {
    let down = ["--down", "eu/eu-1@60s..2m", "--for", "4m"];
    let good = [
        "--expect",
        "share(west)<=0%",
        "--expect",
        "lost<=0",
        "--expect",
        "recover<=30s",
    ];
    let held = simulate(&[&down[..], &good].concat());
    assert_eq!(
        (held.code, held.err.as_str()),
        (Some(0), ""),
        "{}",
        held.out
    );
    let bad = [
        "--expect",
        "share(eu/eu-2)<=30%",
        "--expect",
        "headroom>=500%",
        "--expect",
        "lost<=0",
    ];
    let failed = simulate(&[&down[..], &bad].concat());
    assert_eq!(failed.code, Some(2));
    let findings: Vec<&str> = failed.err.lines().collect();
    assert_eq!(findings.len(), 2, "{}", failed.err);
    let said = "error[ZG1063]: expected share(eu/eu-2)<=30%, and it was 100.00 % at 60.";
    assert!(
        findings[0].starts_with(said) && findings[0].ends_with("s (shop/orders:80)"),
        "{}",
        failed.err
    );
    assert!(
        findings[1].contains("expected headroom>=500%, and it was "),
        "{}",
        failed.err
    );
    // What the pipeline keeps says the same.
    let json = simulate(&[&down[..], &bad, &["-o", "json"]].concat());
    assert_eq!(json.code, Some(2));
    let told: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(
        (&told["kind"], &told["ok"]),
        (&"Simulation".into(), &false.into())
    );
    let met: Vec<bool> = (told["expectations"].as_array().unwrap().iter())
        .map(|one| one["met"].as_bool().unwrap())
        .collect();
    assert_eq!(met, [false, false, true]);
    // A field may come, none may go.
    let service = &told["services"][0];
    for (of, fields) in [
        (
            &told,
            "apiVersion gateway locality seed seconds rate method faults requests services \
             series_left_out events events_left_out one_request_stands_for_at_most",
        ),
        (&told["faults"][0], "kind what endpoints of from to"),
        (
            &told["requests"],
            "sent answered late retried lost failed refused",
        ),
        (
            service,
            "service port requests levels room_min phases series",
        ),
        (
            &service["levels"][0],
            "name share share_min share_max share_end endpoint_rate_max",
        ),
        (&service["phases"][0], "at fault edge settled_after_seconds"),
        (&service["series"], "step_seconds shares sent lost retried"),
    ] {
        for field in fields.split_whitespace() {
            assert!(of.get(field).is_some(), "{field} in {of}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_in_every_form() {
    let faults = [
        "--flap",
        "eu-1=50%,3s",
        "--errors",
        "eu-2=100%,40%",
        "--seed",
        "7",
    ];
    for output in ["text", "json", "svg"] {
        let words = [&faults[..], &["-o", output]].concat();
        let (one, same) = (simulate(&words), simulate(&words));
        assert_eq!(one.code, Some(0), "{}", one.err);
        assert!(one.out == same.out, "{output}");
    }
    let other = ["--errors", "eu-1=100%,40%", "-o", "json", "--seed"];
    let of = |seed| simulate(&[&other[..], &[seed]].concat()).out;
    let without_seed = |text: String| text.replace("\"seed\": 2,", "\"seed\": 1,");
    assert!(without_seed(of("1")) != without_seed(of("2")));
}

#[test]
fn a_chart_is_xml_and_names_what_went_wrong() {
    let svg = simulate(&["--slow", "west=100%,20s", "--down", "east", "-o", "svg"]).out;
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
        "{svg}"
    );
    for text in [
        "down east: 3 of 3",
        "slow west by 20s",
        "shop/orders:80",
        "peer west",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    assert_eq!(
        svg.matches("<polygon ").count(),
        3,
        "three levels carried something"
    );
    let open = svg.matches("<text").count();
    assert_eq!(open, svg.matches("</text>").count());
}

#[test]
fn what_is_not_understood_is_told_with_what_there_is() {
    for (words, said) in [
        (
            ["--down", "eu/eu-9"],
            "there are: eu-1, eu-2, eu/eu-1, eu/eu-2, us/us-1, west",
        ),
        (["--down", "eu=5"], "`5` is no share; write `0%` to `100%`"),
        (
            ["--cut", "eu=5%,1s"],
            "`down` and `cut` have a share and nothing else",
        ),
        (
            ["--slow", "eu=5%"],
            "write how late it is, such as `=50%,3s`",
        ),
        (["--expect", "lost"], "with <=, <, >= or >"),
        (
            ["--expect", "share(north)<1%"],
            "no level is called `north`; there are: eu/eu-1",
        ),
        (["--route", "shop/odrers"], "did you mean `shop/orders`?"),
    ] {
        let wrong = simulate(&words);
        assert_eq!(wrong.code, Some(64), "{words:?}");
        assert!(wrong.err.starts_with("error[ZG1062]: "), "{}", wrong.err);
        assert!(wrong.err.contains(said), "{}", wrong.err);
    }
    for words in [
        ["--rate", "200"],
        ["--for", "2d"],
        ["--for", "48h"],
        ["--output", "png"],
    ] {
        let wrong = simulate(&words);
        assert_eq!(wrong.code, Some(64), "{words:?}");
    }
    let many: Vec<&str> = (0..257).flat_map(|_| ["--down", "west=1%"]).collect();
    assert!(simulate(&many).err.contains("more than 256 faults"));
}

#[test]
fn files_with_errors_are_not_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, GOOD.replace("peer: west", "peer: wset")).unwrap();
    let output = zeugma(&["simulate", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(65));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("error[ZG1061]: ") && said.contains("did you mean"),
        "{said}"
    );
}
