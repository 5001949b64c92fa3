//! Every number that silkd tells Prometheus: names, units, help and the values of labels, all in this file.
//!
//! Rooms count what happens at their borders right into [`METRICS`]; what is the state of something is set by silkd when
//! somebody asks. No label is a digest, an image or a host: their values are the enumerations below, and nothing else.

use std::sync::LazyLock;

mod kinds;

use kinds::{Book, label};
pub use kinds::{Budget, By, Counter, Gauge, Label, Seconds, Times};

/// The numbers of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The type of [`Metrics::render`]'s text, for the `Content-Type` header.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds from a pull's start: from layers that are known to a slow registry.
const PULL: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// Seconds that a read may wait: a round trip nearby to `pull.read_wait_secs`.
const WAIT: &[f64] = &[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];
/// Seconds of a call: from memory to a Stat that waits for a pull.
const CALL: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0];

label! {
    /// How a registry answered one HTTP request.
    Answered("outcome") {
        /// 2xx.
        Ok = "ok",
        /// 3xx.
        Redirect = "redirect",
        /// 401 or 403: also the challenge that a first request meets.
        Denied = "denied",
        /// 404 or 410.
        Missing = "missing",
        /// 429.
        Busy = "busy",
        /// Another 4xx.
        Refused = "refused",
        /// 5xx.
        ServerError = "server_error",
        /// No connection, or it ended before an answer.
        Unreachable = "unreachable",
        /// No answer in time.
        NoAnswer = "no_answer",
        /// silk waited no longer, as for first contact with a registry, or what it was for has ended.
        GivenUp = "given_up",
    }
}

label! {
    /// What asked for bytes of layers.
    Class("class") {
        /// A reader waits.
        Demand = "demand",
        /// A start is known to touch them.
        Profile = "profile",
        /// The rest of a layer that is mounted.
        Background = "background",
        /// A layer that streams in from its start to its end.
        Stream = "stream",
    }
}

label! {
    /// How the pull of a layer ended.
    Arrival("result") {
        /// It streamed in, whole and proved.
        Streamed = "streamed",
        /// It was filled behind its readers, whole and proved.
        Filled = "filled",
        /// It did not arrive; it may be tried again.
        Failed = "failed",
    }
}

label! {
    /// How the pull of an image ended.
    Outcome("result") {
        /// It can be mounted.
        Ready = "ready",
        /// It cannot.
        Failed = "failed",
    }
}

label! {
    /// What a pull had to do.
    Kind("kind") {
        /// A layer of it had to be streamed.
        First = "first",
        /// All layers that were not here were known, and were mounted at once.
        Known = "known",
        /// All layers were here.
        Here = "here",
    }
}

label! {
    /// The states of an image.
    ImageState("state") {
        /// Known from before a restart, not whole.
        Idle = "idle",
        /// On its way.
        Pulling = "pulling",
        /// It can be mounted.
        Ready = "ready",
        /// It did not arrive.
        Failed = "failed",
        /// Left to containerd.
        Refused = "refused",
    }
}

label! {
    /// Why silk left an image to containerd.
    Left("reason") {
        /// containerd did not give its manifest or configuration.
        Contents = "contents",
        /// It is made in a way that silk cannot stream, or not as containerd says.
        Image = "image",
        /// Its base layers are containerd's.
        Below = "below",
        /// Its registry does not let silk in, or does not answer.
        Registry = "registry",
        /// The kernel cannot show layers.
        Kernel = "kernel",
        /// Its claim took too long.
        Late = "late",
    }
}

label! {
    /// The states of a layer.
    LayerState("state") {
        /// Its data is not here, but names and index are.
        Known = "known",
        /// It waits for its turn.
        Waiting = "waiting",
        /// It streams in.
        Pulling = "pulling",
        /// It is mounted while its bytes arrive.
        Filling = "filling",
        /// All of it is here and proved.
        Whole = "whole",
    }
}

label! {
    /// Layers' data on disk.
    Data("state") {
        /// Snapshots use it.
        Used = "used",
        /// It is kept for the next pull.
        Unused = "unused",
        /// Of layers that are mounted while their bytes arrive.
        Filling = "filling",
    }
}

label! {
    /// Which way bytes went to the disk.
    Way("way") {
        /// Through the page cache.
        Cache = "cache",
        /// Past it.
        Past = "past",
    }
}

label! {
    /// How a read through FUSE was answered.
    Read("how") {
        /// Its bytes were here.
        AtOnce = "at_once",
        /// It waited for them.
        Parked = "parked",
    }
}

label! {
    /// The calls of containerd's snapshots service.
    Call("method") {
        /// Stat; a pull waits in it.
        Stat = "stat",
        /// Prepare.
        Prepare = "prepare",
        /// View.
        View = "view",
        /// Mounts.
        Mounts = "mounts",
        /// Commit.
        Commit = "commit",
        /// Remove.
        Remove = "remove",
        /// Update.
        Update = "update",
        /// List.
        List = "list",
        /// Usage.
        Usage = "usage",
        /// Cleanup.
        Cleanup = "cleanup",
    }
}

label! {
    /// Where knowledge is shared.
    Backend("backend") {
        /// Redis.
        Redis = "redis",
        /// OCI referrers.
        Referrers = "referrers",
    }
}

label! {
    /// What became of shared values.
    Shared("outcome") {
        /// It gave them.
        Found = "found",
        /// It did not have them.
        Missing = "missing",
        /// It gave them in vain: damaged, foreign, lies.
        Refused = "refused",
        /// It took them.
        Published = "published",
        /// They were to be published and were not.
        Dropped = "dropped",
    }
}

label! {
    /// What turned out to be wrong of what was known.
    Lie("what") {
        /// The index of a layer.
        Index = "index",
        /// Names in a layer: containers may have seen wrong ones.
        Names = "names",
        /// A start profile that makes no sense.
        Profile = "profile",
    }
}

label! {
    /// Whether a start profile was known when an image was mounted with holes.
    Hit("result") {
        /// It was.
        Hit = "hit",
        /// It was not.
        Miss = "miss",
    }
}

label! {
    /// How layers are shown.
    Rung("rung") {
        /// EROFS from files.
        File = "file",
        /// EROFS over loop devices.
        Loop = "loop",
        /// Trees through FUSE.
        Tree = "tree",
        /// Not at all.
        None = "none",
    }
}

label! {
    /// Which silkd this is.
    Version("version") {
        /// This one.
        Own = crate::VERSION,
    }
}

/// The numbers. Those of the process have the names that all programs use for them; what is in bytes or seconds says so in
/// its name, all others count things.
#[derive(Debug)]
#[allow(missing_docs, reason = "each has its help text, in `Metrics::new`")]
pub struct Metrics {
    book: Book,
    pub build_info: By<Version, Gauge>,
    pub rung: By<Rung, Gauge>,

    pub registry_requests: By<Answered, Counter>,
    pub registry_retries: Counter,
    pub registry_received: Counter,

    pub images: By<ImageState, Gauge>,
    pub image_pull: By<(Outcome, Kind), Times>,
    pub images_refused: By<Left, Counter>,
    pub containers_on_silkd: Gauge,
    pub layers: By<LayerState, Gauge>,
    pub layer_pulls: By<Arrival, Counter>,
    pub arrived: By<Class, Counter>,
    pub lies: By<Lie, Counter>,
    pub profiles: By<Hit, Counter>,

    pub reads: By<Read, Counter>,
    pub read_errors: Counter,
    pub read_wait: Times,
    pub reads_waiting: Gauge,

    pub calls: By<Call, Times>,

    pub data: By<Data, Gauge>,
    pub disk_size: Gauge,
    pub disk_free: Gauge,
    pub written: By<Way, Counter>,
    pub given_back: Counter,
    pub evicted_layers: Counter,
    pub evicted_bytes: Counter,

    pub share_configured: By<Backend, Gauge>,
    pub share_up: By<Backend, Gauge>,
    pub share_values: By<(Backend, Shared), Counter>,

    pub budgets: Budgets,
    pub process: Process,
}

/// What may be in use at once.
#[derive(Debug)]
#[allow(missing_docs, reason = "each has its help text, in `Budgets::new`")]
pub struct Budgets {
    pub registry_connections: Budget,
    pub bytes_in_flight: Budget,
    pub held_bytes: Budget,
    pub decoders: Budget,
    pub layers_under_way: Budget,
    pub demand_ranges: Budget,
    pub profile_ranges: Budget,
    pub background_ranges: Budget,
    pub open_files: Budget,
    pub cache_bytes: Budget,
}

/// What the kernel says of the process.
#[derive(Debug)]
#[allow(missing_docs, reason = "each has its help text, in `Process::new`")]
pub struct Process {
    pub resident_memory: Gauge,
    pub open_fds: Gauge,
    pub max_fds: Gauge,
    pub threads: Gauge,
    pub cpu_seconds: Seconds,
    pub start_time: Gauge,
}

impl Metrics {
    fn new() -> Self {
        let mut book = Book::default();
        let b = &mut book;
        let all = Self {
            build_info: b.gauges("silk_build_info", "Always 1: the version of this silkd"),
            rung: b.gauges("silk_rung", "1 for the way in which layers are shown"),
            registry_requests: b
                .counters("silk_registry_requests_total", "HTTP requests to registries and their storage"),
            registry_retries: b.counter("silk_registry_retries_total", "Attempts that followed a failed one"),
            registry_received: b
                .counter("silk_registry_received_bytes_total", "Bytes of blobs received, those thrown away included"),
            images: b.gauges("silk_images", "Images that silk knows or left to containerd"),
            image_pull: b.times_by(
                "silk_image_pull_seconds",
                "Seconds from an image's first Prepare until it could be mounted, or failed",
                PULL,
            ),
            images_refused: b.counters("silk_images_refused_total", "Times that silk left an image to containerd"),
            containers_on_silkd: b.gauge(
                "silk_containers_on_silkd",
                "Containers that read through silkd until they end, because they were started before their image was whole, or on trees",
            ),
            layers: b.gauges("silk_layers", "Layers that silk knows"),
            layer_pulls: b.counters("silk_layer_pulls_total", "Layers that arrived or did not"),
            arrived: b.counters(
                "silk_layer_arrived_bytes_total",
                "Uncompressed bytes of layers that arrived, by what asked for them",
            ),
            lies: b.counters("silk_lies_total", "What was known of a layer or image and turned out to be wrong"),
            profiles: b.counters(
                "silk_profiles_total",
                "Images that were mounted with holes, by whether a start profile of theirs was known",
            ),
            reads: b.counters("silk_fuse_reads_total", "Reads of layers' data through FUSE"),
            read_errors: b.counter("silk_fuse_read_errors_total", "Reads that were answered with EIO"),
            read_wait: b.times("silk_fuse_read_wait_seconds", "Seconds that parked reads waited for their bytes", WAIT),
            reads_waiting: b.gauge("silk_fuse_reads_waiting", "Reads that wait for their bytes now"),
            calls: b.times_by(
                "silk_snapshotter_call_seconds",
                "Seconds of containerd's calls; a pull waits in Stat",
                CALL,
            ),
            data: b.gauges("silk_data_bytes", "Uncompressed bytes of layers on disk"),
            disk_size: b.gauge("silk_disk_size_bytes", "Size of the file system that silk's root is on"),
            disk_free: b.gauge("silk_disk_free_bytes", "What is free of it"),
            written: b.counters(
                "silk_data_written_bytes_total",
                "Uncompressed bytes of layers that were written, through the page cache or past it",
            ),
            given_back: b.counter(
                "silk_memory_given_back_bytes_total",
                "Bytes of layers that memory held twice and now holds once",
            ),
            evicted_layers: b.counter("silk_evicted_layers_total", "Layers whose data was dropped"),
            evicted_bytes: b.counter("silk_evicted_bytes_total", "Bytes of their data"),
            share_configured: b
                .gauges("silk_share_configured", "1 if the configuration names a place for shared knowledge"),
            share_up: b.gauges("silk_share_up", "1 if a place for shared knowledge can be used"),
            share_values: b.counters("silk_share_values_total", "Values that places for shared knowledge gave or took"),
            budgets: Budgets::new(b),
            process: Process::new(b),
            book: Book::default(),
        };
        all.build_info.of(Version::Own).set(1);
        Self { book, ..all }
    }

    /// The names of all, as they stand in a scrape; a histogram's are followed by `_bucket`, `_sum` and `_count` there.
    pub fn names(&self) -> &[String] {
        self.book.names()
    }

    /// All of them as OpenMetrics text.
    pub fn render(&self) -> String {
        self.book.render()
    }
}

impl Budgets {
    fn new(b: &mut Book) -> Self {
        Self {
            registry_connections: b.budget("silk_budget_registry_connections", "Blob bodies received at once from one registry host, the busiest now (registry.connections_per_registry, and a quarter more for readers)"),
            bytes_in_flight: b.budget("silk_budget_bytes_in_flight", "Compressed bytes on their way in ranges of layers that stream in (pull.bytes_in_flight)"),
            held_bytes: b.budget("silk_budget_held_bytes", "Compressed bytes of mounted layers that wait in memory until containers have started (pull.held_bytes)"),
            decoders: b.budget("silk_budget_decoders", "Layers decoded at once (pull.layers_at_once)"),
            layers_under_way: b.budget("silk_budget_layers_under_way", "Layers that stream in, those whose registry is silent included (pull.layers_under_way)"),
            demand_ranges: b.budget("silk_budget_demand_ranges", "Ranges fetched at once from the busiest registry that readers wait for (pull.demand_ranges)"),
            profile_ranges: b.budget("silk_budget_profile_ranges", "Ranges fetched at once from the busiest registry that starts are known to touch (pull.profile_ranges)"),
            background_ranges: b.budget("silk_budget_background_ranges", "Ranges fetched at once from the busiest registry of mounted layers that nobody waits for (pull.ranges_at_once)"),
            open_files: b.budget("silk_budget_open_files", "Data files of whole layers and trees that are kept open (mount.open_files)"),
            cache_bytes: b.budget("silk_budget_cache_bytes", "Bytes of layers that no snapshot uses (store.cache_bytes)"),
        }
    }
}

impl Process {
    fn new(b: &mut Book) -> Self {
        Self {
            resident_memory: b.gauge("process_resident_memory_bytes", "Memory that is resident"),
            open_fds: b.gauge("process_open_fds", "Descriptors that are open"),
            max_fds: b.gauge("process_max_fds", "Descriptors that may be open"),
            threads: b.gauge("process_threads", "Threads"),
            cpu_seconds: b.seconds("process_cpu_seconds_total", "Processor time, of the user and of the system"),
            start_time: b.gauge("process_start_time_seconds", "When it was started, in seconds since 1970"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_told_from_the_start_with_all_its_labels() {
        let metrics = Metrics::new();
        metrics.registry_requests.of(Answered::NoAnswer).add(3);
        metrics.image_pull.of((Outcome::Ready, Kind::Known)).took(std::time::Duration::from_millis(300));
        metrics.budgets.decoders.set(crate::Use { limit: 3, in_use: 2 });
        let text = metrics.render();
        for line in [
            "silk_registry_requests_total{outcome=\"ok\"} 0",
            "silk_registry_requests_total{outcome=\"no_answer\"} 3",
            "silk_image_pull_seconds_bucket{le=\"0.25\",result=\"ready\",kind=\"known\"} 0",
            "silk_image_pull_seconds_bucket{le=\"0.5\",result=\"ready\",kind=\"known\"} 1",
            "silk_image_pull_seconds_count{result=\"failed\",kind=\"here\"} 0",
            "silk_budget_decoders_limit 3",
            "silk_budget_decoders_in_use 2",
            "silk_registry_retries_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        for name in metrics.names() {
            let is_of = |l: &str| l.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(['{', ' ', '_']));
            assert!(text.lines().any(is_of), "{name}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn names_say_their_units() {
        let metrics = Metrics::new();
        let mut names = metrics.names().to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), metrics.names().len(), "each once");
        let text = metrics.render();
        for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert_eq!(kind == "histogram", name.ends_with("_seconds") && !name.starts_with("process_"), "{line}");
        }
    }

    #[test]
    fn dashboard_and_alerts_ask_for_what_there_is() {
        let asked = |text: &'static str| {
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            words.filter(|word| word.starts_with("silk_") || word.starts_with("process_")).collect::<Vec<_>>()
        };
        let alerts = asked(include_str!("../../docs/prometheus/silk.rules.yml"));
        let asked = asked(include_str!("../../docs/grafana/silk.json"));
        let metrics = Metrics::new();
        assert!(alerts.len() > 5);
        for word in asked.iter().chain(&alerts) {
            let name = ["_bucket", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(metrics.names().iter().any(|n| n == name), "{word} is no number of silkd's");
        }
        for name in metrics.names().iter().filter(|n| n.starts_with("silk_budget_")) {
            assert!(asked.contains(&name.as_str()), "{name} is not shown");
        }
    }
}
