package image

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// Rebuilt is the image of an OCI layout with a last layer that holds the same files in other bytes, as after a build that found nothing of it in
// its cache.
func (b Bundle) Rebuilt() (rebuilt Bundle, err error) {
	last := len(b.LayerDigests) - 1
	if last < 0 {
		return rebuilt, fmt.Errorf("an image without layers")
	}
	blobs := map[string]Blob{}
	for _, blob := range b.Blobs {
		blobs[blob.Digest] = blob
	}
	tar, err := readAll(blobs[b.LayerDigests[last]])
	if err != nil {
		return rebuilt, err
	}
	// What follows the end marker is of no meaning.
	layer := FromTar(Gzip, append(tar, make([]byte, 1024)...))
	var manifest, config object
	if err := json.Unmarshal(b.Root.Body, &manifest); err != nil {
		return rebuilt, err
	}
	of, _ := manifest["config"].(object)
	digest, _ := of["digest"].(string)
	plain, err := readAll(blobs[digest])
	if err != nil {
		return rebuilt, err
	}
	if err := json.Unmarshal(plain, &config); err != nil {
		return rebuilt, err
	}
	rebuilt.DiffIDs = append(slices.Clone(b.DiffIDs[:last]), layer.DiffID)
	rebuilt.LayerDigests = append(slices.Clone(b.LayerDigests[:last]), layer.Blob.Digest)
	config["rootfs"] = object{"type": "layers", "diff_ids": rebuilt.DiffIDs}
	written := Bytes(encode(config))
	of["digest"], of["size"] = written.Digest, written.Size
	layers, _ := manifest["layers"].([]any)
	if len(layers) != last+1 {
		return rebuilt, fmt.Errorf("%d layers in the manifest, %d in the image", len(layers), last+1)
	}
	layers[last] = descriptor(layer.mediaType(false), layer.Blob.Digest, layer.Blob.Size)
	rebuilt.Root = Manifest{b.Root.MediaType, encode(manifest)}
	rebuilt.Blobs = append(slices.Clone(b.Blobs), written, layer.Blob)
	return rebuilt, nil
}

// readAll is a blob's content, decompressed.
func readAll(blob Blob) ([]byte, error) {
	plain, file, err := blob.decompressed()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(plain)
}
