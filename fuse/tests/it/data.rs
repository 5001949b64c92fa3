//! Data files: as such, below EROFS, and with reads that wait or fail.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    thread,
};

use rustix::io::Errno;
use silk_fuse::Config;
use silk_layer::tree::NodeId;
use silk_sys::loop_device::LoopDevice;

use crate::{
    erofs::Erofs,
    make::{Image, Make},
    shown::shows,
    store::{Mode, Served},
};

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn privileged_a_data_file_reads_as_it_is() {
    let served = Served::new();
    for (slot, len) in [(0, 0), (1, 1), (2, 4096), (3, 4097), (4, (3 << 20) + 17)] {
        let data = noise(len, u64::from(slot));
        served.store.add(&format!("layer-{slot}"), slot, data.clone());
        let path = served.at.join(format!("layer-{slot}"));
        assert_eq!(fs::metadata(&path).unwrap().len(), len as u64);
        assert!(fs::read(&path).unwrap() == data, "{len}");
        let file = File::open(&path).unwrap();
        let mut end = [0; 10];
        assert_eq!(file.read_at(&mut end, len as u64).unwrap(), 0);
        assert!(fs::write(&path, "x").is_err());
    }
    assert!(!served.at.join("nothing").exists());
    served.store.add("nothing", 9, vec![1]);
    assert!(served.at.join("nothing").exists(), "absence is not remembered");
    let names: Vec<_> = fs::read_dir(&served.at).unwrap().collect();
    assert!(names.is_empty(), "names are found, not listed");
}

#[test]
fn privileged_reads_are_of_a_mebibyte_and_pages_are_kept() {
    let served = Served::new();
    let data = noise(8 << 20, 1);
    served.store.add("layer", 1, data.clone());
    for _ in 0..3 {
        assert!(fs::read(served.at.join("layer")).unwrap() == data);
    }
    let reads = served.store.reads();
    let all: u64 = reads.iter().map(|(_, _, len)| u64::from(*len)).sum();
    assert_eq!(all, 8 << 20, "each byte is asked for once: {reads:?}");
    assert!(reads.iter().any(|(_, _, len)| *len == 1 << 20), "{reads:?}");
}

fn layer() -> Make {
    let mut make = Make::new(1 << 20);
    let dir = make.dir(NodeId(0), b"dir", 0o755);
    for nr in 0..100u64 {
        make.file(dir, format!("file-{nr}").as_bytes(), 1 + nr * 1013, &[(0, nr * 512, 1 + nr * 1013)]);
    }
    make.file(dir, b"large", 900_000, &[(0, 1024, 900_000)]);
    make.file(dir, b"sparse", 100_000, &[(100, 5000, 777), (40_001, 9999, 3), (81_920, 512, 4096)]);
    make
}

#[test]
fn privileged_erofs_reads_its_data_through_fuse() {
    let served = Served::new();
    let make = layer();
    let image = Image::of(&make);
    let devices = served.serve(&image, &make, 0);
    {
        let erofs = Erofs::mount(&image.path, &devices, &served.dir.path().join("file"));
        shows(&make, &erofs.0);
    }
    let attached = |path: &Path| LoopDevice::attach(&File::open(path).unwrap(), path, 512).unwrap();
    let loops: Vec<_> = devices.iter().map(|d| attached(d)).collect();
    let source = attached(&image.path);
    let devices: Vec<_> = loops.iter().map(|l| l.path().to_owned()).collect();
    let erofs = Erofs::mount(source.path(), &devices, &served.dir.path().join("loop"));
    shows(&make, &erofs.0);
}

#[test]
fn privileged_many_reads_wait_while_others_are_answered() {
    let served = Served::new();
    let data = noise(1 << 20, 7);
    for slot in 0..200 {
        served.store.add(&format!("slow-{slot}"), slot, data.clone());
        served.store.set(slot, Mode::Keep);
    }
    served.store.add("quick", 1000, data.clone());
    thread::scope(|scope| {
        for slot in 0..200 {
            let path = served.at.join(format!("slow-{slot}"));
            let data = &data;
            scope.spawn(move || assert!(fs::read(path).unwrap() == *data));
        }
        let kept = served.store.kept(200);
        assert!(fs::read(served.at.join("quick")).unwrap() == data);
        assert!(fs::metadata(served.at.join("slow-1")).is_ok());
        for slot in 0..200 {
            served.store.set(slot, Mode::Answer);
        }
        kept.into_iter().rev().for_each(|kept| served.store.answer(kept));
    });
}

#[test]
fn privileged_a_killed_reader_does_no_harm() {
    let served = Served::new();
    let data = noise(100_000, 3);
    served.store.add("layer", 1, data.clone());
    served.store.set(1, Mode::Keep);
    let path = served.at.join("layer");
    let mut cat = Command::new("cat").arg(&path).stdout(std::process::Stdio::null()).spawn().unwrap();
    let kept = served.store.kept(1);
    cat.kill().unwrap();
    served.store.set(1, Mode::Answer);
    kept.into_iter().for_each(|kept| served.store.answer(kept));
    assert!(!cat.wait().unwrap().success());
    assert!(fs::read(&path).unwrap() == data);
}

#[test]
fn privileged_a_failed_read_is_tried_again() {
    let served = Served::new();
    let make = layer();
    let image = Image::of(&make);
    let devices = served.serve(&image, &make, 0);
    let erofs = Erofs::mount(&image.path, &devices, &served.dir.path().join("mnt"));
    for mode in [Mode::Fail(Errno::IO), Mode::Short, Mode::Drop, Mode::Panic] {
        served.store.set(0, mode);
        // More often than there are workers: none is lost.
        for path in [devices[0].clone(), erofs.0.join("dir/large"), devices[0].clone(), erofs.0.join("dir/file-7")] {
            let error = File::open(&path).unwrap().read(&mut [0; 10]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{mode:?} {path:?}");
        }
    }
    served.store.set(0, Mode::Answer);
    shows(&make, &erofs.0);
}

#[test]
fn privileged_a_panic_in_a_lookup_is_an_error() {
    let served = Served::new();
    served.store.add("layer", 1, vec![1]);
    for _ in 0..5 {
        let error = fs::metadata(served.at.join("panic")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    }
    assert!(served.at.join("layer").exists());
}

#[test]
fn privileged_workers_that_a_disk_holds_up_hold_up_nobody() {
    let served = Served::with(Config { workers: 4, ..Config::default() });
    for slot in 0..4 {
        served.store.add(&format!("layer-{slot}"), slot, noise(10_000, 7));
    }
    let read = |slot: u32| fs::read(served.at.join(format!("layer-{slot}"))).unwrap().len();
    // Whether they come one by one, so that workers stay behind, or at once.
    for round in 1..4 {
        thread::scope(|scope| {
            for slot in 0..3 {
                served.store.set(slot, Mode::Block);
                scope.spawn(move || assert_eq!(read(slot), 10_000));
                if round < 3 {
                    served.store.blocked((round - 1) * 3 + slot as usize + 1);
                }
            }
            served.store.blocked(round * 3);
            assert_eq!(read(3), 10_000);
            assert!(fs::metadata(served.at.join(format!("nothing-{round}"))).is_err());
            (0..3).for_each(|slot| served.store.set(slot, Mode::Answer));
        });
        (0..4).for_each(|slot| served.session().forget(silk_fuse::Slot(slot), &format!("layer-{slot}")));
    }
}
