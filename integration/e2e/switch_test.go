package e2e

import (
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// What kubelet can start from does not depend on who ran first, nor on which snapshotter an image was pulled with.
func TestImagesAcrossRestartsAndSnapshotters(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		t.Parallel()
		registry := hub.Start(t)
		n := withPods(t, registry, node.Options{Generation: generation})
		ctx := node.Context(t, "k8s.io")
		ours := registry.Add("ours", "1", runnable(t, noiseLayer("data/file", 71, 1<<20)).Bundle())
		// Of a node from before silk; its base is no base of other images.
		theirs := registry.Add("theirs", "1", image.Image{
			Layers: []image.Layer{noiseLayer("data/file", 72, 1<<20), guestLayer(t)}, Cmd: []string{"/guest", "hello"},
		}.Bundle())
		pod, _, err := n.RunPod(ctx, "before")
		if err != nil {
			t.Fatal(err)
		}
		if err := n.PullCRI(ctx, ours); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Pull(ctx, theirs, "overlayfs"); err != nil {
			t.Fatal(err)
		}
		if err := n.RemovePod(ctx, pod); err != nil {
			t.Fatal(err)
		}
		registry.SetDown(true)

		// containerd starts without silkd, and again with it.
		n.Silkd.Kill()
		n.RestartContainerd()
		n.StartSilkd()
		n.RestartContainerd()
		status, err := n.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ours}})
		if err != nil || status.Image == nil {
			t.Fatalf("CRI does not know %s any more: %v", ours, err)
		}
		podReads(t, n, "ours", ours, image.Digest(noise(71, 1<<20)))
		podReads(t, n, "theirs", theirs, image.Digest(noise(72, 1<<20)))

		// And the other way: overlayfs gets an image that silk pulled.
		registry.SetDown(false)
		if _, err := n.Silk("-n", "k8s.io", "pull", "--local", "--snapshotter", "overlayfs", ours); err != nil {
			t.Fatal(err)
		}
		pulled, err := n.Client.GetImage(ctx, ours)
		if err != nil {
			t.Fatal(err)
		}
		if unpacked, err := pulled.IsUnpacked(ctx, "overlayfs"); err != nil || !unpacked {
			t.Errorf("overlayfs does not have the image: %v", err)
		}
		podReads(t, n, "again", ours, image.Digest(noise(71, 1<<20)))
	})
}

// podReads starts a pod and compares what its container reads.
func podReads(t *testing.T, n *node.Node, name, ref, want string) {
	t.Helper()
	ctx := node.Context(t, "k8s.io")
	pod, sandbox, err := n.RunPod(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	container, err := n.RunContainer(ctx, pod, sandbox, ref)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.Exec(ctx, container, "/guest", "sum", "/data/file"); err != nil || got != want {
		t.Errorf("%s reads %s, want %s (%v)", name, got, want, err)
	}
}
