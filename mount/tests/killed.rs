//! A process that shows what it serves itself is killed in the middle of that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::mount::{UnmountFlags, unmount};
use silk_fuse::{Config, Object, Reply, Session, Slot, Source as Served};
use silk_layer::{
    erofs::{Device, Plan},
    toc::Time,
    tree::{Node, NodeId, NodeKind, Source, SourceExtent, Tree},
};
use silk_model::Digest;
use silk_mount::{Ground, Mounts, RungChoice, Trees, Variant, View};

/// The child's root and rung, in its environment.
const CHILD: &str = "SILK_TEST_CHILD";

/// Takes a question, and never answers.
#[derive(Debug)]
struct Silent;

impl Served for Silent {
    fn find(&self, _: &str) -> Option<Slot> {
        println!("\nasked");
        loop {
            thread::park();
        }
    }

    fn object(&self, _: Slot) -> Option<Object> {
        None
    }

    fn read(&self, _: Slot, _: u64, _: u32, _: Reply) {}
}

#[derive(Debug)]
struct Below(PathBuf);

impl Trees for Below {
    fn tree(&self, name: &str, _: &Path, _: &[Digest]) -> io::Result<PathBuf> {
        Ok(self.0.join(name))
    }

    fn gone(&self, _: &str) {}

    fn lied(&self, _: &str) {}
}

/// Not a test of its own: the process that is killed.
#[test]
fn privileged_child_that_asks_itself() {
    let Ok(child) = env::var(CHILD) else { return };
    let (root, rung) = child.split_once(' ').unwrap();
    let root = Path::new(root);
    let rung = match rung {
        "file" => RungChoice::File,
        "loop" => RungChoice::Loop,
        _ => RungChoice::Tree,
    };
    let at = root.join("fuse");
    let _session = Session::mount(&at, Arc::new(Silent), Config::default()).unwrap();
    let mounts = Mounts::open(root, rung, Some(Arc::new(Below(at.clone())))).unwrap();
    let node = |kind| Node { kind, mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: BTreeMap::new() };
    let extents = [SourceExtent { source: Source::Own, logical: 0, offset: 512, len: 512 }].into();
    let names = NodeKind::Dir([(b"file"[..].into(), NodeId(1))].into());
    let tree = Tree { nodes: vec![node(names), node(NodeKind::File { size: 512, extents })] };
    let layer = Digest::of(b"layer");
    let view = View { diff_id: layer, variant: Variant::Shared };
    let (mut image, meta) = (Vec::new(), root.join("erofs"));
    let plan = Plan::new(&tree, &[Device { source: Source::Own, size: 1024, layer }], [0; 16]).unwrap();
    plan.write(&mut image, &mut |_, _, _| Err(io::ErrorKind::Unsupported.into())).unwrap();
    fs::write(&meta, image).unwrap();
    let shown = mounts.show(&view, &meta, &[at.join(layer.hex())], Ground::Served);
    unreachable!("{shown:?}");
}

/// It would wait for its own answer for ever, with its store locked, and nothing but an unmount by hand would end it.
#[test]
fn privileged_a_process_that_waits_for_itself_can_be_killed() {
    for rung in ["file", "loop", "tree"] {
        let root = tempfile::tempdir().unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "privileged_child_that_asks_itself", "--nocapture"])
            .env(CHILD, format!("{} {rung}", root.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "asked"), "{rung}");
        child.kill().unwrap();
        let killed = Instant::now();
        while killed.elapsed() < Duration::from_secs(10) && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
        let ended = child.try_wait().unwrap().is_some();
        // Ends the connection, and so the process.
        let _ = unmount(root.path().join("fuse"), UnmountFlags::FORCE | UnmountFlags::DETACH);
        child.wait().unwrap();
        assert!(ended, "{rung}: it was killed, and stays");
    }
}
