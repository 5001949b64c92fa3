//! What waits, what goes together, what is tried again and what is dropped. The clock is moved, not waited for.

use std::time::SystemTime;

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};

use super::*;
use crate::{Answer, LayerKnowledge, Query, State};

/// A backend that keeps a diary and fails as told.
#[derive(Debug, Default)]
struct Diary {
    /// The keys of each call.
    calls: Mutex<Vec<Vec<Key>>>,
    failures: Mutex<VecDeque<BackendError>>,
    gathers: Duration,
}

impl Backend for Diary {
    fn name(&self) -> String {
        "diary".into()
    }

    fn look_up<'a>(&'a self, _: &'a Query<'a>) -> BoxFuture<'a, Answer> {
        async { Answer::default() }.boxed()
    }

    fn publish<'a>(&'a self, image: &'a Image, items: &'a [Item]) -> BoxFuture<'a, Result<Published, BackendError>> {
        async move {
            self.calls.lock().unwrap().push(items.iter().map(|item| item.key(image.manifest)).collect());
            match self.failures.lock().unwrap().pop_front() {
                Some(error) => Err(error),
                None => Ok(Published { kept: items.len() as u64, ..Published::default() }),
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, _: &'a Image, key: Key, _: Digest) -> BoxFuture<'a, Result<bool, BackendError>> {
        self.calls.lock().unwrap().push(vec![key]);
        async { Ok(true) }.boxed()
    }

    fn state(&self) -> State {
        State::Up { since: SystemTime::UNIX_EPOCH }
    }

    fn gathers(&self) -> Duration {
        self.gathers
    }
}

fn image(n: u8) -> Image {
    Image { repository: None, manifest: Digest::of(&[n]) }
}

fn item(n: u8, size: usize) -> Item {
    let (toc, index) = (Bytes::from(vec![0; size]), Bytes::new());
    Item::Layer(LayerKnowledge { blob: Digest::of(&[100, n]), diff_id: Digest::of(&[200, n]), toc, index })
}

fn key(n: u8) -> Key {
    item(n, 0).key(image(0).manifest)
}

fn queue(diary: Diary) -> (Arc<Diary>, Queue) {
    let diary = Arc::new(diary);
    (Arc::clone(&diary), Queue::new(diary, Arc::default()))
}

/// Long enough for all delays; the clock runs by itself.
async fn settle() {
    sleep(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_one_image_goes_together() {
    let (diary, queue) = queue(Diary { gathers: Duration::from_secs(2), ..Diary::default() });
    queue.publish(&image(1), item(1, 10));
    queue.publish(&image(2), item(2, 10));
    queue.publish(&image(1), item(3, 10));
    queue.publish(&image(1), item(1, 20));
    sleep(Duration::from_secs(1)).await;
    queue.publish(&image(1), item(4, 10));
    queue.remove(&image(1), key(9), Digest::of(b"lie"));
    settle().await;
    let calls = diary.calls.lock().unwrap().clone();
    assert_eq!(calls, [vec![key(9)], vec![key(3), key(1), key(4)], vec![key(2)]]);
    assert_eq!(queue.record.published.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_and_the_rest_is_not() {
    let away = || BackendError::Away("gone".into());
    for (failures, calls, published) in [
        (vec![away(), BackendError::Slow("slow".into())], 3, 1),
        (vec![away(), away(), away()], 4, 1),
        (vec![away(), away(), away(), away()], 4, 0),
        (vec![BackendError::Full("full".into())], 1, 0),
        (vec![away(), BackendError::Refused("no".into())], 2, 0),
    ] {
        let (diary, queue) = queue(Diary { failures: Mutex::new(failures.into()), ..Diary::default() });
        queue.publish(&image(1), item(1, 10));
        settle().await;
        assert_eq!(diary.calls.lock().unwrap().len(), calls);
        assert_eq!(queue.record.published.load(Ordering::Relaxed), published);
        assert_eq!(queue.record.count_dropped(), 1 - published);
        queue.publish(&image(1), item(2, 10));
        settle().await;
        assert_eq!(queue.record.published.load(Ordering::Relaxed), published + 1, "the queue goes on");
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_dropped() {
    let (diary, queue) = queue(Diary::default());
    // Nobody is served before the first wait.
    queue.publish(&image(1), item(1, MAX_BYTES * 2));
    queue.publish(&image(1), item(2, 10));
    assert_eq!(queue.record.count_dropped(), 1, "the first is larger than the bound, and goes alone");
    settle().await;
    assert_eq!(*diary.calls.lock().unwrap(), [vec![key(1)]]);
    for n in 0..=MAX_JOBS {
        queue.publish(&image((n % 200) as u8), item((n / 200) as u8, 10));
    }
    assert_eq!(queue.record.count_dropped(), 2, "one more than there are places");
    settle().await;
    assert_eq!(queue.record.published.load(Ordering::Relaxed), 1 + MAX_JOBS as u64);
    assert_eq!(queue.waiting.jobs.lock().unwrap().1, 0, "all bytes are given back");
}
