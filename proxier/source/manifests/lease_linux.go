// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// isBeingWritten reports whether another process has the file open for writing:
// only then does the kernel refuse a read lease with EAGAIN (fcntl(2)). The
// lease is given back at once. Where leases are not to be had (another user's
// file, a network file system) it reports false.
func isBeingWritten(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	busy := false
	_ = raw.Control(func(fd uintptr) {
		_, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK)
		busy = errors.Is(err, unix.EAGAIN)
		if err == nil {
			_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
		}
	})
	return busy
}
