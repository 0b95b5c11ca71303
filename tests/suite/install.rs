//! `install`: what becomes of an engine's configuration, byte for byte, and what is never touched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libtest_mimic::Failed;
use serde_json::Value;

use super::case::Case;
use super::need::Need::Ferry;
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("what_is_only_shown_is_not_made", &[Ferry], shown),
    scenario("another_binary_can_be_named", &[Ferry], named),
    scenario("containerd_can_be_given_a_shim_of_its_own", &[Ferry], native),
    scenario("what_was_installed_is_undone", &[Ferry], undone),
    scenario("what_else_is_configured_stays", &[Ferry], kept),
    scenario("a_configuration_that_is_not_understood_stays", &[Ferry], damaged),
    scenario("a_link_is_left_alone", &[Ferry], linked),
    scenario("an_unknown_engine_is_refused", &[Ferry], unknown),
];

const ENGINES: [&str; 3] = ["containerd", "docker", "podman"];

/// `install` for an engine whose configuration is the file `config`.
fn install(case: &mut Case, engine: &str, config: &Path, flags: &[&str]) -> Result<Output, Failed> {
    let config = config.display().to_string();
    case.call(&[&["install", "--engine", engine, "--config", &config], flags].concat())
}

/// Whether the text has the runtime's own path as that of a runtime called ferry.
fn names_ferry(case: &Case, text: &str) -> bool {
    text.contains("ferry") && text.contains(&format!("\"{}\"", case.stage.runtime.path.display()))
}

fn shown(case: &mut Case) -> Outcome {
    for engine in ENGINES {
        let config = case.directory.join("conf").join(engine);
        let end = install(case, engine, &config, &[])?.success()?;
        assert!(names_ferry(case, &end.stdout) && end.stdout.contains("--write"), "{}", end.stdout);
        assert!(!config.exists() && !case.directory.join("conf").exists());
    }
    Ok(())
}

fn native(case: &mut Case) -> Outcome {
    let (config, shim) = (case.directory.join("conf"), case.directory.join("containerd-shim-ferry-v2"));
    let binary = case.path("ferry");
    let refused = install(case, "containerd", &config, &["--native", "--write", "--binary", &binary])?;
    assert!(
        refused.code == 1 && refused.stderr.contains("containerd-shim-ferry-v2: it is no file"),
        "{}",
        refused.stderr
    );
    fs::write(&shim, "")?;
    install(case, "containerd", &config, &["--native", "--write", "--binary", &binary])?.success()?;
    let text = fs::read_to_string(&config)?;
    assert!(text.contains(&format!("runtime_path = \"{}\"", shim.display())), "{text}");
    let refused = install(case, "docker", &config, &["--native"])?;
    assert!(refused.code == 1 && refused.stderr.contains("leave out --native"), "{}", refused.stderr);
    Ok(())
}

fn named(case: &mut Case) -> Outcome {
    let (config, other) = (case.directory.join("conf"), case.directory.join("other-ferry"));
    fs::copy(&case.stage.runtime.path, &other)?;
    let other_name = other.display().to_string();
    let end = install(case, "podman", &config, &["--binary", &other_name])?.success()?;
    assert!(end.stdout.contains(&format!("\"{other_name}\"")) && !names_ferry(case, &end.stdout), "{}", end.stdout);
    fs::remove_file(other)?;
    Ok(())
}

fn undone(case: &mut Case) -> Outcome {
    for engine in ENGINES {
        let config = case.directory.join("conf").join(engine);
        install(case, engine, &config, &["--write"])?.success()?;
        let made = fs::read_to_string(&config)?;
        assert!(names_ferry(case, &made), "{made}");
        // Twice is as once.
        let end = install(case, engine, &config, &["--write"])?.success()?;
        assert!(end.stdout.contains("as it should be"), "{}", end.stdout);
        assert_eq!(fs::read_to_string(&config)?, made);
        install(case, engine, &config, &["--undo"])?.success()?;
        assert_eq!(fs::read_to_string(&config)?, made, "without --write nothing is undone");
        install(case, engine, &config, &["--undo", "--write"])?.success()?;
        assert!(!config.exists(), "{engine}");
        fs::remove_dir(case.directory.join("conf"))?;
    }
    Ok(())
}

fn kept(case: &mut Case) -> Outcome {
    let own = [
        ("docker", "{\n  \"log-level\": \"warn\",\n  \"runtimes\": {\"other\": {\"path\": \"/bin/other\"}}\n}\n"),
        (
            "containerd",
            "version = 2\n# a word of mine\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"a\"\n",
        ),
    ];
    for (engine, before) in own {
        let config = case.directory.join(engine);
        fs::write(&config, before)?;
        fs::set_permissions(&config, PermissionsExt::from_mode(0o640))?;
        install(case, engine, &config, &["--write"])?.success()?;
        let made = fs::read_to_string(&config)?;
        assert!(names_ferry(case, &made), "{made}");
        if engine == "docker" {
            let (was, is): (Value, Value) = (serde_json::from_str(before)?, serde_json::from_str(&made)?);
            assert_eq!((&is["log-level"], &is["runtimes"]["other"]), (&was["log-level"], &was["runtimes"]["other"]));
        } else {
            assert!(made.starts_with(before), "{made}");
        }
        assert_eq!(fs::metadata(&config)?.permissions().mode() & 0o777, 0o640);
        install(case, engine, &config, &["--write", "--undo"])?.success()?;
        let after = fs::read_to_string(&config)?;
        if engine == "docker" {
            assert_eq!(serde_json::from_str::<Value>(&after)?, serde_json::from_str::<Value>(before)?);
        } else {
            assert_eq!(after, before);
        }
        fs::remove_file(&config)?;
    }
    Ok(())
}

fn damaged(case: &mut Case) -> Outcome {
    let config = case.directory.join("config");
    for (engine, text) in [
        ("docker", "{\"runtimes\": "),
        ("docker", "[]"),
        ("podman", "[engine]\n"),
        ("containerd", "version = 1\n"),
        ("containerd", "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\ncontainerd = { runtimes = {} }\n"),
        ("containerd", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.\"ferry\"]\n"),
    ] {
        fs::write(&config, text)?;
        for flags in [&["--write"][..], &["--write", "--undo"]] {
            let end = install(case, engine, &config, flags)?;
            // There is nothing to undo in what is understood and has nothing of ferry's.
            assert!(end.code != 0 || flags.len() == 2, "{engine} {flags:?}: {}", end.stdout);
            assert_eq!(fs::read_to_string(&config)?, text, "{engine} {flags:?}");
        }
    }
    fs::remove_file(config)?;
    Ok(())
}

fn linked(case: &mut Case) -> Outcome {
    let (file, link) = (case.directory.join("file"), case.directory.join("link"));
    fs::write(&file, "{}")?;
    std::os::unix::fs::symlink(&file, &link)?;
    let end = install(case, "docker", &link, &["--write"])?.failure()?;
    assert!(end.stderr.contains("symbolic link") && end.stderr.contains("--config"), "{}", end.stderr);
    assert_eq!(fs::read_to_string(&file)?, "{}");
    assert!(link.is_symlink());
    fs::remove_file(link)?;
    fs::remove_file(file)?;
    Ok(())
}

fn unknown(case: &mut Case) -> Outcome {
    let end = case.call(&["install", "--engine", "harbour"])?.failure()?;
    assert!(ENGINES.iter().all(|engine| end.stderr.contains(engine)), "{}", end.stderr);
    case.call(&["install"])?.failure().map(drop)
}
