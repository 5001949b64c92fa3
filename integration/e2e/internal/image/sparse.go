package image

import (
	"bytes"
	"fmt"
	"strings"
)

// sparse is one file with holes in the pax formats 0.1 and 1.0.
func sparse() []Entry {
	const total = 1 << 20
	data := bytes.Repeat([]byte("data"), 256) // two runs of 512: at 4096, and at the end
	first, last := 4096, total-512
	m := []int{first, 512, last, 512}
	text := fmt.Sprintf("2\n%d\n%d\n%d\n%d\n", m[0], m[1], m[2], m[3])
	header := append([]byte(text), make([]byte, 512-len(text))...)
	numbers := strings.Trim(strings.ReplaceAll(text[2:], "\n", ","), ",")
	return []Entry{
		{Name: "GNUSparseFile.1/one", Body: append(header, data...), Pax: map[string]string{
			"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse-1.0", "GNU.sparse.realsize": fmt.Sprint(total),
		}},
		{Name: "GNUSparseFile.2/two", Body: data, Pax: map[string]string{
			"GNU.sparse.numblocks": "2", "GNU.sparse.map": numbers, "GNU.sparse.name": "sparse-0.1", "GNU.sparse.size": fmt.Sprint(total),
		}},
		{Name: "GNUSparseFile.3/hole", Body: append([]byte("1\n65536\n0\n"), make([]byte, 512-10)...), Pax: map[string]string{
			"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "only-a-hole", "GNU.sparse.realsize": "65536",
		}},
		file("after", "the reader found the next header"),
	}
}

// sparseBetween are layers with a file of two runs, of which the second lies between blocks: silk keeps a copy of it elsewhere. In one
// of the layers the numbers of the copy's blocks go on where those of the first run end.
func sparseBetween() (layers [][]Entry) {
	const total = 20_000
	for i := range 12 {
		layers = append(layers, []Entry{
			{Name: fmt.Sprintf("before-%d", i), Body: bytes.Repeat([]byte("x"), 512*i)},
			{Name: "GNUSparseFile/any", Body: bytes.Repeat([]byte("data"), 256), Pax: map[string]string{
				"GNU.sparse.numblocks": "2", "GNU.sparse.map": "512,512,18888,512", "GNU.sparse.name": fmt.Sprintf("sparse-%d", i),
				"GNU.sparse.size": fmt.Sprint(total),
			}},
		})
	}
	return layers
}

// OldSparse is an entry of GNU tar's own sparse format, which containerd refuses, and the content that it stands for.
func OldSparse(name string) (entry Entry, content []byte) {
	content = make([]byte, 1<<20)
	data := bytes.Repeat([]byte("data"), 256)
	copy(content[4096:], data[:512])
	copy(content[len(content)-512:], data[512:])
	runs := []int{4096, 512, len(content) - 512, 512}
	return Entry{Name: name, Type: 'S', Body: data, GNU: true, Sparse: runs, RealSize: int64(len(content))}, content
}
