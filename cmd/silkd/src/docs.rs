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
    section(&mut out, "", &schema, (&schema, &schema), &defaults);
    out
}

/// One table of the file, as its field is declared and as its type is: its fields, then the tables below it.
fn section(out: &mut String, name: &str, root: &Value, (declared, schema): (&Value, &Value), defaults: &Value) {
    let title = if name.is_empty() { "Top level".to_owned() } else { format!("`[{name}]`") };
    let _ = write!(out, "\n## {title}\n\n");
    if !name.is_empty() {
        // A type that is documented as the table says nothing, and one that says more may begin as its field does.
        let of_type = Some(text(schema)).filter(|text| *text != format!("`[{name}]`."));
        let begins = |of_type: &str| of_type.starts_with(text(declared).trim_end_matches('.'));
        let of_field = Some(text(declared)).filter(|_| !of_type.is_some_and(begins));
        let _ = write!(out, "{}\n\n", of_field.into_iter().chain(of_type).collect::<Vec<_>>().join(" "));
    }
    out.push_str("| field | default | meaning |\n|---|---|---|\n");
    let empty = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let mut tables = Vec::new();
    for (field, declared) in properties {
        let target = resolve(root, declared);
        if target.get("properties").is_some() {
            tables.push((field, declared, target));
            continue;
        }
        let default = &defaults[field];
        let default = if default.is_null() { "none".to_owned() } else { format!("`{default}`") };
        let _ = writeln!(out, "| `{field}` | {default} | {}{} |", text(declared).replace('\n', " "), values(target));
    }
    for (field, declared, target) in tables {
        let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
        section(out, &name, root, (declared, target), &defaults[field]);
    }
}

fn text(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// What an enumeration may be, as the end of a sentence.
fn values(schema: &Value) -> String {
    let alike = schema["enum"].as_array().into_iter().flatten().map(|value| (value, ""));
    let told = schema["oneOf"].as_array().into_iter().flatten().flat_map(|one| {
        let each = one["enum"].as_array().map_or_else(|| vec![&one["const"]], |all| all.iter().collect());
        each.into_iter().map(|value| (value, text(one).trim_end_matches('.')))
    });
    let values = alike.chain(told).filter_map(|(value, about)| match (value.as_str()?, about) {
        (value, "") => Some(format!("`{value}`")),
        (value, about) => Some(format!("`{value}` ({})", about.replace('\n', " "))),
    });
    let values: Vec<_> = values.collect();
    if values.is_empty() { String::new() } else { format!(" One of {}.", values.join(", ")) }
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
    fn tables_are_told_as_their_fields_are_and_enumerations_with_their_values() {
        let page = super::page();
        for text in ["The containerd that silk serves.", "not a cluster", "`loop`", "Both ways are off"] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("\n`[containerd]`.\n"));
        assert_eq!(page.matches("Numbers for Prometheus").count(), 1);
        assert_eq!(page.matches("How layers travel.").count(), 1);
    }

    #[test]
    fn unknown_fields_are_errors() {
        let error = toml::from_str::<crate::config::Config>("[pull]\nrange_byte = 1\n").unwrap_err().to_string();
        assert!(error.contains("range_byte"), "{error}");
    }
}
