package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"silk.invalid/integration/e2e/internal/image"
)

// The largest that is taken from a client: everything that is pushed stays in memory.
const pushLimit = 256 << 20

// push stores what a client sends: blobs in one piece (POST then PUT) and manifests.
func (h *Hub) push(w http.ResponseWriter, r *http.Request, name, kind, reference string) {
	if kind == "uploads" && r.Method == http.MethodPost {
		w.Header().Set("Location", "/v2/"+name+"/uploads/one")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, pushLimit))
	if err != nil {
		Error(w, http.StatusRequestEntityTooLarge, "SIZE_INVALID")
		return
	}
	digest := image.Digest(body)
	switch {
	case kind == "uploads" && r.URL.Query().Get("digest") != digest:
		Error(w, http.StatusBadRequest, "DIGEST_INVALID")
		return
	case kind == "uploads":
		h.mu.Lock()
		h.blobs[digest] = image.Bytes(body)
		h.mu.Unlock()
	case kind == "manifests":
		h.putManifest(w, name, reference, image.Manifest{MediaType: r.Header.Get("Content-Type"), Body: body})
	}
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
}

func (h *Hub) putManifest(w http.ResponseWriter, name, reference string, manifest image.Manifest) {
	digest := image.Digest(manifest.Body)
	var says struct{ Subject *struct{ Digest string } }
	json.Unmarshal(manifest.Body, &says)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.manifests[name+"@"+digest] = manifest
	if !strings.HasPrefix(reference, "sha256:") {
		h.manifests[name+":"+reference] = manifest
	}
	if says.Subject != nil {
		w.Header().Set("OCI-Subject", says.Subject.Digest)
	}
}

// Referrer is a manifest that names another one as its subject.
type Referrer struct {
	image.Manifest
	Digest       string
	ArtifactType string
	Annotations  map[string]string
}

// Referrers are the manifests of a repository that refer to one of its manifests.
func (h *Hub) Referrers(name, subject string) (found []Referrer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, manifest := range h.manifests {
		digest, ok := strings.CutPrefix(key, name+"@")
		if !ok || !bytes.Contains(manifest.Body, []byte(subject)) {
			continue
		}
		var says struct {
			ArtifactType string
			Subject      *struct{ Digest string }
			Config       struct{ MediaType string }
			Annotations  map[string]string
		}
		if json.Unmarshal(manifest.Body, &says) != nil || says.Subject == nil || says.Subject.Digest != subject {
			continue
		}
		if says.ArtifactType == "" {
			says.ArtifactType = says.Config.MediaType
		}
		found = append(found, Referrer{manifest, digest, says.ArtifactType, says.Annotations})
	}
	return found
}

func (h *Hub) serveReferrers(w http.ResponseWriter, name, subject string) {
	descriptors := []map[string]any{}
	for _, r := range h.Referrers(name, subject) {
		descriptors = append(descriptors, map[string]any{
			"mediaType": r.MediaType, "digest": r.Digest, "size": len(r.Body),
			"artifactType": r.ArtifactType, "annotations": r.Annotations,
		})
	}
	const mediaType = "application/vnd.oci.image.index.v1+json"
	body, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaType, "manifests": descriptors})
	if err != nil {
		Error(w, http.StatusInternalServerError, fmt.Sprint(err))
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Write(body)
}

func (h *Hub) deleteManifest(w http.ResponseWriter, name, digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.manifests, name+"@"+digest)
	w.WriteHeader(http.StatusAccepted)
}
