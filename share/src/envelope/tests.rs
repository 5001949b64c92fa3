//! Every way in which a value can be wrong.

use super::*;

fn keys(text: &str) -> Keys {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    Keys::load(Some(file.path())).unwrap()
}

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn layer() -> LayerKnowledge {
    let (blob, diff_id) = (Digest::of(b"blob"), Digest::of(b"diff"));
    LayerKnowledge { blob, diff_id, toc: Bytes::from_static(b"names"), index: Bytes::from_static(b"spans") }
}

fn key() -> Key {
    Key::Layer(Digest::of(b"blob"))
}

#[test]
fn what_goes_in_comes_out() {
    for keys in [Keys::default(), keys(A)] {
        let bytes = Bytes::from(of_layer(&layer(), &keys));
        assert_eq!(bytes.len(), OVERHEAD + 10);
        let opened = open(&bytes, key(), &keys, Trust::of_fleet(&keys)).unwrap();
        assert_eq!(
            (opened.diff_id, &opened.parts[0][..], &opened.parts[1][..]),
            (layer().diff_id, &b"names"[..], &b"spans"[..])
        );
        assert_eq!(opened.tag.as_bytes()[..], bytes[bytes.len() - SEAL..]);

        let manifest = Digest::of(b"manifest");
        let bytes = Bytes::from(of_profile(manifest, b"profile", &keys));
        let opened = open(&bytes, Key::Profile(manifest), &keys, Trust::of_fleet(&keys)).unwrap();
        assert_eq!(opened.parts[0], b"profile"[..]);
    }
}

#[test]
fn the_layout_is_that_of_the_page() {
    let bytes = of_layer(&layer(), &Keys::default());
    assert_eq!(&bytes[..16], b"SILKSHR\0\x01\0\0\0\x01\0\0\0");
    assert_eq!(bytes[16..48], *layer().blob.as_bytes());
    assert_eq!(bytes[48..80], *layer().diff_id.as_bytes());
    assert_eq!(bytes[80..96], [5, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&bytes[96..106], b"namesspans");
    assert_eq!(bytes[106..], *Digest::of(&bytes[..106]).as_bytes());
}

#[test]
fn every_flipped_bit_every_cut_and_every_tail_is_noticed() {
    for keys in [Keys::default(), keys(A)] {
        let good = of_layer(&layer(), &keys);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(open(&bad.into(), key(), &keys, Trust::of_fleet(&keys)).is_err(), "bit {bit} of byte {at}");
            }
            let cut = Bytes::copy_from_slice(&good[..at]);
            assert!(open(&cut, key(), &keys, Trust::of_fleet(&keys)).is_err(), "cut at {at}");
        }
        let tail = [&good[..], b"x"].concat();
        assert_eq!(open(&tail.into(), key(), &keys, Trust::of_fleet(&keys)).unwrap_err(), EnvelopeError::Length);
    }
}

#[test]
fn the_reason_is_told() {
    let none = Keys::default();
    let good = of_layer(&layer(), &none);
    let reason = |bytes: Vec<u8>, keys: &Keys, trust| open(&bytes.into(), key(), keys, trust).unwrap_err();
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    assert_eq!(reason(b"hello".to_vec(), &none, Trust::Unsigned), EnvelopeError::Foreign);
    assert_eq!(reason(vec![7; 500], &none, Trust::Unsigned), EnvelopeError::Foreign);
    assert_eq!(reason(with(8, 2), &none, Trust::Unsigned), EnvelopeError::Version(2));
    assert_eq!(reason(good[..130].to_vec(), &none, Trust::Unsigned), EnvelopeError::Length);
    assert_eq!(reason(with(87, 0xff), &none, Trust::Unsigned), EnvelopeError::Length);
    assert_eq!(reason(with(100, 0), &none, Trust::Unsigned), EnvelopeError::Seal);
    assert_eq!(reason(with(13, 9), &none, Trust::Unsigned), EnvelopeError::Seal);
    let other = Key::Layer(Digest::of(b"other"));
    let wrong_kind = Key::Profile(layer().blob);
    for key in [other, wrong_kind] {
        let error = open(&good.clone().into(), key, &none, Trust::Unsigned).unwrap_err();
        assert_eq!(error, EnvelopeError::WrongKey);
    }
}

#[test]
fn who_is_believed_depends_on_the_keys() {
    let (none, a, b) = (Keys::default(), keys(A), keys(B));
    let unsigned = Bytes::from(of_layer(&layer(), &none));
    let by_a = Bytes::from(of_layer(&layer(), &a));
    let reason = |bytes: &Bytes, keys: &Keys, trust| open(bytes, key(), keys, trust).map(drop);
    assert_eq!(reason(&unsigned, &a, Trust::Sealed), Err(EnvelopeError::Unsigned));
    assert_eq!(reason(&unsigned, &a, Trust::Unsigned), Ok(()));
    assert_eq!(reason(&by_a, &none, Trust::Unsigned), Err(EnvelopeError::NoKey));
    assert_eq!(reason(&by_a, &b, Trust::Sealed), Err(EnvelopeError::Seal));
    // A forger who claims that a plain hash is a key's seal, and the other way round.
    let mut forged = unsigned.to_vec();
    forged[13] = 1;
    assert_eq!(reason(&forged.into(), &a, Trust::Sealed), Err(EnvelopeError::Seal));
    let mut stripped = by_a.to_vec();
    stripped[13] = 0;
    assert_eq!(reason(&stripped.into(), &a, Trust::Unsigned), Err(EnvelopeError::Seal));
    // The change of a key.
    let (both, back) = (keys(&format!("{B}\n\n  {A}\r\n")), keys(B));
    assert_eq!(reason(&by_a, &both, Trust::Sealed), Ok(()));
    let by_both = Bytes::from(of_layer(&layer(), &both));
    assert_eq!(reason(&by_both, &back, Trust::Sealed), Ok(()), "the first line seals");
}

#[test]
fn a_weak_key_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for text in ["", "\n\n", "short", &format!("{A}\nshort")] {
        fs::write(file.path(), text).unwrap();
        assert!(matches!(Keys::load(Some(file.path())), Err(ShareError::WeakKey { .. })), "{text:?}");
    }
    assert!(matches!(Keys::load(Some(Path::new("/nowhere"))), Err(ShareError::KeyFile { .. })));
    assert!(!format!("{:?}", keys(A)).contains(A));
}
