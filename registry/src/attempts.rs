//! When to try again, where, and when to stop. Pure: the caller passes the time and does the waiting.
//!
//! A refusal (404, 401, wrong bytes) rules a host out for this request and the next one is tried at once. A passing
//! fault is tried once more on the same host, since most are a single cut connection; the second in a row moves on to
//! the next host. A host that cannot be connected to, that does not answer, or that says 429 or 416, is left at once if there is another,
//! and one that says that it is in trouble itself (5xx), if it has sent nothing of this yet and another has not failed just now: a mirror that
//! sends a blob keeps it over one 502. The wait doubles with each failure in a row; moving on to a host not
//! yet tried costs none. No request is given up while a host has not been asked at all.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use reqwest::StatusCode;
use silk_model::Class;
use tokio::time::Instant;

use crate::{Config, Error};

/// The longest wait between attempts: soon enough to notice the end of an outage.
const MAX_DELAY: Duration = Duration::from_secs(20);
/// The longest `Retry-After` that is honoured; a pull is not held up for the hours that some servers ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How persistent a request is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    attempts: u32,
    give_up_after: Duration,
    delay: Duration,
}

/// The state of one request over several hosts.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: Policy,
    /// Indices of the hosts, in the order in which they are tried.
    order: Vec<usize>,
    /// What is known of them, by position in `order`.
    known: Vec<Known>,
    /// Which of them have sent what is asked for, by position in `order`.
    served: Vec<bool>,
    at: usize,
    failures_here: u32,
    failures: u32,
    since: Option<Instant>,
    /// Of the ruled-out host that is the last in the configured order: the registry itself, usually.
    refusal: Option<(usize, Error)>,
}

/// What a request knows of a host; whoever comes first is gone on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    /// Not asked since bytes came last.
    Nothing,
    /// It could not be reached by others a moment ago.
    Rests,
    Failed,
    /// It did not answer: as long as others do, however badly, asking it again would only cost the time.
    Silent,
    RuledOut,
}

impl Policy {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            attempts: config.attempts,
            give_up_after: Duration::from_secs(config.give_up_after_secs),
            delay: Duration::from_millis(config.retry_delay_ms),
        }
    }
}

impl Attempts {
    /// `order` must not be empty.
    pub(crate) fn new(policy: Policy, order: Vec<usize>) -> Self {
        let (known, served) = (vec![Known::Nothing; order.len()], vec![false; order.len()]);
        Self { policy, order, known, served, at: 0, failures_here: 0, failures: 0, since: None, refusal: None }
    }

    /// With what other requests have found out about the hosts.
    pub(crate) fn knowing(mut self, rests: impl Fn(usize) -> bool, has_served: impl Fn(usize) -> bool) -> Self {
        for (at, host) in self.order.iter().enumerate() {
            if rests(*host) {
                self.known[at] = Known::Rests;
            }
            self.served[at] = has_served(*host);
        }
        self
    }

    /// The host to use now.
    pub(crate) fn host(&self) -> usize {
        self.order[self.at]
    }

    /// Whether that is the last in the configured order: the registry itself, usually.
    pub(crate) fn is_at_last(&self) -> bool {
        self.order.iter().max() == Some(&self.host())
    }

    /// Bytes came: what failed before counts no more.
    pub(crate) fn progressed(&mut self) {
        (self.failures, self.failures_here, self.since) = (0, 0, None);
        self.served[self.at] = true;
        for known in self.known.iter_mut().filter(|known| **known == Known::Failed) {
            *known = Known::Nothing;
        }
    }

    /// So long nobody was asked, because others had all connections to the host: that is no lack of progress.
    pub(crate) fn queued(&mut self, time: Duration) {
        if let Some(since) = &mut self.since {
            *since += time;
        }
    }

    /// How long to wait before the next attempt, or the error that ends the request.
    pub(crate) fn failed(&mut self, error: Error, now: Instant) -> Result<Duration, Error> {
        self.failures += 1;
        self.failures_here += 1;
        let since = *self.since.get_or_insert(now);
        if error.class() != Class::Transient {
            return self.refused(error);
        }
        self.known[self.at] = if matches!(error, Error::NoAnswer { .. }) { Known::Silent } else { Known::Failed };
        let after = now.saturating_duration_since(since);
        let is_over = self.failures >= self.policy.attempts || after >= self.policy.give_up_after;
        let leaves = self.failures_here > 1
            || match error {
                Error::Status { status, .. } if status.is_server_error() => {
                    !self.served[self.at] && self.known.contains(&Known::Nothing)
                }
                _ => leaves_at_once(&error),
            };
        if (leaves || is_over) && self.has_untried() {
            self.move_on();
            return Ok(Duration::ZERO);
        }
        if is_over {
            return Err(Error::GaveUp { attempts: self.failures, after, last: Box::new(error) });
        }
        if leaves {
            self.move_on();
        }
        let asked = retry_after(&error).unwrap_or_default().min(MAX_RETRY_AFTER);
        Ok(self.backoff().max(asked).min(self.policy.give_up_after.saturating_sub(after)))
    }

    fn refused(&mut self, error: Error) -> Result<Duration, Error> {
        self.known[self.at] = Known::RuledOut;
        let host = self.host();
        if self.refusal.as_ref().is_none_or(|(of, _)| *of < host) {
            self.refusal = Some((host, error));
        }
        match self.move_on() {
            true => Ok(Duration::ZERO),
            false => Err(self.refusal.take().expect("set above or before").1),
        }
    }

    fn has_untried(&self) -> bool {
        self.known.iter().any(|known| matches!(known, Known::Nothing | Known::Rests))
    }

    /// To the next of the hosts of which the best is known, which may be the one of now; false if all are ruled out.
    fn move_on(&mut self) -> bool {
        let count = self.order.len();
        let others_first = (1..=count).map(|step| (self.at + step) % count);
        let left = others_first.filter(|&at| self.known[at] != Known::RuledOut);
        let Some(next) = left.min_by_key(|&at| self.known[at]) else { return false };
        if next != self.at {
            (self.at, self.failures_here) = (next, 0);
        }
        true
    }

    /// Doubling, a quarter up or down.
    fn backoff(&self) -> Duration {
        let doubled = self.policy.delay.saturating_mul(1 << (self.failures - 1).min(16)).min(MAX_DELAY);
        // Each `RandomState` has fresh keys: randomness enough, without a crate for it.
        let random = RandomState::new().hash_one(0) % 501;
        doubled.mul_f64(0.75 + random as f64 / 1000.0)
    }
}

/// Whether trying again at once would most likely meet the same.
fn leaves_at_once(error: &Error) -> bool {
    match error {
        Error::Unreachable { cause, .. } => cause.is_connect(),
        Error::Status { status, .. } => *status == StatusCode::TOO_MANY_REQUESTS,
        Error::RangeRefused { .. } | Error::NoAnswer { .. } => true,
        Error::NoCredentials { .. } | Error::Wordless { .. } => true,
        _ => false,
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Status { retry_after, .. } => *retry_after,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Asked;

    fn asked() -> Asked {
        Asked { host: "h".into(), what: "w".into() }
    }

    fn cut() -> Error {
        Error::Cut { asked: asked(), at: 0, cause: None }
    }

    fn status(code: u16, retry_after: Option<u64>) -> Error {
        let status = StatusCode::from_u16(code).unwrap();
        Error::Status {
            asked: asked(),
            status,
            said: Default::default(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn missing(host: &str) -> Error {
        let asked = Asked { host: host.into(), what: "w".into() };
        Error::NotFound { asked, status: StatusCode::NOT_FOUND, said: Default::default() }
    }

    fn attempts(hosts: usize) -> (Attempts, Instant) {
        let policy = Policy { attempts: 6, give_up_after: Duration::from_secs(120), delay: Duration::from_millis(500) };
        (Attempts::new(policy, (0..hosts).collect()), Instant::now())
    }

    #[test]
    fn waits_double_and_end() {
        let (mut attempts, now) = attempts(1);
        for expected in [0.5, 1.0, 2.0, 4.0, 8.0] {
            let wait = attempts.failed(cut(), now).unwrap().as_secs_f64();
            assert!((0.75 * expected..=1.25 * expected).contains(&wait), "{wait} for {expected}");
        }
        let error = attempts.failed(cut(), now + Duration::from_secs(16)).unwrap_err();
        assert_eq!(error.class(), Class::Transient);
        assert!(error.to_string().ends_with("(gave up after 6 attempts in 16 s)"), "{error}");
    }

    #[test]
    fn progress_starts_anew_and_time_ends_too() {
        let (mut attempts, now) = attempts(1);
        for _ in 0..20 {
            attempts.failed(cut(), now).unwrap();
            attempts.failed(cut(), now).unwrap();
            attempts.progressed();
        }
        attempts.failed(cut(), now).unwrap();
        attempts.queued(Duration::from_secs(200));
        attempts.failed(cut(), now + Duration::from_secs(300)).unwrap();
        assert!(matches!(
            attempts.failed(cut(), now + Duration::from_secs(320)),
            Err(Error::GaveUp { attempts: 3, .. })
        ));
    }

    #[test]
    fn a_cut_is_tried_again_in_place_and_then_on_the_next_host() {
        let (mut attempts, now) = attempts(2);
        assert!(attempts.failed(cut(), now).unwrap() > Duration::ZERO);
        assert_eq!(attempts.host(), 0);
        assert_eq!(attempts.failed(cut(), now).unwrap(), Duration::ZERO);
        assert_eq!(attempts.host(), 1);
        attempts.failed(cut(), now).unwrap();
        assert!(attempts.failed(cut(), now).unwrap() > Duration::ZERO, "back to a host that failed: wait");
        assert_eq!(attempts.host(), 0);
    }

    #[test]
    fn a_refusal_moves_on_and_the_registrys_own_word_is_the_last() {
        let (mut three, now) = attempts(3);
        three.order = vec![2, 0, 1];
        for (host, next) in [("registry", 0), ("mirror0", 1)] {
            assert_eq!(three.failed(missing(host), now).unwrap(), Duration::ZERO);
            assert_eq!(three.host(), next);
        }
        let error = three.failed(missing("mirror1"), now).unwrap_err();
        assert!(error.to_string().contains("registry registry has no w"), "{error}");

        let (mut two, now) = attempts(2);
        two.failed(missing("mirror"), now).unwrap();
        two.failed(cut(), now).unwrap();
        two.failed(cut(), now).unwrap();
        assert_eq!(two.host(), 1, "a ruled-out host is not tried again");
    }

    #[test]
    fn no_host_is_left_unasked() {
        let silent = || Error::NoAnswer { asked: asked(), after: Duration::from_secs(40) };
        let (mut four, now) = attempts(4);
        for host in 1..4 {
            assert_eq!(four.failed(status(502, None), now).unwrap(), Duration::ZERO);
            assert_eq!(four.host(), host);
        }
        assert!(four.failed(status(503, None), now).unwrap() > Duration::ZERO, "all were asked");

        let (mut four, start) = attempts(4);
        let mut now = start;
        for host in 1..4 {
            now += Duration::from_secs(150);
            assert_eq!(four.failed(silent(), now).unwrap(), Duration::ZERO, "though the time is over");
            assert_eq!(four.host(), host);
        }
        assert!(matches!(four.failed(silent(), now), Err(Error::GaveUp { attempts: 4, .. })));

        // Six failures are as many as may be: the hosts that are left get one try each.
        let (mut five, now) = attempts(5);
        let mut hosts = Vec::new();
        while five.failed(cut(), now).is_ok() {
            hosts.push(five.host());
        }
        assert_eq!(hosts, [0, 1, 1, 2, 2, 3, 4]);
    }

    #[test]
    fn a_silent_host_is_not_gone_back_to_while_another_answers() {
        let (mut two, now) = attempts(2);
        two.failed(Error::NoAnswer { asked: asked(), after: Duration::from_secs(40) }, now).unwrap();
        for _ in 0..2 {
            two.failed(status(503, None), now).unwrap();
            two.progressed();
            two.failed(cut(), now).unwrap();
            two.failed(cut(), now).unwrap();
            assert_eq!(two.host(), 1);
        }
        two.failed(missing("registry"), now).unwrap();
        assert_eq!(two.host(), 0, "it is all that is left");
    }

    #[test]
    fn progress_makes_all_hosts_untried() {
        let (mut two, now) = attempts(2);
        two.failed(status(503, None), now).unwrap();
        two.progressed();
        assert!(two.failed(status(503, None), now).unwrap() > Duration::ZERO);
        assert_eq!(two.host(), 1, "it has sent bytes");
        assert_eq!(two.failed(status(503, None), now).unwrap(), Duration::ZERO);
        assert_eq!(two.host(), 0);
        assert!(two.failed(status(503, None), now).unwrap() > Duration::ZERO);
    }

    /// The mirror of a node without a way to the registry itself.
    #[test]
    fn one_bad_answer_is_no_reason_to_ask_a_host_that_rests() {
        let (two, now) = attempts(2);
        let mut two = two.knowing(|host| host == 1, |_| false);
        assert!(two.failed(status(502, None), now).unwrap() > Duration::ZERO);
        assert_eq!(two.host(), 0);
        two.failed(status(502, None), now).unwrap();
        assert_eq!(two.host(), 1, "no request is given up before");
    }

    #[test]
    fn retry_after_is_honoured_within_bounds() {
        let (mut one, now) = attempts(1);
        assert_eq!(one.failed(status(429, Some(7)), now).unwrap(), Duration::from_secs(7));
        assert_eq!(one.failed(status(503, Some(4000)), now).unwrap(), MAX_RETRY_AFTER);
        let later = now + Duration::from_secs(100);
        assert_eq!(one.failed(status(429, Some(60)), later).unwrap(), Duration::from_secs(20), "not past the end");
        let (mut two, now) = attempts(2);
        assert_eq!(two.failed(status(429, Some(60)), now).unwrap(), Duration::ZERO);
        assert_eq!(two.host(), 1, "another host need not be waited for");
    }
}
