package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// A registry that wants a password. kubelet gives it to containerd with each pull; silk has its own, in docker's file, which comes and
// changes while silkd runs.
func TestPrivateRegistry(t *testing.T) {
	oldAndNew(t, func(t *testing.T, generation node.Generation) {
		pauses, private := hub.Start(t), node.StartPrivateRegistry(t, node.OldLogin)
		n := withPods(t, pauses, node.Options{Generation: generation})
		ctx := node.Context(t, "k8s.io")
		// run pulls an image as a pod with imagePullSecrets, starts it, and tells how silk says it is.
		run := func(name string, login node.Login) (state, message string) {
			t.Helper()
			content := []byte(strings.Repeat(name, 100_000))
			// Not above a layer that containerd has unpacked: those images are containerd's, too.
			layers := []image.Layer{image.NewLayer(image.Gzip, image.Entry{Name: "data/" + name, Body: content}), guestLayer(t)}
			ref := private.Push("private/"+name, "1", image.Image{Layers: layers, Cmd: []string{"/guest", "hello"}}.Bundle())
			if err := n.PullCRIAs(ctx, ref, login); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			pod, sandbox, err := n.RunPod(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			container, err := n.RunContainer(ctx, pod, sandbox, ref)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got, err := n.Exec(ctx, container, "/guest", "sum", "/data/"+name); err != nil || got != image.Digest(content) {
				t.Errorf("%s: the file in the container is %s, want %s (%v)", name, got, image.Digest(content), err)
			}
			return n.ImageState(ref)
		}
		if state, message := run("none", node.OldLogin); state != "refused" || !strings.Contains(message, "401") {
			t.Errorf("without credentials: %s, %s", state, message)
		}
		logIn(t, n, private.Host, node.OldLogin)
		if state, message := run("first", node.OldLogin); state != "ready" {
			t.Errorf("with credentials: %s, %s", state, message)
		}
		private.Admit(node.NewLogin)
		if state, message := run("stale", node.NewLogin); state != "refused" || !strings.Contains(message, "401") {
			t.Errorf("with the old password: %s, %s", state, message)
		}
		logIn(t, n, private.Host, node.NewLogin)
		if state, message := run("second", node.NewLogin); state != "ready" {
			t.Errorf("with the new password: %s, %s", state, message)
		}
	})
}

// The password of a registry is another one by the time that a known image is read: readers wait until silk has it, too.
func TestReadersWaitForCredentials(t *testing.T) {
	f := startFleetOf(t, node.Second)
	ctx := node.Context(t, "k8s.io")
	pod, sandbox, err := f.student.RunPod(ctx, "waits")
	if err != nil {
		t.Fatal(err)
	}
	f.registry.SetFault(hub.Silk(hub.Any(f.bundle.LayerDigests, hub.Private(node.NewLogin.User, node.NewLogin.Password))))
	logIn(t, f.student, f.registry.Host, node.OldLogin)
	if err := f.student.PullCRI(ctx, f.ref); err != nil {
		t.Fatal(err)
	}
	container, err := f.student.RunContainer(ctx, pod, sandbox, f.ref)
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		sum string
		err error
	}
	read := make(chan answer, 1)
	go func() {
		sum, err := f.student.Exec(ctx, container, "/guest", "sum", "/data/small")
		read <- answer{sum, err}
	}()
	f.student.Eventually("the reader waits, and silk says for what", func() error {
		select {
		case got := <-read:
			t.Fatalf("the reader did not wait: %s, %v", got.sum, got.err)
		default:
		}
		if err := waits(f.student, f.ref); err != nil {
			return err
		}
		if said, err := f.student.Silk("explain", f.ref); err != nil || !strings.Contains(said, "401") {
			return fmt.Errorf("silk explain says %q, %v", said, err)
		}
		return nil
	})
	logIn(t, f.student, f.registry.Host, node.NewLogin)
	if got, want := <-read, image.Digest(noise(78, 1000)); got.err != nil || got.sum != want {
		t.Fatalf("silk has the new password, and the file in the container is %s, want %s (%v)", got.sum, want, got.err)
	}
	f.student.Eventually("every layer is whole", func() error { return whole(f.student, f.ref) })
}

// logIn does what `docker login` does to the file that silk reads.
func logIn(t *testing.T, n *node.Node, host string, login node.Login) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"auths": map[string]any{
		host: map[string]string{"username": login.User, "password": login.Password},
	}})
	if err != nil {
		t.Fatal(err)
	}
	// Whole or not at all: it is read at any time.
	file := filepath.Join(n.Dir, "docker.json")
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}
