//! The filters that containerd sends, those of its documentation and the edges of its grammar.

use std::collections::BTreeMap;

use super::*;
use crate::{Kind, Time, Usage};

fn snapshot() -> Snapshot {
    let labels = [("containerd.io/snapshot.ref", "sha256:0a"), ("l", "2"), ("a.b", "x y,z"), ("quote", "say \"hi\"")];
    Snapshot {
        name: "k8s.io/4/a b".to_owned(),
        id: 7,
        parent: "silk/3".to_owned(),
        kind: Kind::Committed,
        created: Time { secs: 1, nanos: 2 },
        updated: Time { secs: 1, nanos: 2 },
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>(),
        usage: Usage::default(),
        remote: None,
    }
}

fn matches(filters: &[&str]) -> bool {
    let filters: Vec<_> = filters.iter().map(|f| (*f).to_owned()).collect();
    Filters::parse(&filters).unwrap().matches(&snapshot())
}

#[test]
fn what_matches() {
    for filters in [
        vec![],
        vec![""],
        vec![r#"labels."containerd.io/snapshot.ref"==sha256:0a,parent=="silk/3""#],
        vec!["name==nothing", "kind==committed"],
        vec![r#"name=="k8s.io/4/a b""#],
        vec!["labels.l"],
        vec!["labels.l==2, kind"],
        vec!["labels.a.b==\"x y,z\""],
        vec![r#"labels."a.b"=="x\x20y\u002c\172""#],
        vec![r#"labels.quote=="say \"hi\"""#],
        vec!["labels.missing!=x"],
        vec!["name!=other"],
        vec!["parent~=^silk/[0-9]+$"],
        vec![r"parent~=/silk\/\\d/"],
        vec!["parent~=|^silk|"],
        vec!["nonsense!=x"],
    ] {
        assert!(matches(&filters), "{filters:?}");
    }
}

#[test]
fn what_does_not() {
    for filters in [
        vec!["name==nothing"],
        vec!["kind==active"],
        vec!["labels.missing"],
        vec!["labels.missing==x"],
        vec!["kind==committed,labels.l==3"],
        vec!["parent!=silk/3"],
        vec!["nonsense"],
        vec!["name~=^b"],
    ] {
        assert!(!matches(&filters), "{filters:?}");
    }
}

#[test]
fn what_is_refused() {
    for bad in [
        "==x",
        "name=x",
        "name==",
        "name==,kind",
        "name==x,",
        "name x",
        "name==\"x",
        r#"name=="\q""#,
        "name.==x",
        "a-b==x",
        r#"name=="\777""#,
        r#"name=="\xff""#,
        r#"name=="\ud800""#,
        "name~=(",
        "'name'==x",
        "name==\"a\nb\"",
    ] {
        assert!(Filters::parse(&[bad.to_owned()]).is_err(), "{bad}");
    }
}
