//! The manifests, by kubectl and by the API's own schemas.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::peers::kubernetes;
use crate::{ZEUGMA, folder, printed, repository, said};

const OVERLAYS: [&str; 2] = ["east", "west"];
/// The newest that the validator knows, and one that many run.
const API_VERSIONS: [&str; 2] = ["1.37.0", "1.32.0"];

/// Everything that an overlay is, as YAML.
pub(crate) fn built(overlay: &str) -> String {
    let mut kubectl = Command::new(kubernetes().unwrap().join("kubectl"));
    let folder = repository("deploy/kubernetes/overlays").join(overlay);
    // Nothing but files: neither a cluster nor a configuration of this machine's.
    kubectl.env("KUBECONFIG", "/dev/null");
    printed(kubectl.arg("kustomize").arg(folder))
}

/// The same as JSON, by kind and name.
fn objects(yaml: &Path) -> BTreeMap<String, Value> {
    let script = "import json, sys, yaml\n\
                  print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut python = Command::new(kubernetes().unwrap().join("python"));
    let all = printed(python.args(["-c", script]).arg(yaml));
    let all: Vec<Value> = serde_json::from_str(&all).unwrap();
    let named = all.into_iter().map(|object| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let name = text(&object["metadata"]["name"]);
        (format!("{}/{name}", text(&object["kind"])), object)
    });
    named.collect()
}

/// An overlay, and the file that it was written to.
fn overlay(name: &str, test: &str) -> (BTreeMap<String, Value>, PathBuf) {
    let file = folder(&format!("{test}-{name}")).join("all.yaml");
    fs::write(&file, built(name)).unwrap();
    (objects(&file), file)
}

fn validate(file: &Path, version: &str) -> std::process::Output {
    let mut command = Command::new(kubernetes().unwrap().join("kubernetes-validate"));
    command.args(["--strict", "-k", version]).arg(file);
    command.output().unwrap()
}

#[test]
fn the_overlays_are_what_the_api_knows() {
    for name in OVERLAYS {
        let (objects, file) = overlay(name, "valid");
        for version in API_VERSIONS {
            let output = validate(&file, version);
            assert!(output.status.success(), "{}", said(&output));
            let passed = said(&output).matches(" passed for resource ").count();
            assert_eq!(passed, objects.len(), "{}", said(&output));
        }
        // It would have said so.
        let wrong = fs::read_to_string(&file).unwrap();
        let wrong = wrong.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem");
        fs::write(&file, wrong).unwrap();
        assert!(!validate(&file, API_VERSIONS[0]).status.success());
    }
}

#[test]
fn the_pods_are_two_apart_from_each_other_and_may_do_nothing_but_serve() {
    for name in OVERLAYS {
        let (objects, _) = overlay(name, "pods");
        let deployment = &objects["Deployment/zeugma"]["spec"];
        assert_eq!(deployment["replicas"], 2);
        let pod = &deployment["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        let account = &objects["ServiceAccount/zeugma"];
        assert_eq!(account["automountServiceAccountToken"], false);
        // `drain`: 10 s and 45 s, and what threads get beyond it.
        assert_eq!(pod["terminationGracePeriodSeconds"], 70);
        assert_eq!(
            pod["securityContext"],
            json!({
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": { "type": "RuntimeDefault" },
            })
        );
        let [container] = pod["containers"].as_array().unwrap().as_slice() else {
            panic!("{pod}");
        };
        assert_eq!(
            container["securityContext"],
            json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            })
        );
        for (probe, path) in [
            ("startupProbe", "/ready"),
            ("readinessProbe", "/ready"),
            ("livenessProbe", "/livez"),
        ] {
            let get = json!({ "path": path, "port": "probes" });
            assert_eq!(container[probe]["httpGet"], get);
        }
        for (kind, what) in [
            ("requests", "cpu"),
            ("requests", "memory"),
            ("limits", "memory"),
        ] {
            assert!(
                container["resources"][kind][what].is_string(),
                "{kind} {what}"
            );
        }
        // Only what it writes to is writable.
        for mount in container["volumeMounts"].as_array().unwrap() {
            let writable =
                ["/run/zeugma", "/var/lib/zeugma"].contains(&mount["mountPath"].as_str().unwrap());
            assert_eq!(mount["readOnly"] == true, !writable, "{mount}");
        }
        let spread = pod["topologySpreadConstraints"].as_array().unwrap();
        let keys: Vec<_> = spread.iter().map(|one| &one["topologyKey"]).collect();
        assert_eq!(
            keys,
            ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        );
        let budget = &objects["PodDisruptionBudget/zeugma"]["spec"];
        assert_eq!(budget["maxUnavailable"], 1);
        let space = &objects["Namespace/zeugma-system"]["metadata"]["labels"];
        assert_eq!(space["pod-security.kubernetes.io/enforce"], "restricted");
    }
}

#[test]
fn every_selector_finds_the_pods_and_every_port_is_one_that_the_gateway_opens() {
    for name in OVERLAYS {
        let (objects, _) = overlay(name, "selectors");
        let template = &objects["Deployment/zeugma"]["spec"]["template"];
        let labels = &template["metadata"]["labels"];
        assert_eq!(labels.as_object().unwrap().len(), 2);
        let policy = &objects["NetworkPolicy/zeugma"]["spec"];
        let mut selectors = vec![
            &objects["Deployment/zeugma"]["spec"]["selector"]["matchLabels"],
            &objects["PodDisruptionBudget/zeugma"]["spec"]["selector"]["matchLabels"],
            &policy["podSelector"]["matchLabels"],
        ];
        let spread = &template["spec"]["topologySpreadConstraints"];
        let spread = spread.as_array().unwrap().iter();
        selectors.extend(spread.map(|one| &one["labelSelector"]["matchLabels"]));

        let gateway = gateway_yaml(&objects);
        let ports = template["spec"]["containers"][0]["ports"]
            .as_array()
            .unwrap();
        let mut names = Vec::new();
        for port in ports {
            let listens = format!("\"0.0.0.0:{}\"", port["containerPort"]);
            assert!(gateway.contains(&listens), "nothing listens on {port}");
            names.push(&port["name"]);
        }
        let services = objects
            .iter()
            .filter(|(name, _)| name.starts_with("Service/"));
        for (name, service) in services {
            selectors.push(&service["spec"]["selector"]);
            for port in service["spec"]["ports"].as_array().unwrap() {
                assert!(names.contains(&&port["targetPort"]), "{name}: {port}");
            }
        }
        for rule in policy["ingress"].as_array().unwrap() {
            for port in rule["ports"].as_array().unwrap() {
                assert!(names.contains(&&port["port"]), "{port}");
            }
        }
        assert_eq!(selectors.len(), 8);
        for selector in selectors {
            assert_eq!(selector, labels);
        }
    }
}

#[test]
fn the_configuration_is_one_that_the_gateway_takes_and_fits_the_pod() {
    for name in OVERLAYS {
        let (objects, _) = overlay(name, "config");
        let folder = folder(&format!("config-{name}-files"));
        write_config(&objects, &folder);
        let mut check = Command::new(ZEUGMA);
        check.args(["config", "check", "--strict", "--config"]);
        let said = printed(check.arg(&folder));
        assert!(
            said.starts_with(&format!("gateway {name}-gw (cluster {name}, ")),
            "{said}"
        );

        // What the configuration names is mounted there.
        let pod = &objects["Deployment/zeugma"]["spec"]["template"]["spec"];
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        let mounted = |path: &str| {
            let found = mounts.iter().find(|mount| mount["mountPath"] == path);
            found.unwrap_or_else(|| panic!("nothing is mounted at {path}"))["name"].clone()
        };
        let gateway = gateway_yaml(&objects);
        for (path, named) in [
            (
                "/etc/zeugma/svid",
                "certificate: /etc/zeugma/svid/gw.pem, key: /etc/zeugma/svid/gw.key",
            ),
            ("/etc/zeugma/bundles", "bundles: /etc/zeugma/bundles"),
            ("/run/zeugma", "admin: unix:/run/zeugma/admin.sock"),
            ("/var/lib/zeugma", "stateDir: /var/lib/zeugma"),
        ] {
            mounted(path);
            assert!(gateway.contains(named), "{named}");
        }
        let volumes = pod["volumes"].as_array().unwrap();
        let config = volumes
            .iter()
            .find(|one| one["name"] == mounted("/etc/zeugma/config"));
        for source in config.unwrap()["projected"]["sources"].as_array().unwrap() {
            let name = source["configMap"]["name"].as_str().unwrap();
            assert!(objects.contains_key(&format!("ConfigMap/{name}")), "{name}");
        }
        // No key is among the manifests.
        assert!(!objects.keys().any(|name| name.starts_with("Secret/")));
    }
}

fn gateway_yaml(objects: &BTreeMap<String, Value>) -> String {
    let named = |(name, _): &(&String, &Value)| name.starts_with("ConfigMap/zeugma-gateway-");
    let (_, object) = objects.iter().find(named).unwrap();
    object["data"]["gateway.yaml"].as_str().unwrap().to_owned()
}

fn write_config(objects: &BTreeMap<String, Value>, folder: &Path) {
    let maps = objects
        .iter()
        .filter(|(name, _)| name.starts_with("ConfigMap/"));
    for (_, map) in maps {
        for (file, text) in map["data"].as_object().unwrap() {
            fs::write(folder.join(file), text.as_str().unwrap()).unwrap();
        }
    }
}

/// The files of an overlay's ConfigMaps, as they come to its pods.
pub(crate) fn config_of(name: &str, folder: &Path) {
    let file = folder.join("all.yaml.txt");
    fs::write(&file, built(name)).unwrap();
    write_config(&objects(&file), folder);
    fs::remove_file(file).unwrap();
}
