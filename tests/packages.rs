//! Packages and containers match the program: files, variables, and the health check.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use mqtt_websocket_proxy::config::{VARIABLES, unknown_variables};
use serde_json::{Value, json};
use support::chat_server::ChatServer;
use support::closed_port;
use support::device::Device;
use support::process::Folder;
use support::tls::CertificateFiles;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

fn assert_known(place: &str, names: &[&str]) {
    assert!(names.len() >= 2, "{place}: {names:?}");
    let is_own = |name: &&&str| !VARIABLES.iter().any(|(known, _)| known == *name);
    let derived: Vec<_> = names.iter().filter(is_own).collect();
    assert!(derived.iter().all(|name| name.starts_with("MQTT_PROXY_")), "{place}: {derived:?}");
    let unknown = unknown_variables(derived.into_iter().map(OsString::from));
    assert!(unknown.is_empty(), "{place}: {unknown:?}");
}

#[test]
fn every_variable_that_is_set_for_a_user_is_one_of_the_program() {
    let compose = text("config/compose.yaml");
    let section =
        compose.split("    environment:\n").nth(1).unwrap().split("    healthcheck:").next().unwrap();
    assert_known(
        "compose.yaml",
        &section.lines().map(|line| line.trim().split(':').next().unwrap()).collect::<Vec<_>>(),
    );
    let template = text("config/debian/environment");
    let names = template.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let names: Vec<_> = names.map(|(name, _)| name).filter(|name| !name.contains(' ')).collect();
    assert_known("environment", &names);
}

#[test]
fn every_packaged_file_exists() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let deb = &metadata["packages"][0]["metadata"]["deb"];
    let assets = deb["assets"].as_array().unwrap();
    let sources: Vec<_> = assets.iter().map(|asset| asset[0].as_str().unwrap()).collect();
    assert!(sources.len() >= 5 && sources[0] == "target/release/mqtt-websocket-proxy", "{sources:?}");
    for source in &sources[1..] {
        let folder = source.rsplit_once("/*").map_or(*source, |(folder, _)| folder);
        assert!(Path::new(ROOT).join(folder).exists(), "{source}");
    }
    let unit =
        format!("{}/mqtt-websocket-proxy.service", deb["systemd-units"]["unit-scripts"].as_str().unwrap());
    let unit = text(&unit);
    for line in
        ["Type=notify", "ExecReload=kill -HUP $MAINPID", "NoNewPrivileges=yes", "CapabilityBoundingSet="]
    {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    let dockerfile = text("config/Dockerfile");
    let mut copied = Vec::new();
    for line in dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let parts: Vec<_> = line.split(' ').collect();
        for source in parts[..parts.len() - 1].iter().filter(|_| !line.starts_with("--from")) {
            assert!(Path::new(ROOT).join(source).exists(), "COPY {line}");
            copied.push(*source);
        }
    }
    // Cargo builds nothing if a target in the manifest has no file. Tests are discovered, not listed.
    for target in metadata["packages"][0]["targets"].as_array().unwrap() {
        let path = Path::new(target["src_path"].as_str().unwrap()).strip_prefix(ROOT).unwrap();
        let folder = path.iter().next().unwrap().to_str().unwrap();
        assert!(
            target["kind"][0] == "test" || copied.contains(&folder),
            "the Dockerfile does not copy {folder}"
        );
    }
}

/// The values of a key that stands in many places of a YAML file.
fn yaml_values<'a>(page: &'a str, key: &str) -> Vec<&'a str> {
    let start = format!("{key}: ");
    let found = page.split(&start).skip(1);
    found.map(|rest| rest.split([',', ' ', '\n']).next().unwrap()).collect()
}

#[test]
fn a_release_has_the_targets_that_the_readme_names() {
    let workflow = text(".github/workflows/release.yml");
    let matrix = workflow.split("include:").nth(1).unwrap().split("runs-on:").next().unwrap();
    let built = yaml_values(matrix, "target");
    assert!(built.len() >= 5, "{built:?}");
    for page in ["README.md", "README.zh-CN.md"] {
        let page_text = text(page);
        let rows = page_text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let named: Vec<_> =
            rows.filter(|(target, _)| target.matches('-').count() >= 2 && !target.contains(' ')).collect();
        assert_eq!(named.iter().map(|(target, _)| *target).collect::<Vec<_>>(), built, "{page}");
        let download = concat!("file=mqtt-websocket-proxy-v", env!("CARGO_PKG_VERSION"), "-");
        assert!(page_text.contains(download), "{page}: {download}");
        for (target, about) in named {
            let line = matrix.lines().find(|line| line.contains(target)).unwrap();
            assert_eq!(line.contains("deb: true"), about.contains(".deb"), "{page}: {target}");
            assert_eq!(line.contains("windows"), about.contains(".zip"), "{page}: {target}");
            assert!(!line.contains("vendored") || target.contains("musl"), "{line}");
        }
        let platforms = workflow.lines().find_map(|line| line.trim().strip_prefix("platforms: ")).unwrap();
        for platform in ["amd64", "arm64", "arm/v7"] {
            assert!(
                platforms.contains(&format!("linux/{platform}")) && page_text.contains(platform),
                "{page}: {platform}"
            );
        }
    }
    for made in ["sha256sum", "cyclonedx", "attest-build-provenance", "sbom: true", "lintian"] {
        assert!(workflow.contains(made), "{made}");
    }
}

/// The options of the add-on are a configuration of the gateway once the ones to be filled in are there, and its schema has all of them.
#[test]
fn the_home_assistant_add_on_starts_the_gateway_with_its_options() {
    let addon = text("config/home-assistant/config.yaml");
    assert!(addon.contains(concat!("\nversion: \"", env!("CARGO_PKG_VERSION"), "\"\n")));
    let (options, schema) = addon.split_once("\noptions:\n").unwrap().1.split_once("schema:\n").unwrap();
    let sections = |part: &str| {
        let lines = part.lines().map(|line| line.trim().split_once(": ").unwrap());
        lines.map(|(name, keys)| (name.to_owned(), keys.to_owned())).collect::<Vec<_>>()
    };
    let mut config = serde_json::Map::new();
    for (name, keys) in sections(options) {
        let keys = keys.replace("\"signature_key\": null", "\"signature_key\": \"A-good-Key\"");
        let keys: Value =
            serde_json::from_str(&keys.replace("\"token\": null", "\"token\": \"0123456789abcdef\""))
                .unwrap();
        let types = sections(schema).into_iter().find(|(section, _)| *section == name).unwrap().1;
        for key in keys.as_object().unwrap().keys() {
            assert!(types.contains(&format!("{key}: ")), "{name}.{key} in {types}");
        }
        for language in ["en", "zh-Hans"] {
            let translation = text(&format!("config/home-assistant/translations/{language}.yaml"));
            assert!(translation.contains(&format!("\n  {name}:\n    name: ")), "{language}: {name}");
        }
        config.insert(name, keys);
    }
    assert_eq!(config.len(), sections(schema).len());
    let folder = Folder::new().with_file("options.json", Value::Object(config).to_string());
    let output = folder.run("health -c options.json", &[("API_PORT", "1")]);
    assert_eq!(output.status.code(), Some(1), "the configuration is read: {output:?}");
    let sample: Value = serde_json::from_str(&text("config/gateway.json")).unwrap();
    let port = yaml_values(&addon, "ingress_port")[0];
    assert_eq!(port, sample["api"]["port"].to_string());
    assert!(addon.contains(&format!("[PORT:{port}]/healthz")));
}

/// The page is embedded by Home Assistant, under another path.
#[test]
fn the_dashboard_calls_the_gateway_under_the_path_of_the_page() {
    let page = mqtt_websocket_proxy::admin::dashboard::HTML;
    assert!(page.contains("const BASE = location.pathname"));
    assert_eq!((page.matches("fetch(").count(), page.matches("fetch(BASE + path").count()), (1, 1));
}

#[test]
fn the_newest_entry_of_the_debian_changelog_is_this_version() {
    let changelog = text("config/debian/changelog");
    let newest = concat!("mqtt-websocket-proxy (", env!("CARGO_PKG_VERSION"), "-1) ");
    assert!(changelog.starts_with(newest), "{:?} does not begin with {newest:?}", changelog.lines().next());
    let signed = changelog.lines().find(|line| line.starts_with(" -- ")).unwrap();
    let (who, when) = signed[4..].split_once("  ").unwrap();
    assert!(who.ends_with('>') && when.ends_with(" +0000"), "{signed}");
}

#[test]
fn the_openwrt_script_starts_and_reloads_the_gateway() {
    // The arguments of procd's functions.
    let stub = "for name in open_instance set_param close_instance send_signal; do \
                eval \"procd_$name() { echo $name \\\"\\$@\\\"; }\"; done; \
                . config/openwrt/mqtt-websocket-proxy.init; start_service; reload_service; echo \"$USE_PROCD\"";
    let output = Command::new("sh").args(["-euc", stub]).current_dir(ROOT).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    let told: Vec<_> = told.lines().collect();
    let command =
        "set_param command /usr/bin/mqtt-websocket-proxy --config /etc/mqtt-websocket-proxy/gateway.json";
    assert_eq!((told[0].trim(), told[1]), ("open_instance", command));
    for line in ["set_param user nobody", "set_param stderr 1", "send_signal mqtt-websocket-proxy * HUP", "1"]
    {
        assert!(told.contains(&line), "{line} in {told:#?}");
    }
}

#[test]
fn the_health_check_tells_a_running_gateway_from_a_draining_and_a_stopped_one() {
    check_health(false);
}

#[cfg(feature = "tls")]
#[test]
fn the_health_check_asks_over_tls_if_the_api_uses_it() {
    check_health(true);
}

fn check_health(is_tls: bool) {
    let server = ChatServer::start();
    let api = closed_port();
    let mut file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]}, "api": {"host": api.ip()},
    });
    // In a container the certificate names another host than the one that is asked.
    let certificate = CertificateFiles::new();
    certificate.write(&certificate.authority.issue("gateway.example"));
    if is_tls {
        file["api"]["tls"] =
            json!({"enabled": true, "cert_file": certificate.cert(), "key_file": certificate.key()});
    }
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let port = api.port().to_string();
    let variables = [("API_PORT", port.as_str()), ("CONFIG_FILE", "gateway.json")];
    let ask = |line: &str| {
        let output = folder.run(line, &variables);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    assert_eq!(ask("health").0, 1, "nobody is there");

    let mut process = folder.start("", &variables);
    assert_eq!(ask("health"), (0, "{\"status\":\"ok\"}\n".to_owned()));
    assert_eq!(ask("health --ready"), (0, "{\"status\":\"ready\"}\n".to_owned()));
    let mut device = Device::connect(process.mqtt(), 1);
    let (_call, _peer) = device.call(&server);
    process.signal("USR1");
    process.wait_for_line("draining: 1 calls");
    assert_eq!(ask("health -c gateway.json").0, 0);
    let (code, said) = ask("health --ready");
    assert!(code == 1 && said.contains("draining"), "{code} {said}");
    device.send_text(r#"{"type":"goodbye"}"#);
    assert_eq!(process.exit_code(), Some(0));
    assert_eq!(ask("health").0, 1);

    assert!(ask("health --help").1.contains("Exit code"));
    for line in ["health --nonsense", "health -c absent.json"] {
        assert_eq!(ask(line).0, 2, "{line}");
    }
}
