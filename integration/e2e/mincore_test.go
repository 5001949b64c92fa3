package e2e

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore is not in golang.org/x/sys.
func mincore(memory, present []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(&memory[0])), uintptr(len(memory)), uintptr(unsafe.Pointer(&present[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
