use zeugma_xds::ControlAddress;
use zeugma_xds::client::OnEmpty;

use super::*;

fn side() -> Side {
    Side::of(&ControlPlane {
        addresses: vec![
            ControlAddress::parse("https://a.example:1").unwrap(),
            ControlAddress::parse("https://b.example:2").unwrap(),
        ],
        spiffe_ids: Vec::new(),
        on_empty: OnEmpty::Keep,
    })
}

fn codes(side: &Side) -> Vec<String> {
    let found = side.findings().into_iter();
    found
        .map(|one| one["code"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_is_known_follows_what_is_told() {
    let (side, metrics) = (side(), Metrics::new());
    assert!(side.is_awaited());
    assert_eq!(codes(&side), [AWAITED]);
    let lost = |why: &str| side.take(Told::Lost(0, why.to_owned()), &metrics);
    lost("nobody is there");
    lost("nobody is there");
    assert_eq!(codes(&side), [FAILS]);
    let finding = &side.findings()[0];
    assert_eq!(finding["severity"], "error");
    let message = finding["message"].as_str().unwrap();
    assert_eq!(
        message,
        "the control plane at https://a.example:1 fails, 2 times in a row: nobody is there; nothing serves"
    );
    side.take(Told::Connected(1), &metrics);
    let refused = |why: &str| Told::Refused(Kind::Cluster, "c".to_owned(), why.to_owned());
    side.take(refused("no use"), &metrics);
    let at = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
    side.applied(at, &metrics);
    assert!(!side.is_awaited());
    assert_eq!(codes(&side), [REFUSED]);
    let told = side.to_json(at + Duration::from_secs(7));
    assert_eq!(told["connected"], "https://b.example:2");
    assert_eq!(
        (&told["age_seconds"], &told["refused"]),
        (&json!(7), &json!(1))
    );
    side.take(Told::Mended(Kind::Cluster, "c".to_owned()), &metrics);
    assert_eq!(codes(&side), [""; 0]);
    assert_eq!(Side::none().to_json(at), Value::Null);
    assert!(!Side::none().is_awaited());
}

#[test]
fn so_many_refused_resources_are_remembered_and_no_more() {
    let (side, metrics) = (side(), Metrics::new());
    for nth in 0..=REFUSED_MAX {
        let told = Told::Refused(Kind::Cluster, format!("c{nth}"), "no use".to_owned());
        side.take(told, &metrics);
    }
    assert_eq!(side.lock().refused.len(), REFUSED_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_a_server_so_long_and_no_longer() {
    let began = tokio::time::Instant::now();
    let side = side();
    side.answered().await;
    assert_eq!(began.elapsed(), ANSWER_WAIT);
    side.complete();
    side.answered().await;
    assert_eq!(began.elapsed(), ANSWER_WAIT);
}
