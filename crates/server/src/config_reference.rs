//! The reference page of the configuration, made from the structs that declare it: names and defaults
//! from their default values, descriptions from the comments in their source.

use std::fmt::Write as _;

use anyhow::Context as _;

use crate::config::Config;

const INTRODUCTION: &str = "# Configuration

<!-- Generated from the source; `make generate` writes it. -->

`nullspace server --config FILE` reads a file in TOML. Every key is optional, an unknown one is refused.
What stands here are the defaults.
";

/// Each section with the struct that declares it and that struct's source.
const SECTIONS: [(&str, &str, &str); 10] = [
    ("server", "ServerConfig", include_str!("config.rs")),
    ("image", "ImageConfig", include_str!("config.rs")),
    ("store", "StoreConfig", include_str!("config.rs")),
    ("limits", "Limits", include_str!("../../domain/src/limits.rs")),
    ("webhooks", "WebhookConfig", include_str!("../../domain/src/webhook.rs")),
    ("node", "Config", include_str!("../../node/src/config.rs")),
    ("network", "NetworkConfig", include_str!("../../node/src/config.rs")),
    ("gateway", "Config", include_str!("../../gateway/src/config.rs")),
    ("ssh", "Config", include_str!("../../ssh/src/config.rs")),
    ("secrets", "SecretsConfig", include_str!("config.rs")),
];

struct Field {
    name: String,
    about: String,
}

/// The struct's own description, and its fields with theirs.
fn declared(source: &str, name: &str) -> Option<(String, Vec<Field>)> {
    let start = format!("pub struct {name} {{");
    let (mut about, mut section, mut fields) = (Vec::new(), None, Vec::new());
    for line in source.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            about.push(comment.trim());
        } else if line == start {
            section = Some(about.join(" "));
            about.clear();
        } else if section.is_some() && line == "}" {
            break;
        } else if line.starts_with("#[") {
            // An attribute stands between a comment and what it is about.
        } else {
            let field = line.strip_prefix("pub ").and_then(|rest| rest.split_once(':'));
            if let (Some(_), Some((field, _))) = (&section, field) {
                fields.push(Field { name: field.to_owned(), about: about.join(" ") });
            }
            about.clear();
        }
    }
    section.map(|section| (section, fields))
}

/// The page, in Markdown.
pub fn reference() -> anyhow::Result<String> {
    let defaults = toml::Table::try_from(Config::default()).context("the defaults are not TOML")?;
    let mut page = INTRODUCTION.to_owned();
    for (section, name, source) in SECTIONS {
        let (about, fields) = declared(source, name)
            .with_context(|| format!("the declaration of [{section}] was not found"))?;
        let about = about
            .split_once(": ")
            .filter(|(head, _)| head.starts_with('`'))
            .map_or(&*about, |(_, rest)| rest);
        let _ = write!(page, "\n## `[{section}]`\n\n{about}\n\n| Key | Default | Meaning |\n|---|---|---|\n");
        let values = defaults.get(section).and_then(toml::Value::as_table);
        for Field { name, about } in fields {
            let default = values.and_then(|values| values.get(&name));
            let default = default.map_or_else(|| "unset".to_owned(), |value| format!("`{value}`"));
            let _ = writeln!(page, "| `{name}` | {default} | {about} |");
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_on_the_page_with_its_default_and_a_description() {
        let page = reference().unwrap();
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        for (section, values) in &defaults {
            assert!(page.contains(&format!("## `[{section}]`")), "{section}");
            for (key, value) in values.as_table().unwrap() {
                let row = page.lines().find(|line| line.starts_with(&format!("| `{key}` | `{value}` | ")));
                let row = row.unwrap_or_else(|| panic!("{section}.{key} is missing in\n{page}"));
                assert!(!row.ends_with("|  |"), "{section}.{key} has no description");
            }
        }
        assert!(page.contains("| `url` | unset |"));
    }
}
