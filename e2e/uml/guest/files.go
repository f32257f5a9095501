// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// modulesDir is where Debian's package user-mode-linux has the modules.
const modulesDir = "/usr/lib/uml/modules"

// work holds the layers of the new root until that covers it.
const work = "/mnt"

// mount is one call of mount(2).
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// makeRoot replaces the root, which is the machine's own file system mounted
// read-only, by that with a layer of memory on it.
func makeRoot(release string) error {
	if err := loadFile(filepath.Join(modulesDir, release, "kernel/fs/overlayfs/overlay.ko")); err != nil {
		return err
	}
	if err := (mount{"memory", work, "tmpfs", 0, "mode=755"}).do(); err != nil {
		return err
	}
	upper, layerWork, root := filepath.Join(work, "upper"), filepath.Join(work, "work"), filepath.Join(work, "root")
	for _, dir := range []string{upper, layerWork, root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	data := "lowerdir=/,upperdir=" + upper + ",workdir=" + layerWork
	if err := (mount{"overlay", root, "overlay", 0, data}).do(); err != nil {
		return err
	}
	// pivot_root(2), NOTES: the old root lands on top of the new one, and leaves
	// without a directory for it.
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return os.Chdir("/")
}

// mountKernel mounts what the kernel offers, and memory where the files of the
// machine's own kernel and processes are.
func mountKernel() error {
	return mountAll([]mount{
		{"proc", "/proc", "proc", 0, ""},
		{"sys", "/sys", "sysfs", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
		{"devpts", "/dev/pts", "devpts", 0, ""},
		{"shm", "/dev/shm", "tmpfs", 0, ""},
		{"run", "/run", "tmpfs", 0, "mode=755"},
	})
}

// mountShared mounts directories of the machine for writing.
func mountShared(dirs []string) error {
	for _, dir := range dirs {
		if err := (mount{"none", dir, "hostfs", 0, dir}).do(); err != nil {
			return err
		}
	}
	return nil
}

// linkModules puts the modules where modprobe looks.
func linkModules(release string) error {
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return err
	}
	err := os.Symlink(filepath.Join(modulesDir, release), filepath.Join("/lib/modules", release))
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// loadFile loads a module from a file.
func loadFile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", file, err)
	}
	return nil
}
