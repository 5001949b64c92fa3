package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPod starts a sandbox with the host's network, as kubelet does for such pods.
func (n *Node) RunPod(ctx context.Context, name string) (id string, config *runtime.PodSandboxConfig, err error) {
	config = &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		LogDirectory: filepath.Join(n.Dir, "logs", name),
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: n.namespaces(),
		}},
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return "", nil, err
	}
	answer, err := n.Pods.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", nil, fmt.Errorf("RunPodSandbox: %w", err)
	}
	n.mu.Lock()
	n.pods = append(n.pods, answer.PodSandboxId)
	n.mu.Unlock()
	return answer.PodSandboxId, config, nil
}

// namespaces of pods and their containers: the host's network, but for pods in user namespaces, which must not have it.
func (n *Node) namespaces() *runtime.NamespaceOption {
	if n.PodIDs == nil {
		return &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
	}
	ids := []*runtime.IDMapping{n.PodIDs}
	return &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}}
}

// NoNetwork gives a node's pods a network plugin that does nothing.
func NoNetwork(dir string) error {
	const says = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"192.0.2.2/24","interface":0}]}`
	for name, text := range map[string]string{
		"10-none.conflist": `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"none"}]}`,
		"none":             "#!/bin/sh\necho '" + says + "'\n",
		"loopback":         "#!/bin/sh\necho '" + says + "'\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "cni", name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// PullCRI pulls an image as kubelet does.
func (n *Node) PullCRI(ctx context.Context, ref string) error {
	_, err := n.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	return err
}

// PullCRIAs pulls an image with what a pod's imagePullSecrets hold.
func (n *Node) PullCRIAs(ctx context.Context, ref string, login Login) error {
	auth := &runtime.AuthConfig{Username: login.User, Password: login.Password}
	_, err := n.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}, Auth: auth})
	return err
}

// RunContainer creates a container in a pod and starts it.
func (n *Node) RunContainer(ctx context.Context, pod string, sandbox *runtime.PodSandboxConfig, ref string, command ...string) (id string, err error) {
	if id, err = n.CreateContainer(ctx, pod, sandbox, 0, ref, command...); err != nil {
		return "", err
	}
	return id, n.StartContainer(ctx, id)
}

// CreateContainer makes a container in a pod, which had so many before this one.
func (n *Node) CreateContainer(ctx context.Context, pod string, sandbox *runtime.PodSandboxConfig, attempt uint32, ref string, command ...string) (id string, err error) {
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "main", Attempt: attempt},
		Image:    &runtime.ImageSpec{Image: ref},
		Command:  command,
		LogPath:  fmt.Sprintf("main-%d.log", attempt),
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: n.namespaces(),
		}},
	}
	created, err := n.Pods.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: sandbox})
	if err != nil {
		return "", fmt.Errorf("CreateContainer: %w", err)
	}
	return created.ContainerId, nil
}

// StartContainer starts a container and waits until its log has a line that starts with "ready".
func (n *Node) StartContainer(ctx context.Context, id string) error {
	if _, err := n.Pods.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("StartContainer: %w", err)
	}
	for {
		answer, err := n.Pods.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return fmt.Errorf("ContainerStatus: %w", err)
		}
		data, _ := os.ReadFile(answer.Status.LogPath)
		if strings.Contains(string(data), " stdout F ready") {
			return nil
		}
		if answer.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("the container ended: %s", data)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the container never said ready: %s", data)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ContainerState asks CRI how a container is.
func (n *Node) ContainerState(ctx context.Context, id string) runtime.ContainerState {
	answer, err := n.Pods.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return runtime.ContainerState_CONTAINER_UNKNOWN
	}
	return answer.Status.State
}

// Exec runs a command in a container and returns what it printed.
func (n *Node) Exec(ctx context.Context, id string, command ...string) (string, error) {
	answer, err := n.Pods.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 180})
	if err != nil {
		return "", fmt.Errorf("ExecSync: %w", err)
	}
	if answer.ExitCode != 0 {
		return "", fmt.Errorf("%v ended with %d: %s%s", command, answer.ExitCode, answer.Stdout, answer.Stderr)
	}
	return string(answer.Stdout), nil
}

// RemovePod stops and removes a pod with its containers.
func (n *Node) RemovePod(ctx context.Context, id string) error {
	if _, err := n.Pods.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("StopPodSandbox: %w", err)
	}
	if _, err := n.Pods.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("RemovePodSandbox: %w", err)
	}
	return nil
}

func (n *Node) removePods() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, id := range n.pods {
		n.RemovePod(ctx, id)
	}
}
