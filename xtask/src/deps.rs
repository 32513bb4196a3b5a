//! The allowed edges between the crates of the workspace, against those that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Where the table is.
const TABLE: &str = "xtask/deps.toml";

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Edges of programs and libraries, and those that only tests have.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Graph {
    crates: Edges,
    tests: Edges,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or null for an ordinary one.
    kind: Option<String>,
    /// Set for the crates of the workspace, which are all found by their path.
    path: Option<String>,
}

/// Checks the edges, or prints them.
pub fn run(root: &Path, check: bool) -> Result<ExitCode> {
    let found = found(&metadata(root)?);
    let mut out = anstream::stdout();
    if !check {
        for (name, on) in &found.crates {
            writeln!(out, "{name} → {}", Vec::from_iter(on.iter().map(String::as_str)).join(", "))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let text = fs_err::read_to_string(root.join(TABLE))?;
    let table: Graph = toml::from_str(&text).with_context(|| format!("{TABLE} cannot be read"))?;
    let faults =
        [compare("crates", &table.crates, &found.crates), compare("tests", &table.tests, &found.tests)]
            .concat();
    for fault in &faults {
        writeln!(out, "{fault}")?;
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn metadata(root: &Path) -> Result<Metadata> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("cargo metadata did not start")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("cargo metadata cannot be read")
}

fn found(metadata: &Metadata) -> Graph {
    let mut graph = Graph::default();
    for package in &metadata.packages {
        let own = || package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        let is_test = |dependency: &&Dependency| dependency.kind.as_deref() == Some("dev");
        let crates: BTreeSet<_> = own().filter(|one| !is_test(one)).map(|one| one.name.clone()).collect();
        let tests: BTreeSet<_> =
            own().filter(is_test).map(|one| one.name.clone()).filter(|name| !crates.contains(name)).collect();
        graph.crates.insert(package.name.clone(), crates);
        if !tests.is_empty() {
            graph.tests.insert(package.name.clone(), tests);
        }
    }
    graph
}

/// What is wrong, a line each.
fn compare(section: &str, table: &Edges, found: &Edges) -> Vec<String> {
    let edges = |edges: &Edges| -> BTreeSet<(String, String)> {
        edges.iter().flat_map(|(from, on)| on.iter().map(|to| (from.clone(), to.clone()))).collect()
    };
    let (allowed, used) = (edges(table), edges(found));
    let mut faults = Vec::new();
    for (from, to) in used.difference(&allowed) {
        faults.push(format!("{from} may not depend on {to}: the edge is not in [{section}] of {TABLE}"));
    }
    for (from, to) in allowed.difference(&used) {
        faults.push(format!("{from} does not depend on {to}: remove the edge from [{section}] of {TABLE}"));
    }
    for name in found.keys().filter(|name| !table.contains_key(*name)) {
        faults.push(format!("{name} is not in [{section}] of {TABLE}: add it with what it may depend on"));
    }
    for name in table.keys().filter(|name| !found.contains_key(*name)) {
        faults.push(format!("{name} is in [{section}] of {TABLE}, and is no crate with such dependencies"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(text: &str) -> Edges {
        toml::from_str(text).expect("a table")
    }

    #[test]
    fn edges_are_refused_when_not_allowed_and_when_no_longer_used() {
        let table = edges("a = []\nb = ['a']\nd = []");
        assert!(compare("crates", &table, &table).is_empty());
        let faults = compare("crates", &table, &edges("a = ['b']\nb = []\nc = []")).join("\n");
        for fault in ["a may not depend on b", "b does not depend on a", "c is not in", "d is in"] {
            assert!(faults.contains(fault), "{fault} is not in\n{faults}");
        }
    }

    #[test]
    fn dependencies_of_tests_alone_are_kept_apart_and_foreign_crates_left_out() {
        let text = r#"{"packages": [{"name": "a", "dependencies": [
            {"name": "b", "kind": null, "path": "b"}, {"name": "b", "kind": "dev", "path": "b"},
            {"name": "c", "kind": "dev", "path": "c"}, {"name": "d", "kind": "build", "path": "d"},
            {"name": "serde", "kind": null}]}]}"#;
        let graph = found(&serde_json::from_str(text).expect("JSON"));
        assert_eq!(graph, Graph { crates: edges("a = ['b', 'd']"), tests: edges("a = ['c']") });
    }
}
