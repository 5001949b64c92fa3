package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"silk.invalid/integration/e2e/internal/node"
)

// checkMetadata lets fsck.erofs judge every metadata file of the node.
func checkMetadata(t *testing.T, n *node.Node) {
	t.Helper()
	fsck := os.Getenv("SILK_FSCK_EROFS")
	if fsck == "" {
		fsck = "fsck.erofs"
	}
	files, err := filepath.Glob(filepath.Join(n.Dir, "silk/layers/sha256/*/erofs*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("silkd wrote no metadata at all (%v)", err)
	}
	for _, file := range files {
		if out, err := exec.Command(fsck, "--device="+filepath.Join(filepath.Dir(file), "data"), file).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs refuses %s: %v\n%s", file, err, out)
		}
	}
}
