package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// The calls that kubelet makes, from an empty node to an empty node.
func TestPodsThroughCRI(t *testing.T) {
	// In parallel with others that wait for silkd to give space back, which it does once a minute.
	t.Parallel()
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		t.Parallel()
		podLife(t, node.Options{Generation: generation})
	})
	t.Run("second, its transfer service", func(t *testing.T) {
		t.Parallel()
		podLife(t, node.Options{Generation: node.Second, Transfer: true})
	})
}

func podLife(t *testing.T, options node.Options) {
	registry := hub.Start(t)
	n := withPods(t, registry, options)
	ctx := node.Context(t, "k8s.io")
	content := strings.Repeat("what the layer says\n", 300_000)
	bundle := runnable(t, image.NewLayer(image.Gzip, image.Entry{Name: "data/file", Body: []byte(content)})).Bundle()
	ref := registry.Add("app", "1", bundle)
	pod, sandbox, err := n.RunPod(ctx, "life")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.PullCRI(ctx, ref); err != nil {
		t.Fatal(err)
	}
	checkListed(t, n, ref, bundle)
	checkFsInfo(t, n)
	container, err := n.RunContainer(ctx, pod, sandbox, ref)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.Exec(ctx, container, "/guest", "sum", "/data/file"); err != nil || got != image.Digest([]byte(content)) {
		t.Fatalf("the file in the container is %s, want %s (%v)", got, image.Digest([]byte(content)), err)
	}
	t.Run("a broken image fails its PullImage", func(t *testing.T) { brokenImage(t, n, registry) })
	if state := n.ContainerState(ctx, container); state != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other image's container is %v", state)
	}
	if err := n.RemovePod(ctx, pod); err != nil {
		t.Fatal(err)
	}
	removed(t, n, ref, bundle)
}

// checkListed compares what `crictl images` shows with the manifest.
func checkListed(t *testing.T, n *node.Node, ref string, bundle image.Bundle) {
	t.Helper()
	answer, err := n.Images.ListImages(node.Context(t, "k8s.io"), &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, listed := range answer.Images {
		if !slices.Contains(listed.RepoTags, ref) {
			continue
		}
		size := uint64(len(bundle.Root.Body))
		for _, blob := range bundle.Blobs {
			size += uint64(blob.Size)
		}
		if listed.Size_ != size {
			t.Errorf("ListImages says %d bytes, the manifest %d", listed.Size_, size)
		}
		return
	}
	t.Errorf("ListImages does not know %s: %v", ref, answer.Images)
}

// checkFsInfo compares what `crictl imagefsinfo` shows with the disk.
func checkFsInfo(t *testing.T, n *node.Node) {
	t.Helper()
	// CRI gathers sizes in the background, and once a snapshot.
	n.Eventually("ImageFsInfo tells what layers take", func() error {
		answer, err := n.Images.ImageFsInfo(context.Background(), &runtime.ImageFsInfoRequest{})
		if err != nil {
			return err
		}
		if len(answer.ImageFilesystems) != 1 {
			return fmt.Errorf("%d file systems", len(answer.ImageFilesystems))
		}
		info := answer.ImageFilesystems[0]
		// An older containerd names a folder of its own: the documented link.
		at, err := filepath.EvalSymlinks(info.FsId.Mountpoint)
		if want := filepath.Join(n.Dir, "silk"); err != nil || at != want {
			return fmt.Errorf("the file system is %s (%w), want %s", info.FsId.Mountpoint, err, want)
		}
		var layers uint64
		for _, size := range n.LayerData() {
			layers += uint64(size)
		}
		// Data files are rounded up to whole pages, and directories and metadata come to it.
		if used := info.UsedBytes.Value; used < layers-layers/100-1<<16 || used > layers+layers/100+1<<16 {
			return fmt.Errorf("%d bytes are used, the layers have %d", used, layers)
		}
		return nil
	})
}

// brokenImage pulls an image whose layer is not what its configuration says.
func brokenImage(t *testing.T, n *node.Node, registry *hub.Hub) {
	broken := image.NewLayer(image.Gzip, image.Entry{Name: "broken", Body: []byte("x")})
	broken.DiffID = image.Digest([]byte("something else"))
	ref := registry.Add("broken", "1", runnable(t, broken).Bundle())
	err := n.PullCRI(node.Context(t, "k8s.io"), ref)
	if err == nil {
		t.Fatal("the pull of a broken image succeeded")
	}
	for _, part := range []string{ref, broken.Blob.Digest, broken.DiffID} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("PullImage's error does not name %s: %v", part, err)
		}
	}
}

// removed removes an image and checks that its space comes back.
func removed(t *testing.T, n *node.Node, ref string, bundle image.Bundle) {
	t.Helper()
	ctx := node.Context(t, "k8s.io")
	if _, err := n.Images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	own := bundle.DiffIDs[len(bundle.DiffIDs)-1]
	n.Settled("the image's layer is gone", func() error {
		if _, err := n.Silk("gc", "--keep", "0"); err != nil {
			return err
		}
		if _, there := n.LayerData()[own]; there {
			return errors.New("its data file is there")
		}
		return nil
	})
	listed, err := n.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil || listed.Image != nil {
		t.Errorf("ImageStatus after the removal: %v, %v", listed, err)
	}
	// The sandbox's image, pinned or not, is still in use by nobody but listed; all mounts but its own are gone.
	if mounts := n.LayerMounts(); len(mounts) > 1 {
		t.Errorf("layers are still mounted: %v", mounts)
	}
	checkFsInfo(t, n)
}
