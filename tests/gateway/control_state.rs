//! What a gateway keeps on disk: a folder of its own, locked.

use crate::mesh::{Cluster, Gateway};

#[tokio::test]
async fn a_second_gateway_of_the_name_is_refused_while_the_first_runs() {
    let east = Cluster::new("east");
    let first = east.start().await;
    let second = Gateway::try_start(&east.config());
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        said.contains("error[ZG0933]: a gateway of the name `east-gw` runs already"),
        "{said}"
    );
    assert_eq!(first.ready().await, 200);
    first.finish().await;
    // The file stays; its lock does not.
    assert!(east.config().join("state/east-gw/lock").is_file());
    east.start().await.finish().await;
}

#[tokio::test]
async fn a_state_directory_that_was_asked_for_must_be_usable() {
    let mut east = Cluster::new("east");
    east.set("stateDir", "gw.pem");
    east.write_gateway();
    let output = Gateway::try_start(&east.config());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("error[ZG0932]: ") && said.contains("cannot be used"),
        "{said}"
    );
    assert!(
        said.contains("name another folder in spec.stateDir"),
        "{said}"
    );
}
