//! containerd's filters (its `pkg/filters`): a snapshot is listed when one of the filters matches; a filter is a comma
//! separated list of selectors, which must all match.
//!
//! ```text
//! selectors := selector ("," selector)*
//! selector  := field ("." field)* (operator value)?
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | [^\s,]+
//! quoted    := a Go string literal in "", and after ~= also in // or ||
//! ```

use regex::Regex;

use crate::Snapshot;

mod scan;
use scan::Scanner;

/// A filter that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?} cannot be used: at byte {at}: {problem}")]
pub struct FilterError {
    filter: String,
    at: usize,
    problem: &'static str,
}

/// Parsed filters.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    field: Field,
    test: Test,
}

/// A field of a snapshot.
#[derive(Debug)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// A field that snapshots do not have: absent from all.
    Other,
}

#[derive(Debug)]
enum Test {
    Present,
    Is(String),
    IsNot(String),
    Like(Regex),
}

impl Filters {
    /// Parses the filters of a request; none match everything.
    pub(crate) fn parse(filters: &[String]) -> Result<Self, FilterError> {
        let parsed = filters.iter().map(|filter| {
            let mut scanner = Scanner::new(filter);
            selectors(&mut scanner).map_err(|problem| FilterError { filter: filter.clone(), at: scanner.at(), problem })
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// Does one of the filters match?
    pub(crate) fn matches(&self, snapshot: &Snapshot) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.matches(snapshot)))
    }
}

impl Selector {
    fn matches(&self, snapshot: &Snapshot) -> bool {
        let kind;
        let value = match &self.field {
            Field::Name => Some(snapshot.name.as_str()),
            Field::Parent => Some(snapshot.parent.as_str()),
            Field::Kind => {
                kind = snapshot.kind.to_string();
                Some(kind.as_str())
            }
            Field::Label(name) => snapshot.labels.get(name).map(String::as_str),
            Field::Other => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Is(wanted) => value == Some(wanted),
            // As containerd has it: an absent value is the empty one.
            Test::IsNot(unwanted) => value.unwrap_or("") != unwanted,
            Test::Like(pattern) => pattern.is_match(value.unwrap_or("")),
        }
    }
}

fn selectors(scanner: &mut Scanner<'_>) -> Result<Vec<Selector>, &'static str> {
    let mut all = Vec::new();
    if scanner.at_end() {
        return Ok(all);
    }
    loop {
        all.push(selector(scanner)?);
        if scanner.at_end() {
            return Ok(all);
        }
        if !scanner.eat(",") {
            return Err("expected a comma or the end");
        }
    }
}

fn selector(scanner: &mut Scanner<'_>) -> Result<Selector, &'static str> {
    let mut path = vec![scanner.field()?];
    while scanner.eat(".") {
        path.push(scanner.field()?);
    }
    let field = match path[0].as_str() {
        "name" => Field::Name,
        "parent" => Field::Parent,
        "kind" => Field::Kind,
        "labels" => Field::Label(path[1..].join(".")),
        _ => Field::Other,
    };
    let test = if scanner.at_end() || scanner.sees(",") {
        Test::Present
    } else if scanner.eat("==") {
        Test::Is(scanner.value(false)?)
    } else if scanner.eat("!=") {
        Test::IsNot(scanner.value(false)?)
    } else if scanner.eat("~=") {
        Test::Like(Regex::new(&scanner.value(true)?).map_err(|_| "this is no regular expression")?)
    } else {
        return Err("expected ==, != or ~=");
    };
    Ok(Selector { field, test })
}

#[cfg(test)]
mod tests;
