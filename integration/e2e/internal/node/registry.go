package node

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/scope"
)

// Registry is Debian's docker-registry on a loopback port, with its store in a folder of the test's.
type Registry struct {
	Host  string
	t     scope.Scope
	users string
	login *Login
}

// Login lets somebody into a private registry.
type Login struct {
	User, Password string
	// line is what htpasswd -B prints for them.
	line string
}

// Logins with different passwords.
var (
	OldLogin = Login{"silk", "first", "silk:$2b$05$abcdefghijklmnopqrstuu3rQZA.e/048YzLTJ55aycWHfqo0a49W\n"}
	NewLogin = Login{"silk", "second", "silk:$2b$05$abcdefghijklmnopqrstuuKbPhTOR7Pvo59BRa0eQ090CMHpax.C6\n"}
)

// StartRegistry starts it until the test ends.
func StartRegistry(t scope.Scope) *Registry {
	t.Helper()
	r := newRegistry(t)
	r.start("")
	return r
}

// StartPrivateRegistry starts one that lets nobody in but the holder of a login.
func StartPrivateRegistry(t scope.Scope, login Login) *Registry {
	t.Helper()
	r := newRegistry(t)
	r.users = filepath.Join(t.TempDir(), "htpasswd")
	r.Admit(login)
	r.start(fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", r.users))
	return r
}

// Admit makes a login the only one that is good, from now on.
func (r *Registry) Admit(login Login) {
	r.t.Helper()
	if err := os.WriteFile(r.users, []byte(login.line), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.login = &login
}

func newRegistry(t scope.Scope) *Registry {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Registry{Host: listener.Addr().String(), t: t}
	listener.Close()
	return r
}

func (r *Registry) start(settings string) {
	t := r.t
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\nlog: {level: error}\n%s",
		filepath.Join(dir, "store"), r.Host, settings)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	process, err := startProcess(dir, "registry", "docker-registry", "serve", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Kill)
	Eventually(t, "the registry answers", func() error { return r.do(http.MethodGet, r.url(""), "", nil, http.StatusOK, nil) })
}

// Push pushes an image and returns its reference.
func (r *Registry) Push(name, tag string, bundle image.Bundle) string {
	r.t.Helper()
	for _, blob := range bundle.Blobs {
		if err := r.pushBlob(name, blob); err != nil {
			r.t.Fatalf("pushing %s: %v", blob.Digest, err)
		}
	}
	for _, manifest := range append(bundle.Others, bundle.Root) {
		path := name + "/manifests/" + image.Digest(manifest.Body)
		if err := r.do(http.MethodPut, r.url(path), manifest.MediaType, bytes.NewReader(manifest.Body), http.StatusCreated, nil); err != nil {
			r.t.Fatal(err)
		}
	}
	path := name + "/manifests/" + tag
	if err := r.do(http.MethodPut, r.url(path), bundle.Root.MediaType, bytes.NewReader(bundle.Root.Body), http.StatusCreated, nil); err != nil {
		r.t.Fatal(err)
	}
	return r.Host + "/" + name + ":" + tag
}

func (r *Registry) url(path string) string { return "http://" + r.Host + "/v2/" + path }

func (r *Registry) pushBlob(name string, blob image.Blob) error {
	if r.do(http.MethodHead, r.url(name+"/blobs/"+blob.Digest), "", nil, http.StatusOK, nil) == nil {
		return nil
	}
	var location string
	if err := r.do(http.MethodPost, r.url(name+"/blobs/uploads/"), "", nil, http.StatusAccepted, &location); err != nil {
		return err
	}
	content, err := blob.Open()
	if err != nil {
		return err
	}
	defer content.Close()
	target := location + "&digest=" + url.QueryEscape(blob.Digest)
	if !strings.Contains(location, "?") {
		target = location + "?digest=" + url.QueryEscape(blob.Digest)
	}
	return r.do(http.MethodPut, target, "application/octet-stream", content, http.StatusCreated, nil)
}

func (r *Registry) do(method, target, contentType string, body io.Reader, want int, location *string) error {
	request, err := http.NewRequest(method, target, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	if r.login != nil {
		request.SetBasicAuth(r.login.User, r.login.Password)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != want {
		said, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
		return fmt.Errorf("%s %s: %s: %s", method, target, answer.Status, said)
	}
	if location != nil {
		*location = answer.Header.Get("Location")
	}
	return nil
}
