package e2e

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/node"
)

// checkMetadata lets fsck.erofs judge every metadata file of the node, with the data files that its device table names.
func checkMetadata(t *testing.T, n *node.Node) {
	t.Helper()
	fsck := os.Getenv("SILK_FSCK_EROFS")
	if fsck == "" {
		fsck = "fsck.erofs"
	}
	layers := filepath.Join(n.Dir, "silk/layers/sha256")
	files, err := filepath.Glob(filepath.Join(layers, "*/erofs*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("silkd wrote no metadata at all (%v)", err)
	}
	for _, file := range files {
		tags, err := devices(file)
		if err != nil {
			t.Error(err)
			continue
		}
		var arguments []string
		for _, tag := range tags {
			arguments = append(arguments, "--device="+filepath.Join(layers, tag, "data"))
		}
		out, err := exec.Command(fsck, append(arguments, file)...).CombinedOutput()
		// What fsck finds in this kind of image it prints as errors (<E>), and it does not always fail.
		if err != nil || strings.Contains(string(out), "<E>") {
			t.Errorf("fsck.erofs refuses %s with %v: %v\n%s", file, arguments, err, out)
		}
	}
	t.Logf("fsck.erofs accepts %d metadata files", len(files))
}

var diffID = regexp.MustCompile("^[0-9a-f]{64}$")

// devices reads the device table of a metadata file: its tags are the diff IDs of the layers whose data it points into.
func devices(file string) (tags []string, err error) {
	image, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	const superblock, slot = 1024, 128
	count := binary.LittleEndian.Uint16(image[superblock+86:])
	table := int(binary.LittleEndian.Uint16(image[superblock+88:])) * slot
	for i := range int(count) {
		if tag := string(image[table+i*slot:][:64]); diffID.MatchString(tag) {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}
