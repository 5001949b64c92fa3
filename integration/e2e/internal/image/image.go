package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Blob is content with its digest, in memory or in a file.
type Blob struct {
	Digest string
	Size   int64
	Open   func() (io.ReadSeekCloser, error)
}

// Manifest is a manifest or an index, as served.
type Manifest struct {
	MediaType string
	Body      []byte
}

// Bundle is all that a registry must hold for one image.
type Bundle struct {
	// Root is what the tag names; Others are the manifests that an index names.
	Root   Manifest
	Others []Manifest
	Blobs  []Blob
	// DiffIDs and LayerDigests are those of this machine's platform, from the base up.
	DiffIDs      []string
	LayerDigests []string
}

// Image is an image in the making.
type Image struct {
	Layers []Layer
	Cmd    []string
	// Docker uses Docker's media types, and not OCI's.
	Docker bool
	// Index wraps the manifest into an index beside one of another platform.
	Index bool
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// Bytes is a blob in memory.
func Bytes(data []byte) Blob {
	return Blob{Digest(data), int64(len(data)), func() (io.ReadSeekCloser, error) {
		return nopCloser{bytes.NewReader(data)}, nil
	}}
}

type object = map[string]any

func descriptor(mediaType, digest string, size int64) object {
	return object{"mediaType": mediaType, "digest": digest, "size": size}
}

// Bundle writes the configuration, the manifest and, if asked for, the index.
func (i Image) Bundle() Bundle {
	var bundle Bundle
	manifest, blobs := i.manifest(runtime.GOARCH)
	bundle.Root, bundle.Blobs = manifest, blobs
	for _, layer := range i.Layers {
		bundle.DiffIDs = append(bundle.DiffIDs, layer.DiffID)
		bundle.LayerDigests = append(bundle.LayerDigests, layer.Blob.Digest)
	}
	if i.Index {
		// The other platform's manifest comes first and its layer does not exist: it must not be asked for.
		foreign, foreignBlobs := Image{Docker: i.Docker, Layers: []Layer{NewLayer(Gzip, Entry{Name: "foreign"})}}.manifest("s390x")
		bundle.Others = []Manifest{foreign, manifest}
		bundle.Blobs = append(bundle.Blobs, foreignBlobs[0])
		bundle.Root = i.index(foreign, manifest)
	}
	return bundle
}

func (i Image) manifest(arch string) (Manifest, []Blob) {
	manifestType, configType := "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"
	if i.Docker {
		manifestType, configType = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json"
	}
	diffIDs, layers := []string{}, []object{}
	var blobs []Blob
	for _, layer := range i.Layers {
		diffIDs = append(diffIDs, layer.DiffID)
		layers = append(layers, descriptor(layer.mediaType(i.Docker), layer.Blob.Digest, layer.Blob.Size))
		blobs = append(blobs, layer.Blob)
	}
	config := Bytes(encode(object{
		"architecture": arch, "os": "linux",
		"config": object{"Cmd": i.Cmd, "Env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"}},
		"rootfs": object{"type": "layers", "diff_ids": diffIDs},
	}))
	body := encode(object{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": descriptor(configType, config.Digest, config.Size),
		"layers": layers,
	})
	return Manifest{manifestType, body}, append([]Blob{config}, blobs...)
}

func (i Image) index(foreign, native Manifest) Manifest {
	indexType := "application/vnd.oci.image.index.v1+json"
	if i.Docker {
		indexType = "application/vnd.docker.distribution.manifest.list.v2+json"
	}
	entry := func(m Manifest, arch string) object {
		d := descriptor(m.MediaType, Digest(m.Body), int64(len(m.Body)))
		d["platform"] = object{"architecture": arch, "os": "linux"}
		return d
	}
	return Manifest{indexType, encode(object{
		"schemaVersion": 2, "mediaType": indexType,
		"manifests": []object{entry(foreign, "s390x"), entry(native, runtime.GOARCH)},
	})}
}

func encode(value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // maps of strings and numbers always encode
	}
	return data
}

// ReadLayout reads the image of an OCI layout that holds one.
func ReadLayout(dir string) (bundle Bundle, err error) {
	blob := func(digest string) string {
		return filepath.Join(dir, "blobs", strings.Replace(digest, ":", "/", 1))
	}
	type desc struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
	}
	var index struct{ Manifests []desc }
	var manifest struct {
		Config desc
		Layers []desc
	}
	var config struct {
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := readJSON(filepath.Join(dir, "index.json"), &index); err != nil {
		return bundle, err
	}
	if len(index.Manifests) != 1 {
		return bundle, fmt.Errorf("%s holds %d images, not one", dir, len(index.Manifests))
	}
	root := index.Manifests[0]
	if bundle.Root.Body, err = os.ReadFile(blob(root.Digest)); err != nil {
		return bundle, err
	}
	bundle.Root.MediaType = root.MediaType
	if err := json.Unmarshal(bundle.Root.Body, &manifest); err != nil {
		return bundle, err
	}
	if err := readJSON(blob(manifest.Config.Digest), &config); err != nil {
		return bundle, err
	}
	bundle.DiffIDs = config.Rootfs.DiffIDs
	for _, d := range append([]desc{manifest.Config}, manifest.Layers...) {
		path := blob(d.Digest)
		bundle.Blobs = append(bundle.Blobs, Blob{d.Digest, d.Size, func() (io.ReadSeekCloser, error) { return os.Open(path) }})
	}
	for _, d := range manifest.Layers {
		bundle.LayerDigests = append(bundle.LayerDigests, d.Digest)
	}
	return bundle, nil
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
