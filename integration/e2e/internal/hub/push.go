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

// Referrers are the descriptors of the manifests that name another one as their subject.
func (h *Hub) Referrers(name, subject string) (found []map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, manifest := range h.manifests {
		digest, ok := strings.CutPrefix(key, name+"@")
		if !ok || !bytes.Contains(manifest.Body, []byte(subject)) {
			continue
		}
		var says struct {
			ArtifactType string                   `json:"artifactType"`
			Subject      *struct{ Digest string } `json:"subject"`
			Config       struct{ MediaType string }
			Annotations  map[string]string `json:"annotations"`
		}
		if json.Unmarshal(manifest.Body, &says) != nil || says.Subject == nil || says.Subject.Digest != subject {
			continue
		}
		if says.ArtifactType == "" {
			says.ArtifactType = says.Config.MediaType
		}
		found = append(found, map[string]any{
			"mediaType": manifest.MediaType, "digest": digest, "size": len(manifest.Body),
			"artifactType": says.ArtifactType, "annotations": says.Annotations,
		})
	}
	return found
}

func (h *Hub) serveReferrers(w http.ResponseWriter, name, subject string) {
	found := h.Referrers(name, subject)
	if found == nil {
		found = []map[string]any{}
	}
	w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	body, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": found,
	})
	if err != nil {
		Error(w, http.StatusInternalServerError, fmt.Sprint(err))
		return
	}
	w.Write(body)
}

func (h *Hub) deleteManifest(w http.ResponseWriter, name, digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.manifests, name+"@"+digest)
	w.WriteHeader(http.StatusAccepted)
}
