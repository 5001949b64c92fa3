//! User and group mappings that containerd passes as labels (`<container>:<host>:<length>`, comma separated; containerd's
//! `internal/userns`).

use std::collections::BTreeMap;

use silk_model::{IdMaps, IdRange};

/// Maps user IDs of a pod's user namespace.
pub(crate) const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
/// Maps its group IDs.
pub(crate) const GID_MAP: &str = "containerd.io/snapshot/gidmapping";

/// Of all IDs there are, but for the kernel's "no ID".
const ALL: IdRange = IdRange { container: 0, host: 0, length: u32::MAX };

/// A mapping that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label {label} = {value:?} does not say which host ID the container's root has")]
pub struct IdMapError {
    label: &'static str,
    value: String,
}

/// What the labels map, if they map any. A missing one of the two leaves all IDs as they are. The container's root is mapped, or it
/// is an error.
pub(crate) fn maps(labels: &BTreeMap<String, String>) -> Result<Option<IdMaps>, IdMapError> {
    if !is_mapped(labels) {
        return Ok(None);
    }
    Ok(Some(IdMaps { uids: ranges(UID_MAP, labels)?, gids: ranges(GID_MAP, labels)? }))
}

/// Is a snapshot with these labels shown with other owners?
pub(crate) fn is_mapped(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(UID_MAP) || labels.contains_key(GID_MAP)
}

/// The host's user and group of the container's root.
pub(crate) fn root(maps: &IdMaps) -> (u32, u32) {
    let host = |ranges: &[IdRange]| ranges.iter().find(|range| range.container == 0).map_or(0, |range| range.host);
    (host(&maps.uids), host(&maps.gids))
}

fn ranges(label: &'static str, labels: &BTreeMap<String, String>) -> Result<Vec<IdRange>, IdMapError> {
    let Some(value) = labels.get(label) else { return Ok(vec![ALL]) };
    let ranges: Option<Vec<_>> = value.split(',').map(range).collect();
    // containerd takes ranges without an ID, the kernel does not.
    let ranges = ranges.map(|all| all.into_iter().filter(|range| range.length > 0).collect::<Vec<_>>());
    let has_root = |ranges: &Vec<IdRange>| ranges.iter().any(|range| range.container == 0);
    ranges.filter(has_root).ok_or_else(|| IdMapError { label, value: value.clone() })
}

/// [`None`] for what has another form, or an ID that the kernel does not have.
fn range(text: &str) -> Option<IdRange> {
    let mut numbers = text.split(':').map(str::parse::<u32>);
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(container)), Some(Ok(host)), Some(Ok(length)), None) => {
            container.checked_add(length)?;
            host.checked_add(length)?;
            Some(IdRange { container, host, length }).filter(|_| host != u32::MAX && container != u32::MAX)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn range(container: u32, host: u32, length: u32) -> IdRange {
        IdRange { container, host, length }
    }

    #[test]
    fn all_ranges_of_both_labels_count() {
        assert_eq!(maps(&labels(&[])), Ok(None));
        let both = maps(&labels(&[(UID_MAP, "0:1000:65536"), (GID_MAP, "5:9:1,7:7:0,0:2000:4")])).unwrap().unwrap();
        assert_eq!(both.uids, [range(0, 1000, 65536)]);
        assert_eq!(both.gids, [range(5, 9, 1), range(0, 2000, 4)]);
        assert_eq!(root(&both), (1000, 2000));
        let users = maps(&labels(&[(UID_MAP, "0:7:1")])).unwrap().unwrap();
        assert_eq!((users.gids.as_slice(), root(&users)), (&[ALL][..], (7, 0)));
    }

    #[test]
    fn what_does_not_map_the_root_is_refused() {
        for bad in
            ["", "0:1", "0:1:1:1", "1:5:10", "0:x:1", "0:1:0", "-1:0:1", "0:4294967295:1", "0:9:1,4294967290:5:10"]
        {
            assert!(maps(&labels(&[(UID_MAP, bad)])).is_err(), "{bad}");
        }
    }
}
