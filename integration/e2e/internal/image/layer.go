package image

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"

	"github.com/klauspost/compress/zstd"
)

// Compression is how a layer's tar becomes its blob.
type Compression int

// The compressions that registries hold layers in.
const (
	Gzip Compression = iota
	// GzipMembers is gzip in several members, as parallel compressors and eStargz write it.
	GzipMembers
	Zstd
	Plain
)

// Layer is one layer of an image: what its manifest and configuration say of it, and its bytes. A test that wants a lie sets it.
type Layer struct {
	Compression Compression
	DiffID      string
	Blob        Blob
	// Entries is what the tar holds, when the layer was made of entries.
	Entries []Entry
}

// Digest is the OCI digest of data.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// NewLayer makes a layer of entries.
func NewLayer(compression Compression, entries ...Entry) Layer {
	layer := FromTar(compression, WriteTar(entries...))
	layer.Entries = entries
	return layer
}

// FromTar makes a layer of a tar.
func FromTar(compression Compression, tar []byte) Layer {
	return Layer{Compression: compression, DiffID: Digest(tar), Blob: Bytes(compress(compression, tar))}
}

func compress(compression Compression, tar []byte) []byte {
	var out bytes.Buffer
	switch compression {
	case Plain:
		return tar
	case Zstd:
		encoder, _ := zstd.NewWriter(&out) // fails for bad options only
		encoder.Write(tar)
		encoder.Close()
	case Gzip:
		writeGzip(&out, tar)
	case GzipMembers:
		// Odd lengths, so that members end inside headers and bodies.
		for step := 10_007; len(tar) > 0; tar = tar[min(step, len(tar)):] {
			writeGzip(&out, tar[:min(step, len(tar))])
		}
	}
	return out.Bytes()
}

func writeGzip(out *bytes.Buffer, data []byte) {
	// Fast: the tests spend their time elsewhere.
	writer, _ := gzip.NewWriterLevel(out, gzip.BestSpeed) // fails for bad levels only
	writer.Write(data)
	writer.Close()
}

// mediaType is the layer's in the manifests of OCI or of Docker.
func (l Layer) mediaType(docker bool) string {
	base, suffix := "application/vnd.oci.image.layer.v1.tar", "+"
	if docker {
		base, suffix = "application/vnd.docker.image.rootfs.diff.tar", "."
	}
	switch l.Compression {
	case Plain:
		return base
	case Zstd:
		return base + suffix + "zstd"
	default:
		return base + suffix + "gzip"
	}
}
