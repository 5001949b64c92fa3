#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn layer(nr: u8) -> Digest {
    Digest::of(&[nr])
}

fn seen(entrypoint: &str, touches: &[(u8, u64, u64)]) -> Seen {
    let touches = touches.iter().map(|(nr, from, to)| (layer(*nr), from * GRAIN..to * GRAIN)).collect();
    Seen { entrypoint: entrypoint.to_owned(), touches, complete: [layer(1), layer(2)].into() }
}

/// The grains of the first start, in order.
fn grains(profile: &Profile) -> Vec<(Digest, u32)> {
    profile.starts[0].runs.iter().flat_map(|run| (0..run.grains).map(|nr| (run.layer, run.first + nr))).collect()
}

#[test]
fn a_start_is_kept_in_the_order_of_its_touches() {
    let mut profile = Profile::default();
    profile.learn(&Seen {
        touches: vec![
            (layer(2), 100 * GRAIN + 1..100 * GRAIN + 2),
            (layer(1), 5 * GRAIN..7 * GRAIN + 1),
            (layer(2), 0..1),
            (layer(2), 9..9),
        ],
        ..Seen::default()
    });
    assert_eq!(grains(&profile), [(layer(2), 100), (layer(1), 5), (layer(1), 6), (layer(1), 7), (layer(2), 0)]);
    assert_eq!((profile.starts[0].runs.len(), profile.starts[0].bytes()), (3, 5 * GRAIN));
    assert_eq!(profile.starts[0].runs[1].bytes(), 5 * GRAIN..8 * GRAIN);
}

#[test]
fn starts_are_merged_and_what_is_not_touched_any_more_fades() {
    let mut profile = Profile::default();
    profile.learn(&seen("a", &[(1, 0, 1), (1, 50, 51), (2, 7, 8)]));
    for _ in 0..3 {
        profile.learn(&seen("a", &[(2, 7, 8), (1, 0, 1)]));
    }
    assert_eq!(
        grains(&profile),
        [(layer(1), 0), (layer(2), 7), (layer(1), 50)].map(|g| g),
        "by the mean, then by layer"
    );
    // A start that cannot tell takes nothing away.
    profile.learn(&Seen { complete: HashSet::new(), ..seen("a", &[(2, 7, 8)]) });
    assert_eq!(grains(&profile).len(), 3);
    profile.learn(&seen("a", &[(2, 7, 8), (1, 0, 1)]));
    assert_eq!(grains(&profile).len(), 2, "not seen in four starts");
    assert_eq!(profile.starts[0].count, 6);
}

#[test]
fn the_most_frequent_start_comes_first_and_the_rarest_gives_way() {
    let mut profile = Profile::default();
    for (at, name) in ["a", "b", "c", "d", "e", "f", "g", "h", "h", "i"].iter().enumerate() {
        profile.learn(&seen(name, &[(1, at as u64, at as u64 + 1)]));
    }
    let names: Vec<_> = profile.starts.iter().map(|start| start.entrypoint.as_str()).collect();
    assert_eq!(names, ["h", "a", "b", "c", "d", "e", "f", "i"]);
}

#[test]
fn joining_is_a_union_and_doing_it_again_changes_nothing() {
    let (mut ours, mut theirs) = (Profile::default(), Profile::default());
    ours.learn(&seen("a", &[(1, 0, 2)]));
    theirs.learn(&seen("a", &[(1, 40, 42), (1, 0, 1)]));
    theirs.learn(&seen("b", &[(2, 0, 1)]));
    ours.join(&theirs);
    assert_eq!(ours.starts.len(), 2);
    assert_eq!(grains(&ours).into_iter().collect::<HashSet<_>>(), [0, 1, 40, 41].map(|g| (layer(1), g)).into());
    let once = ours.clone();
    ours.join(&once);
    assert_eq!(ours, once);
    let mut empty = Profile::default();
    empty.join(&ours);
    assert_eq!(empty, ours);
}

#[test]
fn entrypoints_have_short_names_without_their_arguments() {
    let name = |args: &[&str]| entrypoint(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
    let secret = name(&["/usr/bin/server", "--password=x"]);
    assert!(secret.starts_with("server #") && secret.len() == 16, "{secret}");
    assert_ne!(secret, name(&["/usr/bin/server", "--password=y"]));
    assert_eq!(name(&[]), "");
    assert!(name(&[&"ü".repeat(500)]).len() <= MAX_NAME);
}

#[test]
fn bounds_hold() {
    let mut profile = Profile::default();
    let scattered = (0..3 * MAX_RUNS as u64).map(|nr| (1, nr * 2, nr * 2 + 1)).collect::<Vec<_>>();
    profile.learn(&seen("a", &scattered));
    assert_eq!(profile.starts[0].runs.len(), MAX_RUNS);
    profile.learn(&seen("b", &[(1, 0, 1 << 40)]));
    profile.learn(&seen("b", &[(2, 0, 1 << 40)]));
    assert!(profile.starts.iter().all(|start| start.bytes() <= MAX_GRAINS * GRAIN));
    let bytes = encode(&profile);
    assert!(bytes.len() < 64 << 10, "{}", bytes.len());
    assert_eq!(decode(&bytes).unwrap(), profile);
}

#[test]
fn what_is_no_profile_is_refused() {
    let mut profile = Profile::default();
    profile.learn(&seen("a", &[(1, 0, 2), (2, 9, 11)]));
    let good = encode(&profile);
    assert_eq!(decode(&good).unwrap(), profile);
    for end in 0..good.len() {
        assert!(decode(&good[..end]).is_err(), "{end}");
    }
    assert!(decode(&[&good[..], &[0]].concat()).is_err());
    let mut newer = good.clone();
    newer[8] = 9;
    assert!(matches!(decode(&newer), Err(ProfileError::Version(9))));
    let beyond = |change: &dyn Fn(&mut Start)| {
        let mut bad = profile.clone();
        change(&mut bad.starts[0]);
        decode(&encode(&bad)).unwrap_err()
    };
    assert!(matches!(beyond(&|s| s.runs[0].grains = u32::MAX), ProfileError::Impossible(_)));
    assert!(matches!(beyond(&|s| s.runs[0].grains = 0), ProfileError::Impossible(_)));
    assert!(matches!(beyond(&|s| s.runs[0].first = u32::MAX), ProfileError::Impossible(_)));
    assert!(matches!(beyond(&|s| s.runs[0].unseen = FADES_AFTER), ProfileError::Impossible(_)));
    assert!(matches!(beyond(&|s| s.count = 0), ProfileError::Impossible(_)));
    assert!(matches!(beyond(&|s| s.entrypoint = "x".repeat(MAX_NAME + 1)), ProfileError::Impossible(_)));
    assert!(matches!(beyond(&|s| s.runs = vec![s.runs[0]; MAX_RUNS + 1]), ProfileError::Impossible(_)));
    let twice = Profile { starts: vec![profile.starts[0].clone(); 2] };
    assert!(decode(&encode(&twice)).is_err());
}

proptest! {
    #[test]
    fn hostile_bytes_do_no_harm(tail in proptest::collection::vec(any::<u8>(), 0..400), flips in proptest::collection::vec((0_usize..400, any::<u8>()), 0..4)) {
        let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &tail].concat();
        let _ = decode(&bytes);
        let mut profile = Profile::default();
        profile.learn(&seen("a", &[(1, 0, 2), (2, 9, 11), (1, 700, 702)]));
        bytes = encode(&profile);
        for (at, flip) in flips {
            let len = bytes.len();
            bytes[at % len] ^= flip;
        }
        if let Ok(mut decoded) = decode(&bytes) {
            decoded.join(&profile);
            decoded.learn(&seen("b", &[(1, 3, 4)]));
            prop_assert!(decode(&encode(&decoded)).is_ok());
        }
    }
}
