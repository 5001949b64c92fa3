//! The mount's own life.

use std::{
    env, fs,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use silk_fuse::{Config, FuseError, Session};

use crate::store::{Mode, Served, Store};

fn mounts_on(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4) == path.to_str()).count()
}

#[test]
fn privileged_a_session_leaves_nothing() {
    let mut served = Served::new();
    served.store.add("layer", 1, vec![1; 10]);
    assert_eq!(fs::read(served.at.join("layer")).unwrap(), [1; 10]);
    assert_eq!(mounts_on(&served.at), 1);
    let store = Arc::downgrade(&served.store);
    served.session.take().unwrap().unmount();
    assert_eq!(mounts_on(&served.at), 0);
    drop(served);
    assert!(store.upgrade().is_none(), "the workers are gone and with them the source");
}

#[test]
fn privileged_a_mount_in_use_ends_all_the_same() {
    let mut served = Served::new();
    served.store.add("layer", 1, vec![1; 100_000]);
    served.store.set(1, Mode::Keep);
    let open = File::open(served.at.join("layer")).unwrap();
    let path = served.at.join("layer");
    let reader = thread::spawn(move || fs::read(path));
    let kept = served.store.kept(1);
    served.session.take().unwrap().unmount();
    assert_eq!(mounts_on(&served.at), 0);
    assert!(reader.join().unwrap().is_err(), "whoever waited is told");
    kept.into_iter().for_each(|kept| served.store.answer(kept));
    drop(open);
}

#[test]
fn privileged_a_mount_that_somebody_detached_ends_and_leaves_others_alone() {
    let mut served = Served::new();
    served.store.add("layer", 1, vec![1; 10]);
    let open = File::open(served.at.join("layer")).unwrap();
    assert!(served.session().is_mounted());
    unmount(&served.at, UnmountFlags::DETACH).unwrap();
    assert!(!served.session().is_mounted());
    mount("none", &served.at, "tmpfs", MountFlags::empty(), None).unwrap();
    let store = Arc::downgrade(&served.store);
    served.session.take().unwrap().unmount();
    assert_eq!(mounts_on(&served.at), 1, "the other mount stays");
    let refused = Session::mount(&served.at, Arc::new(Store::default()), Config::default()).unwrap_err();
    assert!(matches!(&refused, FuseError::InTheWay { fs_type, .. } if fs_type == "tmpfs"), "{refused}");
    unmount(&served.at, UnmountFlags::empty()).unwrap();
    drop((open, served));
    assert!(store.upgrade().is_none());
}

#[test]
fn privileged_an_unmounted_session_ends_by_itself() {
    let mut served = Served::new();
    unmount(&served.at, UnmountFlags::empty()).unwrap();
    // It has the number that ours had.
    mount("none", &served.at, "tmpfs", MountFlags::empty(), None).unwrap();
    served.session.take().unwrap().unmount();
    assert_eq!(mounts_on(&served.at), 1);
    unmount(&served.at, UnmountFlags::empty()).unwrap();
    let session = Session::mount(&served.at, served.store.clone(), Config::default()).unwrap();
    assert_eq!(mounts_on(&served.at), 1);
    session.unmount();
}

#[test]
fn privileged_an_aborted_session_says_so() {
    let served = Served::new();
    served.store.add("layer", 1, vec![1; 10]);
    let open = File::open(served.at.join("layer")).unwrap();
    assert_eq!(unmount(&served.at, UnmountFlags::FORCE), Err(Errno::BUSY));
    assert_eq!(mounts_on(&served.at), 1, "it is dead, but there");
    let began = Instant::now();
    while served.session().is_mounted() {
        assert!(began.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(5));
    }
    drop(open);
    unmount(&served.at, UnmountFlags::DETACH).unwrap();
}

/// Not a test of its own: the process that `privileged_a_dead_mount_is_replaced` kills.
#[test]
fn privileged_child_that_serves_until_it_is_killed() {
    let Some(at) = env::var_os("SILK_FUSE_CHILD") else { return };
    let _session = Session::mount(Path::new(&at), Arc::new(Store::default()), Config::default()).unwrap();
    println!("\nserving");
    loop {
        thread::park();
    }
}

#[test]
fn privileged_a_dead_mount_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("fuse");
    for _ in 0..2 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "mounts::privileged_child_that_serves_until_it_is_killed", "--nocapture"])
            .env("SILK_FUSE_CHILD", &at)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "serving"));
        child.kill().unwrap();
        child.wait().unwrap();
        let dead = fs::metadata(&at).unwrap_err();
        assert_eq!(dead.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    }
    let store = Arc::new(Store::default());
    store.add("layer", 1, b"alive".to_vec());
    let session = Session::mount(&at, store, Config::default()).unwrap();
    assert_eq!(fs::read(at.join("layer")).unwrap(), b"alive");
    assert_eq!(mounts_on(&at), 1);
    session.unmount();
    assert_eq!(mounts_on(&at), 0);
}

#[test]
fn privileged_what_is_gone_is_forgotten() {
    let served = Served::new();
    served.store.add("layer", 1, vec![1; 10]);
    served.session().forget(silk_fuse::Slot(1), "layer");
    assert_eq!(fs::read(served.at.join("layer")).unwrap(), [1; 10]);
    served.store.remove("layer");
    assert!(served.at.join("layer").exists(), "the kernel keeps what it was told");
    served.session().forget(silk_fuse::Slot(1), "layer");
    assert!(!served.at.join("layer").exists());
    served.store.add("layer", 2, vec![2; 10]);
    assert_eq!(fs::read(served.at.join("layer")).unwrap(), [2; 10]);
    // An object whose content failed and is fetched anew.
    served.store.add("layer", 2, vec![3; 10]);
    assert_eq!(fs::read(served.at.join("layer")).unwrap(), [2; 10]);
    served.session().forget(silk_fuse::Slot(2), "layer");
    assert_eq!(fs::read(served.at.join("layer")).unwrap(), [3; 10]);
}
