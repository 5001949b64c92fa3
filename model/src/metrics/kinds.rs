//! The kinds of numbers that [`METRICS`](super::METRICS) is made of, and how they are told to Prometheus.
//!
//! Labels are enumerations, so that nothing unbounded can become one. Every number is there from the start, at 0: a scrape
//! always has all of them, and counting is one atomic addition.

use std::{
    fmt::Debug,
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::text,
    metrics::{counter, family::Family, gauge, histogram},
    registry::{Metric, Registry},
};

/// The label sets of a metric.
type Pairs = Vec<(&'static str, &'static str)>;

/// A label, or two, with all their values.
pub trait Label: Copy + Debug + 'static {
    /// Every value.
    fn all() -> Vec<Self>;

    /// Its place in [`Label::all`].
    fn index(self) -> usize;

    /// Names and values.
    fn pairs(self) -> Pairs;
}

impl<A: Label, B: Label> Label for (A, B) {
    fn all() -> Vec<Self> {
        A::all().into_iter().flat_map(|a| B::all().into_iter().map(move |b| (a, b))).collect()
    }

    fn index(self) -> usize {
        self.0.index() * B::all().len() + self.1.index()
    }

    fn pairs(self) -> Pairs {
        [self.0.pairs(), self.1.pairs()].concat()
    }
}

/// Makes a label of an enumeration.
macro_rules! label {
    ($(#[$doc:meta])* $label:ident($name:literal) { $($(#[$about:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $label { $($(#[$about])* $variant,)* }

        impl Label for $label {
            fn all() -> Vec<Self> {
                vec![$(Self::$variant,)*]
            }

            fn index(self) -> usize {
                self as usize
            }

            fn pairs(self) -> Vec<(&'static str, &'static str)> {
                vec![($name, match self { $(Self::$variant => $value,)* })]
            }
        }
    };
}
pub(super) use label;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(counter::Counter);

impl Counter {
    /// Counts one.
    pub fn one(&self) {
        self.0.inc();
    }

    /// Counts so many.
    pub fn add(&self, count: u64) {
        self.0.inc_by(count);
    }

    /// Takes what is counted elsewhere, from 0 on.
    pub fn set(&self, count: u64) {
        self.0.inner().store(count, Ordering::Relaxed);
    }

    /// What was counted.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// A number as it is now.
#[derive(Debug, Default)]
pub struct Gauge(gauge::Gauge);

impl Gauge {
    /// It is so much now.
    pub fn set(&self, value: u64) {
        self.0.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

/// Seconds that only grow.
#[derive(Debug, Default)]
pub struct Seconds(counter::Counter<f64, AtomicU64>);

impl Seconds {
    /// Takes what is counted elsewhere, from 0 on.
    pub fn set(&self, seconds: f64) {
        self.0.inner().store(seconds.to_bits(), Ordering::Relaxed);
    }
}

/// Times, by how many were below some bounds.
#[derive(Debug)]
pub struct Times(histogram::Histogram);

impl Times {
    /// It took so long.
    pub fn took(&self, time: Duration) {
        self.0.observe(time.as_secs_f64());
    }
}

/// One number for each value of a label.
#[derive(Debug)]
pub struct By<L, M> {
    each: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> By<L, M> {
    /// That of one value.
    pub fn of(&self, label: L) -> &M {
        &self.each[label.index()]
    }
}

impl<L> By<L, Counter> {
    /// All of them together.
    pub fn sum(&self) -> u64 {
        self.each.iter().map(Counter::get).sum()
    }
}

/// A budget: how much of something may be in use, and is.
#[derive(Debug)]
pub struct Budget {
    limit: Gauge,
    in_use: Gauge,
}

impl Budget {
    /// It is so now.
    pub fn set(&self, now: crate::Use) {
        self.limit.set(now.limit);
        self.in_use.set(now.in_use);
    }
}

/// Takes metrics with their names and texts.
#[derive(Debug, Default)]
pub(super) struct Book {
    registry: Registry,
    names: Vec<String>,
}

impl Book {
    fn enter(&mut self, name: &str, help: &str, metric: impl Metric) {
        // The library adds what a counter's name ends with, and a full stop.
        self.registry.register(name.trim_end_matches("_total"), help, metric);
        self.names.push(name.to_owned());
    }

    pub(super) fn counter(&mut self, name: &str, help: &str) -> Counter {
        let counter = counter::Counter::default();
        self.enter(name, help, counter.clone());
        Counter(counter)
    }

    pub(super) fn seconds(&mut self, name: &str, help: &str) -> Seconds {
        let counter = counter::Counter::<f64, AtomicU64>::default();
        self.enter(name, help, counter.clone());
        Seconds(counter)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = gauge::Gauge::default();
        self.enter(name, help, gauge.clone());
        Gauge(gauge)
    }

    pub(super) fn budget(&mut self, name: &str, what: &str) -> Budget {
        Budget {
            limit: self.gauge(&format!("{name}_limit"), &format!("{what}: how many there may be")),
            in_use: self.gauge(&format!("{name}_in_use"), &format!("{what}: how many there are")),
        }
    }

    pub(super) fn times(&mut self, name: &str, help: &str, bounds: &[f64]) -> Times {
        let histogram = histogram::Histogram::new(bounds.iter().copied());
        self.enter(name, help, histogram.clone());
        Times(histogram)
    }

    pub(super) fn counters<L: Label>(&mut self, name: &str, help: &str) -> By<L, Counter> {
        let family = Family::<Pairs, counter::Counter>::default();
        self.enter(name, help, family.clone());
        by(|pairs| Counter(family.get_or_create_owned(pairs)))
    }

    pub(super) fn gauges<L: Label>(&mut self, name: &str, help: &str) -> By<L, Gauge> {
        let family = Family::<Pairs, gauge::Gauge>::default();
        self.enter(name, help, family.clone());
        by(|pairs| Gauge(family.get_or_create_owned(pairs)))
    }

    pub(super) fn times_by<L: Label>(&mut self, name: &str, help: &str, bounds: &'static [f64]) -> By<L, Times> {
        let make: fn(&[f64]) -> histogram::Histogram = |bounds| histogram::Histogram::new(bounds.iter().copied());
        let family = Family::<Pairs, histogram::Histogram, _>::new_with_constructor(move || make(bounds));
        self.enter(name, help, family.clone());
        by(|pairs| Times(family.get_or_create_owned(pairs)))
    }

    /// The names of all.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// OpenMetrics text, version 1.0.0.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("a String takes any text");
        out
    }
}

fn by<L: Label, M>(make: impl Fn(&Pairs) -> M) -> By<L, M> {
    By { each: L::all().into_iter().map(|label| make(&label.pairs())).collect(), label: PhantomData }
}
