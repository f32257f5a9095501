// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const tempPrefix = "fairlead-uml-"

// tempDir makes a directory for a machine's files, and removes those of machines
// whose starter was killed: each holds a lock on its own. Others are the machines that
// run already.
func tempDir() (dir string, others int, remove func(), err error) {
	others = sweep()
	var lock *os.File
	for range 10 { // another starter may sweep a directory away before it is locked
		if dir, err = os.MkdirTemp("", tempPrefix); err != nil {
			return "", 0, nil, err
		}
		if lock, err = lockDir(dir); err != nil {
			err = fmt.Errorf("lock %s: %w", dir, err)
			continue
		}
		if _, err = os.Stat(dir); err == nil {
			return dir, others, func() {
				os.RemoveAll(dir)
				lock.Close()
			}, nil
		}
		lock.Close()
	}
	return "", 0, nil, err
}

// sweep removes what nobody has any more, and returns how many are in use.
func sweep() (used int) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPrefix+"*")) // only bad patterns fail
	for _, dir := range dirs {
		// One that is locked is in use, or being removed. One whose maker has yet
		// to lock it is lost, which that notices and makes another.
		if lock, err := lockDir(dir); err == nil {
			os.RemoveAll(dir)
			lock.Close()
		} else {
			used++
		}
	}
	return used
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// memoryDir is where the kernel keeps the file, at once without a name, that is
// the guest's memory.
func memoryDir() string {
	const shm = "/dev/shm"
	var fs unix.Statfs_t
	if unix.Statfs(shm, &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
		return shm
	}
	return os.TempDir()
}
