//! User and group mappings that containerd passes as labels (`<container>:<host>:<length>`, comma separated; containerd's
//! `internal/userns`).

use std::collections::BTreeMap;

/// Maps user IDs of a pod's user namespace.
pub(crate) const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
/// Maps its group IDs.
pub(crate) const GID_MAP: &str = "containerd.io/snapshot/gidmapping";

/// A mapping that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label {label} = {value:?} does not say which host ID the container's root has")]
pub struct IdMapError {
    label: &'static str,
    value: String,
}

/// The host's user and group of the container's root, if the labels map any. A missing one of the two maps nothing.
pub(crate) fn root(labels: &BTreeMap<String, String>) -> Result<Option<(u32, u32)>, IdMapError> {
    if !labels.contains_key(UID_MAP) && !labels.contains_key(GID_MAP) {
        return Ok(None);
    }
    Ok(Some((host_root(UID_MAP, labels)?, host_root(GID_MAP, labels)?)))
}

fn host_root(label: &'static str, labels: &BTreeMap<String, String>) -> Result<u32, IdMapError> {
    let Some(value) = labels.get(label) else { return Ok(0) };
    let mut root = None;
    for part in value.split(',') {
        let mut numbers = part.split(':').map(str::parse::<u32>);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(container)), Some(Ok(host)), Some(Ok(length)), None) => {
                // u32::MAX is the kernel's "no ID".
                if container == 0 && length > 0 && host != u32::MAX {
                    root.get_or_insert(host);
                }
            }
            _ => return Err(IdMapError { label, value: value.clone() }),
        }
    }
    root.ok_or_else(|| IdMapError { label, value: value.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_root_of_the_container_has_a_host_id() {
        assert_eq!(root(&labels(&[])), Ok(None));
        assert_eq!(root(&labels(&[(UID_MAP, "0:1000:65536"), (GID_MAP, "5:9:1,0:2000:1")])), Ok(Some((1000, 2000))));
        assert_eq!(root(&labels(&[(UID_MAP, "0:7:1")])), Ok(Some((7, 0))));
        for bad in ["", "0:1", "0:1:1:1", "1:5:10", "0:x:1", "0:1:0", "-1:0:1", "0:4294967295:1"] {
            assert!(root(&labels(&[(UID_MAP, bad)])).is_err(), "{bad}");
        }
    }
}
