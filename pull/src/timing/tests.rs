//! What is chosen, and what clocks count.

use super::*;

const S: Duration = Duration::from_secs(1);

/// A layer that ended after so many seconds, and what it spent.
fn layer(way: Way, ended: u32, spent: &[(Part, u32)]) -> LayerTiming {
    let mut all = Spent::default();
    spent.iter().for_each(|(part, seconds)| all.0[*part as usize] = S * *seconds);
    let diff_id = Digest::new([ended as u8; 32]);
    LayerTiming { diff_id, way, first_byte: Some(S), last_byte: Some(S * ended), ended: Some(S * ended), spent: all }
}

/// Its own stages in seconds.
fn image(resolve: u32, layers: u32, mount: u32, layers_timing: Vec<LayerTiming>) -> ImageTiming {
    ImageTiming { resolve: Some(S * resolve), layers: Some(S * layers), mount: Some(S * mount), layers_timing }
}

#[test]
fn a_streamed_layer_is_limited_by_what_its_first_thread_was_at() {
    use Part::*;
    for (spent, limit) in [
        (&[(Bytes, 5), (Inflate, 4), (Write, 9)][..], Limit::Link),
        (&[(FirstByte, 3), (Bytes, 2), (Inflate, 4)], Limit::RoundTrips),
        (&[(Bytes, 3), (Inflate, 4), (BlobDigest, 1), (Store, 4)], Limit::Inflate),
        (&[(Bytes, 3), (Inflate, 1), (BlobDigest, 4), (Store, 4)], Limit::Digest),
        (&[(Inflate, 3), (Store, 4), (Write, 4), (Digest, 2), (Scan, 1)], Limit::Disk),
        (&[(Inflate, 3), (Store, 4), (Write, 4), (Digest, 3), (Scan, 1), (Index, 1)], Limit::Digest),
        (&[(Turn, 6), (Bytes, 5), (Inflate, 4)], Limit::Turn),
        (&[(Proof, 6), (Bytes, 5), (Inflate, 4)], Limit::Disk),
        // The second thread that waits is not what is slow.
        (&[(Decoder, 9), (Inflate, 4)], Limit::Inflate),
    ] {
        assert_eq!(layer(Way::Streamed, 9, spent).limit(), Some(limit), "{spent:?}");
    }
    assert_eq!(layer(Way::Streamed, 9, &[]).limit(), None, "it waits");
    assert_eq!(layer(Way::Here, 0, &[]).limit(), None);
}

#[test]
fn a_filled_layer_is_limited_by_what_most_of_its_ranges_time_went_to() {
    use Part::*;
    for (spent, limit) in [
        (&[(Turn, 5), (Bytes, 4), (Inflate, 2)][..], Limit::Turn),
        (&[(Turn, 3), (Bytes, 4), (Inflate, 2)], Limit::Link),
        (&[(FirstByte, 5), (Bytes, 4), (Inflate, 2)], Limit::RoundTrips),
        (&[(Bytes, 4), (Inflate, 5), (Scan, 1)], Limit::Inflate),
        (&[(Bytes, 4), (Digest, 5), (Scan, 1)], Limit::Digest),
        (&[(Bytes, 4), (Write, 5)], Limit::Disk),
        (&[(Bytes, 4), (Proof, 5)], Limit::Disk),
    ] {
        assert_eq!(layer(Way::Filled, 9, spent).limit(), Some(limit), "{spent:?}");
    }
}

#[test]
fn an_image_is_limited_by_the_layer_that_ends_last() {
    let inflates = |ended| layer(Way::Streamed, ended, &[(Part::Inflate, 5)]);
    let waits = |ended| layer(Way::Streamed, ended, &[(Part::Bytes, 5)]);
    let queued = |ended| layer(Way::Streamed, ended, &[(Part::Turn, 5), (Part::Inflate, 1)]);
    for (layers, limit) in [
        (vec![waits(8), inflates(10)], Limit::Inflate),
        (vec![inflates(10), waits(6), waits(1)], Limit::OneLayer),
        (vec![inflates(10), waits(7)], Limit::Inflate),
        // Alone on the link, it still gets no more than that.
        (vec![waits(10), inflates(1)], Limit::Link),
        (vec![queued(10), inflates(1)], Limit::Turn),
        (vec![inflates(10)], Limit::Inflate),
        // Its ranges are decoded side by side.
        (vec![layer(Way::Filled, 10, &[(Part::Inflate, 5)]), waits(1)], Limit::Inflate),
    ] {
        assert_eq!(image(1, 9, 1, layers.clone()).limit(), Some(limit), "{layers:?}");
    }
    let here = || layer(Way::Here, 0, &[]);
    assert_eq!(image(6, 5, 1, vec![inflates(11)]).limit(), Some(Limit::RoundTrips));
    assert_eq!(image(1, 1, 3, vec![here()]).limit(), Some(Limit::Mount));
    // A layer that fills has not ended when the image is mounted.
    let mut filling = layer(Way::Filled, 20, &[(Part::Bytes, 3)]);
    assert_eq!(image(2, 0, 1, vec![here(), filling.clone()]).limit(), Some(Limit::Link));
    filling.ended = None;
    assert_eq!(image(2, 0, 1, vec![here(), filling]).limit(), None);
    assert_eq!(ImageTiming::default().limit(), None, "it has just begun");
}

#[test]
fn what_the_input_takes_is_not_counted_twice() {
    let clocks = Clocks::default();
    clocks.time_reading(Part::Inflate, || {
        clocks.time(Part::Bytes, || std::thread::sleep(Duration::from_millis(20)));
    });
    assert!(clocks.get(Part::Bytes) >= Duration::from_millis(20));
    // More than all that was measured cannot be left.
    assert!(clocks.get(Part::Inflate) + clocks.get(Part::Bytes) <= clocks.made.elapsed());
}

#[test]
fn times_are_since_the_pull_began() {
    let id = Digest::new([1; 32]);
    // Its layer was on its way already, for another pull.
    let clocks = Arc::new(Clocks::default());
    clocks.came();
    std::thread::sleep(Duration::from_millis(5));
    let trip = Trip::since(Instant::now());
    trip.has(id, &clocks);
    assert_eq!(trip.timing(&[id]).time(), None);
    trip.mark_resolved();
    trip.mark_here();
    trip.mark_mounted();
    clocks.came();
    let timing = trip.timing(&[id, Digest::new([2; 32])]);
    let [first, second] = &timing.layers_timing[..] else { panic!("{timing:?}") };
    assert_eq!((first.way, first.first_byte, first.ended), (Way::Streamed, Some(Duration::ZERO), None));
    assert!(first.last_byte < Some(clocks.made.elapsed()), "{timing:?}");
    assert_eq!((second.way, second.last_byte), (Way::Here, None));
    assert_eq!(timing.time(), None, "a layer is on its way");
    clocks.end();
    assert!(trip.timing(&[id]).time().is_some());
}
