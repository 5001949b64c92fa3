//! `silk index` as a whole: from a registry of the testkit's into a real redis-server and into the registry itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use silk_model::Digest;
use silk_share::{Config, Image, RedisConfig, ReferrersConfig, Share};
use silk_testkit::{ALWAYS, Compression, Fake, Fault, ImageSpec, LayerSpec, PATIENCE, Pushed};
use tempfile::TempDir;

/// A tar with one file of this many bytes that do not compress.
fn tar(name: &str, len: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut state = name.bytes().fold(1_u64, |state, b| state * 31 + u64::from(b));
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    std::fs::write(dir.path().join(name), noise.take(len).collect::<Vec<_>>()).unwrap();
    let output = Command::new("tar").args(["--mtime=@0", "-cf", "-", name]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Three layers of three kinds, and an empty one that is there twice.
fn image() -> ImageSpec {
    let empty = LayerSpec::new([0; 1024], Compression::Gzip);
    ImageSpec::new()
        .layer(tar("base", 3 << 20), Compression::Gzip)
        .with(empty.clone())
        .layer(tar("middle", 100_000), Compression::Zstd)
        .with(empty)
        .layer(tar("top", 10), Compression::Plain)
}

/// A redis-server on a unix socket, killed with this.
struct Redis {
    dir: TempDir,
    child: Child,
}

impl Redis {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
        command.arg("--dir").arg(dir.path()).args(arguments).stdout(Stdio::null()).stdin(Stdio::null());
        let child = command.spawn().expect("redis-server is installed (hack/lib/deps.sh)");
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { dir, child }
    }

    fn config(&self) -> RedisConfig {
        let address = Some(format!("unix:{}", self.dir.path().join("s").display()));
        RedisConfig { address, deadline_millis: 5000, ..RedisConfig::default() }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A machine with silk's configuration and nothing else.
struct Builder {
    dir: TempDir,
}

impl Builder {
    /// `share` is what follows `[registry]`.
    fn new(share: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[registry]\nhosts_dirs = []\ndocker_config = '/nonexistent/config.json'\nattempts = 2\nretry_delay_ms = 1\n{share}"
        );
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        Self { dir }
    }

    fn of(config: &Config) -> Self {
        let table =
            toml::to_string(&serde_json::json!({ "share": without_null(serde_json::to_value(config).unwrap()) }));
        Self::new(&table.unwrap())
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_silk"));
        command.arg("--config").arg(self.config()).arg("index").args(arguments);
        command
    }

    async fn index(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    }
}

/// TOML has no null.
fn without_null(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_null(v))).collect()
        }
        other => other,
    }
}

/// Which of the image's layers a node finds.
async fn found(config: &Config, fake: &Fake, pushed: &Pushed) -> Vec<bool> {
    let registry = silk_registry::Registry::new(silk_registry::Config {
        hosts_dirs: Vec::new(),
        docker_config: Some("/nonexistent/config.json".into()),
        plain_http: vec![fake.host()],
        ..silk_registry::Config::default()
    });
    let repository = registry.unwrap().repository(&pushed.reference.parse().unwrap()).await.unwrap();
    let share = Share::new(config, Vec::new()).unwrap();
    let image = Image { repository: Some(repository), manifest: pushed.manifest_digest };
    let blobs: Vec<_> = pushed.layers.iter().map(|layer| layer.blob_digest).collect();
    let known = share.image(&image, &blobs).await;
    let layers = known.layers.iter().zip(&pushed.layers);
    layers.map(|(found, layer)| found.as_ref().is_some_and(|f| f.value.diff_id == layer.diff_id)).collect()
}

fn referrers() -> ReferrersConfig {
    ReferrersConfig { discover: true, publish: true, trust_unsigned: true, deadline_millis: 10_000 }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_layer_is_published_everywhere_and_read_once() {
    let fake = Fake::start().await;
    let redis = Redis::start(&[]);
    let pushed = fake.push_image("team/app:1", &image().indexed());
    let [both, only_redis, only_referrers] =
        [(true, true), (true, false), (false, true)].map(|(redis_, referrers_)| Config {
            redis: if redis_ { redis.config() } else { RedisConfig::default() },
            referrers: if referrers_ { referrers() } else { ReferrersConfig::default() },
            ..Config::default()
        });
    let builder = Builder::of(&both);
    let (code, out, err) = builder.index(&[&pushed.reference]).await;
    assert_eq!(code, Some(0), "{err}");
    let base = &pushed.layers[0];
    assert!(out.starts_with(&format!("layer 1/5 {}: redis unix:/", base.blob_digest.short())), "{out}");
    assert_eq!((out.matches(" took ").count(), out.lines().count()), (10, 6), "{out}");
    assert!(
        out.contains(&format!("\nindexed {} in ", pushed.reference)) && out.ends_with(": 5 layers, 3.4 MB\n"),
        "{out}"
    );
    assert!(err.contains(&format!("layer 1/5 {}: done, ", base.blob_digest.short())), "{err}");
    for config in [&only_redis, &only_referrers] {
        assert_eq!(found(config, &fake, &pushed).await, [true; 5]);
    }
    let reads = || pushed.layers.iter().map(|l| fake.sent(&format!("GET .*{}", l.blob_digest))).sum::<u64>();
    // Each once; the sum counts the empty one, which is there twice, twice.
    assert_eq!(reads(), pushed.layers.iter().map(|l| l.size).sum::<u64>());

    let before = reads();
    let (code, out, err) = builder.index(&[&pushed.reference]).await;
    assert_eq!((code, reads()), (Some(0), before), "{err}");
    assert_eq!(out.matches(" has it").count(), 10, "{out}");
    assert!(out.ends_with(" (5 known already)\n") && err.contains("known already"), "{out}{err}");

    let (code, out, _) = builder.index(&["--force", "-q", &pushed.reference]).await;
    assert_eq!((code, out.as_str(), reads()), (Some(0), "", 2 * before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_one_place_lacks_is_learned_again_for_it() {
    let fake = Fake::start().await;
    let redis = Redis::start(&[]);
    let pushed = fake.push_image("team/app:1", &image());
    let mut config = Config { redis: redis.config(), ..Config::default() };
    assert_eq!(Builder::of(&config).index(&[&pushed.reference]).await.0, Some(0));
    config.referrers = referrers();
    let (code, out, err) = Builder::of(&config).index(&[&pushed.reference]).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!((out.matches(" has it, referrers took ").count(), out.lines().count()), (5, 6), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_layer_is_named_and_the_good_ones_are_published() {
    let fake = Fake::start().await;
    let redis = Redis::start(&[]);
    let config = Config { redis: redis.config(), ..Config::default() };
    let good = tar("good", 3 << 20);
    let lies = LayerSpec::new(tar("bad", 100), Compression::Gzip).with_diff_id(Digest::of(b"another"));
    let pushed = fake.push_image("team/app:1", &ImageSpec::new().layer(&good, Compression::Gzip).with(lies));
    // One layer after the other, the largest first: the good one.
    let builder = Builder::of(&config);
    let text = std::fs::read_to_string(builder.config()).unwrap();
    std::fs::write(builder.config(), format!("{text}\n[pull]\nlayers_at_once = 1\n")).unwrap();
    let blob = pushed.layers[1].blob_digest;
    let of_bad = format!("GET .*{blob}");
    fake.fault(&of_bad, Fault::Hold, ALWAYS);
    // The other's turn comes when the good one is decoded; then its index is put together, a matter of milliseconds.
    let reference = [pushed.reference.as_str()];
    let (ended, ()) = tokio::join!(builder.index(&reference), async {
        fake.wait_for(&of_bad, 1).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        fake.heal();
    });
    let (code, out, err) = ended;
    assert_eq!(code, Some(1), "{out}{err}");
    let words = format!("error: cannot index {}: layer 2 of 2 ({blob}): ", pushed.reference);
    assert!(err.contains(&words) && err.contains("not its diff ID"), "{err}");
    assert_eq!(found(&config, &fake, &pushed).await, [true, false]);

    fake.fault(&of_bad, Fault::Flip(20), ALWAYS);
    let (code, _, err) = Builder::of(&config).index(&[&pushed.reference]).await;
    assert!(code == Some(1) && err.contains("the registry sent other bytes than the manifest names"), "{err}");
}

fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_publishes_what_is_learned_and_a_second_one_does_not_wait_for_that() {
    let fake = Fake::start().await;
    let redis = Redis::start(&[]);
    // Nothing but the second signal is to end it when Redis hangs.
    let config = Config { redis: RedisConfig { deadline_millis: 60_000, ..redis.config() }, ..Config::default() };
    let spec = ImageSpec::new().layer(tar("good", 3 << 20), Compression::Gzip).layer(tar("b", 10), Compression::Gzip);
    let pushed = fake.push_image("team/app:1", &spec);
    let held = format!("GET .*{}", pushed.layers[1].blob_digest);
    // One layer after the other, the largest first.
    let builder = Builder::of(&config);
    let text = std::fs::read_to_string(builder.config()).unwrap();
    std::fs::write(builder.config(), format!("{text}\n[pull]\nlayers_at_once = 1\n")).unwrap();
    for (count, (signal, again, code)) in [("-INT", true, 130), ("-TERM", false, 143)].into_iter().enumerate() {
        fake.fault(&held, Fault::Hold, ALWAYS);
        let mut command = builder.command(&[&pushed.reference]);
        let silk = command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let pid = silk.id().unwrap();
        fake.wait_for(&held, count + 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if again {
            send("-STOP", redis.child.id());
        }
        send(signal, pid);
        if again {
            tokio::time::sleep(Duration::from_millis(500)).await;
            send(signal, pid);
        }
        // Without the second signal it would publish for 10 s.
        let ended = tokio::time::timeout(Duration::from_secs(5), silk.wait_with_output()).await;
        let Output { status, stderr, .. } = ended.expect("it does not wait for Redis").unwrap();
        send("-CONT", redis.child.id());
        let said = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(code) && said.ends_with("error: interrupted\n"), "{status}: {said}");
        fake.heal();
    }
    assert_eq!(found(&config, &fake, &pushed).await, [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_said_in_one_sentence_with_its_code() {
    let fake = Fake::start().await;
    let pushed = fake.push_image("team/app:1", &image());
    let (code, _, err) = Builder::new("").index(&[&pushed.reference]).await;
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("nothing to publish to: ") && err.contains("share.redis.address"), "{err}");
    let (code, _, err) = Builder::new("[share.redis]\naddress = 'x:y'\n").index(&[&pushed.reference]).await;
    assert!(
        code == Some(2) && err.contains("cannot use ") && err.contains("config.toml: share.redis.address"),
        "{err}"
    );

    let away = Builder::new("[share.redis]\naddress = 'unix:/nonexistent/s'\n");
    let (code, _, err) = away.index(&[&pushed.reference]).await;
    assert!(code == Some(1) && err.contains("redis unix:/nonexistent/s: it is away: "), "{err}");

    let unbelieved = Builder::new("[share.referrers]\npublish = true\n");
    let (code, _, err) = unbelieved.index(&[&pushed.reference]).await;
    assert!(code == Some(2) && err.contains("no node would believe") && err.contains("share.key_file"), "{err}");

    let pushing = Builder::new("[share.referrers]\npublish = true\ntrust_unsigned = true\n");
    let (code, _, err) = pushing.index(&[&pushed.reference.replace(":1", ":2")]).await;
    assert!(code == Some(1) && err.contains("has no manifest 2 of team/app: 404"), "{err}");

    fake.fault_status("(POST|PUT) ", 403, ALWAYS);
    let (code, _, err) = pushing.index(&[&pushed.reference]).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("not all of it is published: referrers: ") && err.contains("refused silk: 403"), "{err}");
    let blob = format!("GET .*{}", pushed.layers[0].blob_digest);
    assert_eq!(fake.count(&blob), 0, "nothing is read for nobody");

    // One place of two takes it: it is published there, and the other one is named.
    let redis = Redis::start(&[]);
    let config = Config { redis: redis.config(), referrers: referrers(), ..Config::default() };
    let (code, out, err) = Builder::of(&config).index(&[&pushed.reference]).await;
    assert!(code == Some(1) && err.contains("not all of it is published: referrers: "), "{err}");
    assert_eq!(out.matches(" took ").count(), 5, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_full_says_so_for_each_layer() {
    let fake = Fake::start().await;
    let redis = Redis::start(&[]);
    let pushed = fake.push_image("team/app:1", &image());
    let config = Config { redis: RedisConfig { max_value_bytes: 500, ..redis.config() }, ..Config::default() };
    let (code, out, err) = Builder::of(&config).index(&[&pushed.reference]).await;
    assert!(code == Some(1) && err.contains("500 are allowed"), "{err}");
    assert!(out.contains("did not take it: the value has "), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_fleet_has_sealed_stays_when_the_builder_lacks_its_key() {
    let fake = Fake::start().await;
    let redis = Redis::start(&[]);
    let pushed = fake.push_image("team/app:1", &image());
    let keys = tempfile::tempdir().unwrap();
    let config = |key: Option<&str>| {
        let key_file = key.map(|key| {
            let path = keys.path().join(key);
            std::fs::write(&path, key.repeat(32)).unwrap();
            path
        });
        Config { key_file, redis: redis.config(), referrers: referrers() }
    };
    let fleet = config(Some("fleet"));
    assert_eq!(Builder::of(&fleet).index(&[&pushed.reference]).await.0, Some(0));
    let reads = || pushed.layers.iter().map(|l| fake.count(&format!("GET .*{}", l.blob_digest))).sum::<usize>();
    let before = reads();
    let (keyless, strange) = (Builder::of(&config(None)), Builder::of(&config(Some("another"))));
    let lacking = ["the index of layer sha256:", "this node has none", "Set share.key_file to the fleet's key"];
    let differing = ["the index of layer sha256:", "its seal is wrong", "--force replaces the value"];
    let tries = [
        (&keyless, &[pushed.reference.as_str()][..], lacking),
        (&keyless, &["--force", &pushed.reference], lacking),
        (&strange, &[&pushed.reference], differing),
    ];
    for (builder, arguments, words) in tries {
        let (code, _, err) = builder.index(arguments).await;
        assert!(code == Some(2) && words.iter().all(|word| err.contains(word)), "{err}");
    }
    assert_eq!(reads(), before, "nothing is read");
    assert_eq!(found(&fleet, &fake, &pushed).await, [true; 5]);
    let (code, _, err) = strange.index(&["--force", &pushed.reference]).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(found(&config(Some("another")), &fake, &pushed).await, [true; 5]);
}
