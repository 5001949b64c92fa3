package image

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
)

// encoded makes a blob of a tar as some tool might: members and frames, empty ones among them, of any level and with all that their headers
// can hold. Only its media type says how it was made, and now and then not even that.
func (r *random) encoded(tar []byte) Layer {
	layer := Layer{Compression: pick(r, []Compression{Gzip, Gzip, Zstd, Plain}), DiffID: Digest(tar)}
	if len(tar) == 0 && layer.Compression == Plain {
		layer.Compression = Gzip // containerd fetches no blob without bytes
	}
	var blob []byte
	switch layer.Compression {
	case Gzip:
		blob = r.gzip(tar)
	case Zstd:
		blob = r.zstd(tar)
	default:
		blob = tar
	}
	if r.chance(6) {
		// It is unpacked by what it is, but for OCI's plain type.
		layer.Compression = pick(r, []Compression{Gzip, Zstd})
	}
	if r.chance(3) {
		blob = append(bytes.Clone(blob), pick(r, []string{"\x00", "\x00\x00\x00\x00\x00\x00\x00\x00", "garbage behind the end"})...)
	}
	layer.Blob = Bytes(blob)
	return layer
}

// pieces cuts data at random places; there may be empty ones.
func (r *random) pieces(data []byte) (pieces [][]byte) {
	for range pick(r, []int{0, 0, 0, 1, 2, 7, 40}) {
		cut := 0
		if len(data) > 0 && r.chance(85) {
			cut = r.IntN(len(data))
			if r.chance(50) {
				cut = min(cut, 1+r.IntN(2000))
			}
		}
		pieces = append(pieces, data[:cut])
		data = data[cut:]
	}
	return append(pieces, data)
}

var levels = []int{flate.NoCompression, flate.BestSpeed, flate.DefaultCompression, flate.BestCompression, flate.HuffmanOnly}

func (r *random) gzip(data []byte) []byte {
	var out bytes.Buffer
	level := pick(r, levels)
	for _, piece := range r.pieces(data) {
		if r.chance(10) {
			level = pick(r, levels)
		}
		r.member(&out, piece, level)
	}
	return out.Bytes()
}

// Flags of a gzip member's header, RFC 1952.
const (
	gzipText = 1 << iota
	gzipSum
	gzipExtra
	gzipName
	gzipComment
)

func (r *random) member(out *bytes.Buffer, data []byte, level int) {
	flags := pick(r, []byte{0, 0, 0, byte(r.IntN(32))})
	header := []byte{0x1f, 0x8b, 8, flags, 0, 0, 0, 0, pick(r, []byte{0, 2, 4}), pick(r, []byte{3, 255})}
	binary.LittleEndian.PutUint32(header[4:], r.Uint32())
	if flags&gzipExtra != 0 {
		extra := make([]byte, pick(r, []int{0, 6, 300, 40_000}))
		header = append(binary.LittleEndian.AppendUint16(header, uint16(len(extra))), extra...)
	}
	if flags&gzipName != 0 {
		header = append(header, "layer-\xe9.tar\x00"...)
	}
	if flags&gzipComment != 0 {
		header = append(header, "\x00"...)
	}
	if flags&gzipSum != 0 {
		header = binary.LittleEndian.AppendUint16(header, uint16(crc32.ChecksumIEEE(header)))
	}
	out.Write(header)
	writer, _ := flate.NewWriter(out, level) // fails for bad levels only
	for _, piece := range r.pieces(data) {
		writer.Write(piece)
		if r.chance(30) {
			writer.Flush()
			if r.chance(50) {
				// What follows refers to nothing before, as with pigz -i.
				writer.Reset(out)
			}
		}
	}
	writer.Close()
	binary.Write(out, binary.LittleEndian, []uint32{crc32.ChecksumIEEE(data), uint32(len(data))})
}

func (r *random) zstd(data []byte) []byte {
	var out bytes.Buffer
	for _, piece := range r.pieces(data) {
		r.skippable(&out)
		r.frame(&out, piece)
	}
	r.skippable(&out)
	return out.Bytes()
}

func (r *random) skippable(out *bytes.Buffer) {
	if r.chance(15) {
		content := make([]byte, pick(r, []int{0, 1, 8, 70_000}))
		binary.Write(out, binary.LittleEndian, []uint32{0x184d2a50 | r.Uint32N(16), uint32(len(content))})
		out.Write(content)
	}
}

func (r *random) frame(out *bytes.Buffer, data []byte) {
	encoder, _ := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(pick(r, []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression})),
		zstd.WithEncoderCRC(r.chance(50)), zstd.WithSingleSegment(r.chance(20)), zstd.WithZeroFrames(true), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(pick(r, []int{1 << 10, 1 << 17, 8 << 20, 128 << 20})), zstd.WithNoEntropyCompression(r.chance(10))) // bad options only
	if r.chance(40) {
		out.Write(encoder.EncodeAll(data, nil))
		return
	}
	// Without its size.
	encoder.Reset(out)
	for _, piece := range r.pieces(data) {
		encoder.Write(piece)
		if r.chance(30) {
			encoder.Flush()
		}
	}
	encoder.Close()
}
