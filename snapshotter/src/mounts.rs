//! What containerd mounts for a snapshot: the same mounts as those of its own overlay snapshotter
//! (`plugins/snapshots/overlay`), so that everything that reads them (differs, shims, runtimes) finds what it knows.

use std::path::{Path, PathBuf};

use silk_api::containerd::types::Mount;

use crate::{
    Kind, Snapshot,
    dirs::Dirs,
    idmap::{GID_MAP, UID_MAP},
};

/// How mounts are made on this host.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    /// `index=off`, where the kernel's overlayfs knows it: an index would refuse an upper directory whose lower ones come
    /// from other file systems than last time.
    pub(crate) index_off: bool,
    /// Ask for idmapped mounts.
    pub(crate) remap_ids: bool,
}

impl Style {
    pub(crate) fn of_host(remap_ids: bool) -> Self {
        Self { index_off: Path::new("/sys/module/overlay/parameters/index").exists(), remap_ids }
    }
}

/// The mounts of an active snapshot or a view on `lowers`, top first.
pub(crate) fn mounts(style: &Style, dirs: &Dirs, snapshot: &Snapshot, lowers: &[PathBuf]) -> Vec<Mount> {
    let mut options = Vec::new();
    if style.remap_ids {
        let map = |option, label| snapshot.labels.get(label).map(|map| format!("{option}={map}"));
        options.extend(map("uidmap", UID_MAP));
        options.extend(map("gidmap", GID_MAP));
    }
    match (snapshot.kind, lowers) {
        (Kind::View, [only]) => bind(only, "ro", options),
        (Kind::View, []) => bind(&dirs.fs(snapshot.id), "ro", options),
        (_, []) => bind(&dirs.fs(snapshot.id), "rw", options),
        (kind, lowers) => {
            if kind != Kind::View {
                options.push(format!("workdir={}", dirs.work(snapshot.id).display()));
                options.push(format!("upperdir={}", dirs.fs(snapshot.id).display()));
            }
            let lowers: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
            options.push(format!("lowerdir={}", lowers.join(":")));
            options.extend(style.index_off.then(|| "index=off".to_owned()));
            vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
        }
    }
}

fn bind(source: &Path, access: &str, mut options: Vec<String>) -> Vec<Mount> {
    options.extend([access.to_owned(), "rbind".to_owned()]);
    vec![Mount { r#type: "bind".into(), source: source.display().to_string(), target: String::new(), options }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Time, Usage};

    fn snapshot(kind: Kind) -> Snapshot {
        let time = Time { secs: 0, nanos: 0 };
        let labels = [(UID_MAP.to_owned(), "0:1000:9".to_owned())].into();
        let (name, parent, usage) = (String::new(), String::new(), Usage::default());
        Snapshot { name, id: 5, parent, kind, created: time, updated: time, labels, usage, remote: None }
    }

    #[test]
    fn mounts_are_those_of_containerds_overlay_snapshotter() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::open(root.path()).unwrap();
        let base = root.path().join("snapshots/5").display().to_string();
        let style = Style { index_off: true, remap_ids: false };
        let lowers = [PathBuf::from("/a"), PathBuf::from("/b")];
        let shown = |style: &Style, kind, lowers: &[PathBuf]| {
            let mounts = mounts(style, &dirs, &snapshot(kind), lowers);
            assert_eq!(mounts.len(), 1);
            (mounts[0].r#type.clone(), mounts[0].source.clone(), mounts[0].options.join(" "))
        };
        let bind = |source: &str, options: &str| ("bind".to_owned(), source.to_owned(), options.to_owned());
        let overlay = |options: String| ("overlay".to_owned(), "overlay".to_owned(), options);
        assert_eq!(shown(&style, Kind::Active, &[]), bind(&format!("{base}/fs"), "rw rbind"));
        assert_eq!(shown(&style, Kind::View, &[]), bind(&format!("{base}/fs"), "ro rbind"));
        assert_eq!(shown(&style, Kind::View, &lowers[..1]), bind("/a", "ro rbind"));
        assert_eq!(shown(&style, Kind::View, &lowers), overlay("lowerdir=/a:/b index=off".to_owned()));
        let active = format!("workdir={base}/work upperdir={base}/fs lowerdir=/a");
        assert_eq!(shown(&style, Kind::Active, &lowers[..1]), overlay(format!("{active} index=off")));
        let style = Style { index_off: false, remap_ids: true };
        assert_eq!(shown(&style, Kind::Active, &lowers[..1]), overlay(format!("uidmap=0:1000:9 {active}")));
    }
}
