//! What containerd mounts for a snapshot: the same mounts as those of its own overlay snapshotter
//! (`plugins/snapshots/overlay`), so that everything that reads them (differs, shims, runtimes) finds what it knows.
//!
//! One thing differs: never the options `uidmap` and `gidmap`, by which that one asks for the owners of a pod's user namespace. For them
//! containerd (2.1) clones the directory that all lower directories have in common without the mounts below it, and layers are such
//! mounts. So silk makes the clones itself ([`Layers::mapped`](crate::Layers::mapped)), and an ordinary overlay stands on them.

use std::path::{Path, PathBuf};

use silk_api::containerd::types::Mount;

use crate::{Kind, Snapshot, dirs::Dirs};

/// Does the kernel's overlayfs know `index=off`? An index would refuse an upper directory whose lower ones come from
/// other file systems than last time.
pub(crate) fn knows_index() -> bool {
    Path::new("/sys/module/overlay/parameters/index").exists()
}

/// The mounts of an active snapshot or a view on `lowers`, top first.
pub(crate) fn mounts(index_off: bool, dirs: &Dirs, snapshot: &Snapshot, lowers: &[PathBuf]) -> Vec<Mount> {
    match (snapshot.kind, lowers) {
        (Kind::View, [only]) => bind(only, "ro"),
        (Kind::View, []) => bind(&dirs.fs(snapshot.id), "ro"),
        (_, []) => bind(&dirs.fs(snapshot.id), "rw"),
        (kind, lowers) => {
            let mut options = Vec::new();
            if kind != Kind::View {
                options.push(format!("workdir={}", dirs.work(snapshot.id).display()));
                options.push(format!("upperdir={}", dirs.fs(snapshot.id).display()));
            }
            let lowers: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
            options.push(format!("lowerdir={}", lowers.join(":")));
            options.extend(index_off.then(|| "index=off".to_owned()));
            vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
        }
    }
}

fn bind(source: &Path, access: &str) -> Vec<Mount> {
    let options = vec![access.to_owned(), "rbind".to_owned()];
    vec![Mount { r#type: "bind".into(), source: source.display().to_string(), target: String::new(), options }]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Time, Usage};

    fn snapshot(kind: Kind) -> Snapshot {
        let time = Time { secs: 0, nanos: 0 };
        let (name, parent, usage, labels) = (String::new(), String::new(), Usage::default(), BTreeMap::new());
        Snapshot { name, id: 5, parent, kind, created: time, updated: time, labels, usage, remote: None }
    }

    #[test]
    fn mounts_are_those_of_containerds_overlay_snapshotter() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::open(root.path()).unwrap();
        let base = root.path().join("snapshots/5").display().to_string();
        let lowers = [PathBuf::from("/a"), PathBuf::from("/b")];
        let shown = |index_off, kind, lowers: &[PathBuf]| {
            let mounts = mounts(index_off, &dirs, &snapshot(kind), lowers);
            assert_eq!(mounts.len(), 1);
            (mounts[0].r#type.clone(), mounts[0].source.clone(), mounts[0].options.join(" "))
        };
        let bind = |source: &str, options: &str| ("bind".to_owned(), source.to_owned(), options.to_owned());
        let overlay = |options: String| ("overlay".to_owned(), "overlay".to_owned(), options);
        assert_eq!(shown(true, Kind::Active, &[]), bind(&format!("{base}/fs"), "rw rbind"));
        assert_eq!(shown(true, Kind::View, &[]), bind(&format!("{base}/fs"), "ro rbind"));
        assert_eq!(shown(true, Kind::View, &lowers[..1]), bind("/a", "ro rbind"));
        assert_eq!(shown(true, Kind::View, &lowers), overlay("lowerdir=/a:/b index=off".to_owned()));
        let active = format!("workdir={base}/work upperdir={base}/fs lowerdir=/a");
        assert_eq!(shown(true, Kind::Active, &lowers[..1]), overlay(format!("{active} index=off")));
        assert_eq!(shown(false, Kind::Active, &lowers[..1]), overlay(active));
    }
}
