//! Names that were not a layer's: what was made of them goes, whenever that becomes known; and views of chains that nobody has any more.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use silk_layer::toc::Toc;
use silk_model::{Class, Digest};
use silk_mount::{ChainName, LayerFiles as _, RungChoice, Variant, View, ViewError};

use crate::fake::{Layers, RUNGS, Tar, base, read};

/// The table of contents of [`base`] with another mode of `etc`, and the true one.
fn lie(layers: &Layers, base: Digest) -> [(Toc, u64); 2] {
    let truth = layers.known.lock().unwrap()[&base].clone();
    let mut entries: Vec<_> = truth.0.entries().collect();
    entries.iter_mut().filter(|entry| entry.path.starts_with(b"etc")).for_each(|etc| etc.mode = 0o777);
    [(Toc::new(truth.0.size(), &entries), truth.1), truth]
}

/// `etc` is implied: its mode comes from below, and nothing else does.
fn top() -> Tar {
    Tar::new().file("etc/added", "added")
}

fn mode(merged: &Path) -> u32 {
    fs::metadata(merged.join("etc")).unwrap().mode() & 0o7777
}

#[test]
fn privileged_names_that_lied_are_gone_from_views_of_other_layers() {
    let layers = Layers::new();
    let mut views = layers.views(RungChoice::Auto);
    let (base, top) = (layers.add(&base()), layers.add(&top()));
    let [lie, truth] = lie(&layers, base);
    for (nr, restarts) in [false, true].into_iter().enumerate() {
        layers.known.lock().unwrap().insert(base, lie.clone());
        assert_eq!(mode(&layers.overlay(&views, &[base, top], &format!("lie-{nr}"))), 0o777);
        if restarts {
            // What a view was made of is not known any more.
            views = layers.views(RungChoice::Auto);
            views.sweep(&layers, &[base, top]).unwrap();
        }
        layers.known.lock().unwrap().insert(base, truth.clone());
        views.renew_layer(&layers, &base, true).unwrap();
        assert_eq!(mode(&layers.overlay(&views, &[base, top], &format!("truth-{nr}"))), 0o750);
        views.renew_layer(&layers, &base, true).unwrap();
    }
}

/// The image is made of names that were read before the lie was found, and is finished after.
#[test]
fn privileged_what_is_made_of_names_that_are_given_up_meanwhile_is_not_shown() {
    // The layer's own image, when it is learned and when it is made again; and that of a layer above.
    for (nr, (is_learned, is_chain)) in [(false, false), (true, false), (true, true)].into_iter().enumerate() {
        let layers = Layers::new();
        let views = Arc::new(layers.views(RungChoice::Auto));
        let (base, top) = (layers.add(&base()), layers.add(&top()));
        let [lie, truth] = lie(&layers, base);
        layers.known.lock().unwrap().insert(base, lie);
        if is_learned {
            views.lowers(&layers, &[base]).unwrap();
        }
        if is_learned && !is_chain {
            views.hide_layer(&layers, &base).unwrap();
            fs::remove_file(layers.layer_path(&base).join("erofs")).unwrap();
        }
        let found = Arc::clone(&views);
        let then = move |layers: &Layers| {
            layers.known.lock().unwrap().insert(base, truth);
            found.renew_layer(layers, &base, true).unwrap();
        };
        *layers.after_toc.lock().unwrap() = Some((base, Box::new(then)));
        let merged = layers.overlay(&views, &[base, top], "merged");
        assert!(layers.after_toc.lock().unwrap().is_none(), "{nr}: it was found");
        assert_eq!(mode(&merged), 0o750, "{nr}");
    }
}

#[test]
fn privileged_views_of_chains_that_are_gone_go() {
    let layers = Layers::new();
    let mut views = layers.views(RungChoice::Auto);
    let other = Tar::new().dir("etc/", 0o711, 99).file("bin", "toybox").file("opt", "a file");
    let (old, new, top) = (layers.add(&base()), layers.add(&other), layers.add(&top()));
    for restarts in [false, true] {
        views.lowers(&layers, &[old, top]).unwrap();
        views.lowers(&layers, &[new, top]).unwrap();
        if restarts {
            views = layers.views(RungChoice::Auto);
            views.sweep(&layers, &[old, new, top]).unwrap();
        }
        // The chain ID of one layer is its diff ID.
        let in_use = || HashSet::from([ChainName::of(&new)]);
        views.retire_chains(&in_use).unwrap();
        let shown = |below| views.mounts().is_shown(&View { diff_id: top, variant: Variant::Chain(below) });
        assert_eq!((shown(old), shown(new)), (false, true));
        let images = fs::read_dir(layers.layer_path(&top)).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(images.filter(|name| name.to_str().unwrap().starts_with("erofs-")).count(), 1);
    }
}

/// A mount over its data would show zeros.
#[test]
fn privileged_a_layer_with_holes_that_nothing_serves_is_not_shown() {
    for rung in RUNGS {
        let mut layers = Layers::new();
        let views = layers.views(rung);
        let chain = [layers.add(&base())];
        layers.holes = true;
        let error = views.lowers(&layers, &chain).unwrap_err();
        assert!(matches!(error, ViewError::NotWhole(layer) if layer == chain[0]), "{error}");
        layers.nameless = true;
        let error = views.lowers(&layers, &chain).unwrap_err();
        assert!(error.class() == Class::NoSpace && error.to_string().contains("no room for a name"), "{error}");
        (layers.holes, layers.nameless) = (false, false);
        views.lowers(&layers, &chain).unwrap();
        // Made anew, it keeps what it has.
        layers.holes = true;
        views.renew_layer(&layers, &chain[0], false).unwrap_err();
        assert_eq!(read(&views.lowers(&layers, &chain).unwrap()[0].join("bin")), "busybox");
    }
}
