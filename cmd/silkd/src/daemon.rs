//! The composition root: builds the rooms from the configuration, joins them, serves, and stops on a signal.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use silk_api::{connect, control::control_server::ControlServer};
use silk_model::VERSION;
use silk_mount::{Mapped, Mounts, Rung, Trees, Views};
use silk_pull::{Lazies, Puller, Seams};
use silk_registry::Registry;
use silk_share::Share;
use silk_snapshotter::{Service, Snapshots};
use silk_store::{Slots, Store};
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Server;

use crate::{
    config::Config, contents::ContentStore, control, janitor::Janitor, layers::Rooms, metrics, node::Node,
    notify::notify, process::Process, served::Served, socket, starts::Starts, trim, twice::Twice, views::StoreViews,
};

/// Requests that are being answered when the stop comes have this long. A Stat that waits for a pull does not end by
/// itself: its client sees the connection close, and asks the next silkd.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Opens what the root has. Nothing is deleted there before it is known that this silkd can read all of it.
fn opened(root: &Path, config: silk_store::Config) -> anyhow::Result<(Arc<Store>, Arc<Snapshots>)> {
    let store = Store::unswept(root, config).context("cannot open the store")?;
    let snapshots = Snapshots::open(store.database(), root).context("cannot open the snapshots")?;
    store.sweep().context("cannot open the store")?;
    Ok((Arc::new(store), snapshots))
}

/// What of the configuration can be wrong although the file is well-formed. Touches nothing. Must be called on a runtime.
pub fn check(config: Config) -> anyhow::Result<()> {
    let Config { root, registry, share, .. } = config;
    plain(&root)?;
    registry_of(registry)?;
    share_of(&share).map(drop)
}

fn registry_of(config: silk_registry::Config) -> anyhow::Result<Registry> {
    Registry::new(config).context("the configuration of registries")
}

fn share_of(config: &silk_share::Config) -> anyhow::Result<Share> {
    Share::new(config, vec![]).context("the configuration of what is shared")
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    Process::now();
    let root = made(&config.root)?;
    let (store, snapshots) = opened(&root, config.store)?;
    let lazies = Lazies::new(Arc::clone(&store), &config.pull);
    let slots = Slots::open(store.database()).context("cannot read the names of served files")?;
    let served = Served::mount(&root, Arc::clone(&lazies), slots, config.mount.open_files);
    let served = served.map(Arc::new).map_err(|error| error.to_string());
    if let Err(reason) = &served {
        tracing::warn!(reason, "layers are mounted when they are whole only");
    }
    let trees = served.as_ref().ok().map(|served| Arc::clone(served) as Arc<dyn Trees>);
    let mounts = Mounts::open(&root, config.mount.rung, trees).context("cannot prepare mounts")?;
    match (mounts.rung(), &served) {
        (Rung::File | Rung::Loop, Ok(served)) => served.is_below_erofs(),
        (Rung::Tree, Ok(served)) => served.shows_trees(&root),
        (Rung::None, _) | (_, Err(_)) => {}
    }
    tracing::info!(version = VERSION, root = %root.display(), rung = ?mounts.rung(), reason = mounts.reason(), "silkd starts");
    let views = StoreViews::new(Arc::clone(&store), Arc::clone(&lazies), served, Views::new(mounts));
    let views = Arc::new(views);
    views.sweep().context("cannot take stock of the mounts")?;
    let registry = registry_of(config.registry)?;
    let contents = Arc::new(ContentStore::new(connect(&config.containerd.address)));
    let share = Arc::new(share_of(&config.share)?);
    let seams = Seams { contents, show: Arc::clone(&views) as Arc<_>, share: Arc::clone(&share) };
    let puller = Puller::new(config.pull, registry, lazies, seams).context("cannot read known images")?;
    let starts = Starts::new(&root, Arc::clone(&views), Arc::clone(&puller), connect(&config.containerd.address))
        .with_context(|| format!("cannot look at {}", root.display()))?;
    let janitor = Janitor::new(Arc::clone(&views), Arc::clone(&puller), Arc::clone(&snapshots));
    let rooms = Rooms {
        mapped: Arc::new(mapped(&root, &snapshots)?),
        puller: Arc::clone(&puller),
        views: Arc::clone(&views),
        starts: Arc::clone(&starts),
        janitor: Arc::clone(&janitor),
    };
    let service =
        Service::new(Arc::clone(&snapshots), Arc::new(rooms)).with_containerd(connect(&config.containerd.address));
    tokio::spawn(trim::run());
    tokio::spawn(Twice::new(views, Arc::clone(&snapshots)).run());
    let cleaning = tokio::spawn(Arc::clone(&janitor).run());
    let node = Node::new(janitor, share);
    if let Some(address) = config.metrics.address {
        tokio::spawn(metrics::serve(address, node.clone()));
    }

    // Heard from before anybody can know that silkd is ready: who stops it in that moment meets a daemon that ends well.
    let asked = asked_to_stop().context("cannot listen for signals")?;
    let listener = socket::bind(&config.address)?;
    resume(&puller, &snapshots);
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let server = Server::builder()
        .add_service(service.into_server())
        .add_service(ControlServer::new(control::Service::new(node)))
        .serve_with_incoming_shutdown(socket::incoming(listener), async move {
            let _ = stopped.wait_for(|s| *s).await;
        });
    let mut server = tokio::spawn(server);
    notify("READY=1");
    tracing::info!(address = %config.address.display(), "serving");

    tokio::select! {
        () = asked => {}
        ended = &mut server => {
            ended.context("the server failed")?.context("the server failed")?;
        }
    }
    say_what_ends(&snapshots);
    notify("STOPPING=1");
    cleaning.abort();
    stop.send_replace(true);
    let _ = tokio::time::timeout(DRAIN, server).await;
    starts.stop();
    let _ = std::fs::remove_file(&config.address);
    Ok(())
}

/// Logs who is hit by the stop.
fn say_what_ends(snapshots: &Snapshots) {
    let count = snapshots.on_served();
    if count > 0 {
        tracing::warn!(
            count,
            "stopping: these containers were started before their image was whole, or stand on trees: what is not in memory of it they \
             cannot read from now on, until they are started again"
        );
    }
    tracing::info!("stopping: containers of images that were whole notice nothing, pulls go on with the next start");
}

/// The directory where everything lies, by its real path.
fn made(root: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let root = root.canonicalize().with_context(|| format!("cannot use {}", root.display()))?;
    plain(&root)?;
    Ok(root)
}

/// Can it stand in overlays' options?
fn plain(root: &Path) -> anyhow::Result<()> {
    let is_plain = root.to_str().is_some_and(|root| !root.contains([',', ':', '\\', '\n']));
    anyhow::ensure!(
        is_plain,
        "root = {:?}: overlayfs needs a path in UTF-8 without comma, colon, backslash or line break",
        root.display()
    );
    Ok(())
}

/// Layers as containers in user namespaces see them, of the snapshots that there are.
fn mapped(root: &Path, snapshots: &Snapshots) -> anyhow::Result<Mapped> {
    let mapped = Mapped::open(root).context("cannot prepare mounts for user namespaces")?;
    let ids = snapshots.mapped();
    mapped.sweep(&|id| ids.contains(&id)).context("cannot take stock of the mounts for user namespaces")?;
    Ok(mapped)
}

/// Listens for SIGTERM and SIGINT from now on; what it returns waits for the first of them.
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Starts the pulls that were under way when the last process ended.
fn resume(puller: &Arc<Puller>, snapshots: &Snapshots) {
    for chain in snapshots.remote_chains() {
        // What silk does not know any more, containerd's next pull brings back.
        if let Ok(state) = puller.state(&chain.image, &chain.image_ref) {
            tracing::debug!(image = chain.image_ref, ?state, "known from before");
        }
    }
}
