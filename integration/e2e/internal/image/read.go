package image

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Entries reads the names and types of each layer of a well-formed image, from the base up, as far as TimesMadeUp needs them.
func (b Bundle) Entries() (layers [][]Entry, err error) {
	blobs := map[string]Blob{}
	for _, blob := range b.Blobs {
		blobs[blob.Digest] = blob
	}
	for _, digest := range b.LayerDigests {
		entries, err := readEntries(blobs[digest])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", digest, err)
		}
		layers = append(layers, entries)
	}
	return layers, nil
}

func readEntries(blob Blob) (entries []Entry, err error) {
	plain, file, err := blob.decompressed()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := tar.NewReader(plain)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		} else if err != nil {
			return nil, err
		}
		entries = append(entries, Entry{Name: header.Name, Type: header.Typeflag})
	}
}

// decompressed reads a blob's content; what it reads from is to be closed.
func (b Blob) decompressed() (io.Reader, io.Closer, error) {
	if b.Open == nil {
		return nil, nil, fmt.Errorf("a blob is missing")
	}
	file, err := b.Open()
	if err != nil {
		return nil, nil, err
	}
	plain, err := decompress(bufio.NewReader(file))
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return plain, file, nil
}

func decompress(blob *bufio.Reader) (io.Reader, error) {
	magic, _ := blob.Peek(4)
	switch {
	case len(magic) > 1 && magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(blob)
	case string(magic) == "\x28\xb5\x2f\xfd":
		return zstd.NewReader(blob)
	default:
		return blob, nil
	}
}
