//! Many that show and retire layers at the same time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use silk_model::chain_ids;
use silk_mount::RungChoice;

use crate::fake::{Layers, Tar, base, read};

/// Sets it when it goes, also when an assertion fails: the scope then waits for threads that wait for this.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn privileged_many_containers_at_once_make_each_image_once() {
    let layers = Layers::new();
    let views = layers.views(RungChoice::Auto);
    let chain = [layers.add(&base()), layers.add(&Tar::new().file("etc/added", "added"))];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| views.lowers(&layers, &chain).unwrap());
        }
    });
    assert_eq!(views.mounts().shown().len(), 2);
    // The base to learn of it; the top to learn that it depends; then both for the top's view.
    assert_eq!(layers.decoded.lock().unwrap().len(), 4);
    assert_eq!(chain_ids(&chain).len(), 2);
}

/// A table of contents and its tree take up to 400 bytes an entry.
#[test]
fn privileged_of_many_large_images_at_once_one_is_in_memory() {
    let mut layers = Layers::new();
    layers.entries = 60_000;
    let views = layers.views(RungChoice::Auto);
    let image = |nr: u32| {
        [Tar::new().file("bin", &nr.to_string()), Tar::new().file("top", &nr.to_string()).hard_link("sh", "bin")]
            .map(|tar| layers.add(&tar))
    };
    let images: Vec<_> = (0..8).map(image).collect();
    std::thread::scope(|scope| {
        for chain in &images {
            scope.spawn(|| views.lowers(&layers, chain).unwrap());
        }
    });
    let [now, most] = &layers.decoding;
    assert_eq!((now.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (0, 1));
    assert_eq!(views.mounts().shown().len(), 16);
}

#[test]
fn privileged_small_layers_of_an_image_are_made_at_once() {
    // Both are asked for their names before either is answered, if there are processors for both.
    let together = std::thread::available_parallelism().map_or(1, |n| n.get().min(2)) as u32;
    let mut layers = Layers::new();
    layers.together = together;
    let views = layers.views(RungChoice::Auto);
    let chain = [layers.add(&base()), layers.add(&Tar::new().file("own", "own"))];
    assert_eq!(views.lowers(&layers, &chain).unwrap().len(), 2);
    assert_eq!(layers.decoding[1].load(Ordering::SeqCst), together);
    assert_eq!(layers.decoded.lock().unwrap().len(), 2);
}

#[test]
fn privileged_a_layer_is_retired_unless_it_is_in_use() {
    let layers = Layers::new();
    let views = layers.views(RungChoice::Auto);
    let chain = [layers.add(&base()), layers.add(&Tar::new().file("etc/added", "added").hard_link("sh", "bin"))];
    let lowers = views.lowers(&layers, &chain).unwrap();
    assert_eq!(views.retire(&layers, &chain[0], &|| true, || unreachable!()).unwrap(), None::<()>);
    assert!(views.shows(&chain[0]));
    assert!(lowers.iter().all(|lower| lower.exists()));
    let deleted =
        views.retire(&layers, &chain[0], &|| false, || layers.known.lock().unwrap().remove(&chain[0]).is_some());
    assert_eq!(deleted.unwrap(), Some(true));
    assert!(!views.shows(&chain[0]));
    assert!(lowers.iter().all(|lower| !lower.exists()), "the top's view held the base's data");
}

/// Containers come and go while the janitor retires what none of them uses: an overlay always has all of its layers.
#[test]
fn privileged_who_is_in_use_first_keeps_its_layers() {
    let layers = Layers::new();
    let views = layers.views(RungChoice::Auto);
    let chain = [layers.add(&base()), layers.add(&Tar::new().file("etc/added", "added").hard_link("sh", "bin"))];
    let (users, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                for layer in &chain {
                    let in_use = || users.load(Ordering::SeqCst) > 0;
                    views.retire(&layers, layer, &in_use, || ()).unwrap();
                }
            }
        });
        let _done = Done(&done);
        for _ in 0..200 {
            users.fetch_add(1, Ordering::SeqCst);
            let lowers = views.lowers(&layers, &chain).unwrap();
            assert_eq!(read(&lowers[0].join("etc/added")) + &read(&lowers[1].join("bin")), "addedbusybox");
            users.fetch_sub(1, Ordering::SeqCst);
            std::thread::yield_now();
        }
    });
}
