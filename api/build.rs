//! Generates the gRPC types from `proto/` with protox: no `protoc` is needed to build silk.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "containerd/services/snapshots/v1/snapshots.proto",
        "containerd/services/containers/v1/containers.proto",
        "containerd/services/content/v1/content.proto",
        "containerd/services/diff/v1/diff.proto",
        "containerd/services/images/v1/images.proto",
        "containerd/services/leases/v1/leases.proto",
        "containerd/services/version/v1/version.proto",
        "silk/control/v1/control.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(files, ["proto", "proto/containerd"])?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
