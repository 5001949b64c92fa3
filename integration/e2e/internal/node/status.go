package node

import (
	"encoding/json"
	"fmt"
)

// Status is what `silk status --json` prints, as far as the tests look.
type Status struct {
	Rung string `json:"rung"`
	// Backends are where silkd shares what it knows.
	Backends []struct {
		Name    string `json:"name"`
		Up      bool   `json:"up"`
		Hits    uint64 `json:"hits"`
		Refused uint64 `json:"refused"`
		Trouble string `json:"trouble"`
	} `json:"backends"`
	Images []struct {
		Reference string `json:"reference"`
		State     string `json:"state"`
		Error     string `json:"error"`
		Layers    []struct {
			DiffID     string `json:"diff_id"`
			BlobDigest string `json:"blob_digest"`
			State      string `json:"state"`
			Proved     bool   `json:"proved"`
			Error      string `json:"error"`
			NamesFrom  string `json:"names_from"`
			Mountpoint string `json:"mountpoint"`

			ProfileBytes    uint64 `json:"profile_bytes"`
			DemandBytes     uint64 `json:"demand_bytes"`
			BackgroundBytes uint64 `json:"background_bytes"`
			ReadsWaiting    uint64 `json:"reads_waiting"`
		} `json:"layers"`
	} `json:"images"`
}

// Status asks silkd.
func (n *Node) Status() (status Status, err error) {
	out, err := n.Silk("status", "--json")
	if err != nil {
		return status, err
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return status, fmt.Errorf("silk status --json printed %q: %w", out, err)
	}
	return status, nil
}

// Timing is what the tests and the bench read of `silk status --timing --json`.
type Timing struct {
	Images []struct {
		Reference string `json:"reference"`
		Known     bool   `json:"known"`
		// Limit is one word; empty while the image is on its way.
		Limit  string `json:"limit"`
		Layers []struct {
			DiffID string `json:"diff_id"`
			// Way is "here", "streamed" or "filled".
			Way   string `json:"way"`
			Limit string `json:"limit"`
		} `json:"layers"`
	} `json:"images"`
}

// Timing asks silkd where the time of an image's last pull went.
func (n *Node) Timing(ref string) (timing Timing, err error) {
	out, err := n.Silk("status", "--timing", "--json", ref)
	if err != nil {
		return timing, err
	}
	if err := json.Unmarshal([]byte(out), &timing); err != nil {
		return timing, fmt.Errorf("silk status --timing --json printed %q: %w", out, err)
	}
	return timing, nil
}

// ImageState is what silkd says of one image: its state, and the cause when it failed.
func (n *Node) ImageState(ref string) (state, message string) {
	status, err := n.Status()
	if err != nil {
		return "", err.Error()
	}
	for _, image := range status.Images {
		if image.Reference == ref {
			state, message = image.State, image.Error
		}
	}
	return state, message
}
