package image

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// Rebuilt is the image of an OCI layout with a last layer that holds the same files in other bytes, as after a build that found nothing of it in
// its cache.
func (b Bundle) Rebuilt() (Bundle, error) {
	last := len(b.LayerDigests) - 1
	if last < 0 {
		return b, fmt.Errorf("an image without layers")
	}
	blob, err := b.blob(b.LayerDigests[last])
	if err != nil {
		return b, err
	}
	tar, err := readAll(blob)
	if err != nil {
		return b, err
	}
	// What follows the end marker is of no meaning.
	layer := FromTar(Gzip, append(tar, make([]byte, 1024)...))
	diffIDs := append(slices.Clone(b.DiffIDs[:last]), layer.DiffID)
	rebuilt, err := b.changed(func(manifest, config object) error {
		layers, _ := manifest["layers"].([]any)
		if len(layers) != last+1 {
			return fmt.Errorf("%d layers in the manifest, %d in the image", len(layers), last+1)
		}
		layers[last] = descriptor(layer.mediaType(false), layer.Blob.Digest, layer.Blob.Size)
		config["rootfs"] = object{"type": "layers", "diff_ids": diffIDs}
		return nil
	})
	if err != nil {
		return b, err
	}
	rebuilt.DiffIDs = diffIDs
	rebuilt.LayerDigests = append(slices.Clone(b.LayerDigests[:last]), layer.Blob.Digest)
	rebuilt.Blobs = append(rebuilt.Blobs, layer.Blob)
	return rebuilt, nil
}

// WithCommand is the image of an OCI layout whose containers run another command.
func (b Bundle) WithCommand(command []string) (Bundle, error) {
	return b.changed(func(_, config object) error {
		settings, _ := config["config"].(object)
		if settings == nil {
			return fmt.Errorf("the image's configuration says nothing of containers")
		}
		delete(settings, "Entrypoint")
		settings["Cmd"] = command
		return nil
	})
}

// changed is the same image with another manifest and another configuration.
func (b Bundle) changed(change func(manifest, config object) error) (Bundle, error) {
	var manifest, config object
	if err := json.Unmarshal(b.Root.Body, &manifest); err != nil {
		return b, err
	}
	of, _ := manifest["config"].(object)
	digest, _ := of["digest"].(string)
	blob, err := b.blob(digest)
	if err != nil {
		return b, err
	}
	plain, err := readAll(blob)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(plain, &config); err != nil {
		return b, err
	}
	if err := change(manifest, config); err != nil {
		return b, err
	}
	written := Bytes(encode(config))
	of["digest"], of["size"] = written.Digest, written.Size
	b.Root.Body = encode(manifest)
	b.Blobs = append(slices.Clone(b.Blobs), written)
	return b, nil
}

func (b Bundle) blob(digest string) (Blob, error) {
	i := slices.IndexFunc(b.Blobs, func(blob Blob) bool { return blob.Digest == digest })
	if i < 0 {
		return Blob{}, fmt.Errorf("the image has no blob %q", digest)
	}
	return b.Blobs[i], nil
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
