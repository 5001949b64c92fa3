package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// containerd forgets images whose snapshotter does not answer when it starts, so its start has to start silkd.
func TestUnitStartsWithContainerd(t *testing.T) {
	systemctl, err := exec.LookPath("systemctl")
	if err != nil {
		t.Skip("no systemd here")
	}
	root := t.TempDir()
	unit, err := filepath.Abs("../../docs/systemd/silkd.service")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("install", "-D", "-m644", unit, filepath.Join(root, "etc/systemd/system/silkd.service")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(systemctl, "--root="+root, "enable", "silkd.service").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, wanting := range []string{"multi-user.target", "containerd.service"} {
		if links, _ := filepath.Glob(filepath.Join(root, "etc/systemd/system", wanting+".wants/silkd.service")); len(links) != 1 {
			t.Errorf("%s does not start silkd", wanting)
		}
	}
}
