//! `docs/config.md`, made from the structs that read the file, so that it cannot say anything else.

use std::fmt::Write as _;

use schemars::schema_for;
use serde_json::Value;

use crate::config::Config;

/// The page as Markdown.
pub fn page() -> String {
    let schema = schema_for!(Config).to_value();
    let defaults = serde_json::to_value(Config::default()).expect("a configuration is plain data");
    let mut out = String::from(
        "# Configuration\n\n`silkd` reads `/etc/silk/config.toml`, or the file that `--config` names. Every field has a default; \
         an unknown field is an\nerror. This page is made from the source by `silkd --print-config-docs`; the tests compare.\n",
    );
    section(&mut out, "", &schema, &schema, &defaults);
    out
}

/// One table of the file: its fields, then the tables below it.
fn section(out: &mut String, name: &str, root: &Value, schema: &Value, defaults: &Value) {
    let title = if name.is_empty() { "Top level".to_owned() } else { format!("`[{name}]`") };
    let _ = write!(out, "\n## {title}\n\n");
    if !name.is_empty() {
        let _ = write!(out, "{}\n\n", text(schema));
    }
    out.push_str("| field | default | meaning |\n|---|---|---|\n");
    let empty = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let mut tables = Vec::new();
    for (field, declared) in properties {
        let target = resolve(root, declared);
        if target.get("properties").is_some() {
            tables.push((field, target));
            continue;
        }
        let default = &defaults[field];
        let default = if default.is_null() { "none".to_owned() } else { format!("`{default}`") };
        let _ = writeln!(out, "| `{field}` | {default} | {} |", text(declared).replace('\n', " "));
    }
    for (field, target) in tables {
        let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
        section(out, &name, root, target, &defaults[field]);
    }
}

fn text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().to_owned()
}

/// Follows a `$ref` into the schema's definitions.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let path = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    path.and_then(|p| root.pointer(p.trim_start_matches('#'))).unwrap_or(schema)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_in_the_repository_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(there, super::page(), "run: silkd --print-config-docs > docs/config.md");
    }

    #[test]
    fn unknown_fields_are_errors() {
        let error = toml::from_str::<crate::config::Config>("[pull]\nrange_byte = 1\n").unwrap_err().to_string();
        assert!(error.contains("range_byte"), "{error}");
    }
}
