// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxFileSize bounds the size of a file, in bytes.
const maxFileSize = 64 << 20

// unsettled is how long after a change a file may change again without its
// times showing it: they are as fine as the kernel's tick.
const unsettled = 50 * time.Millisecond

var (
	// errNoFile tells that there is no such file, or that it is a directory.
	errNoFile = errors.New("no such file")
	// errBusy tells that the file is being written.
	errBusy = errors.New("the file is being written")
)

// isManifest reports whether a file of that name is read. Names with a dot in
// front are left to editors and to the kubelet, which keeps the files of a
// ConfigMap in "..data".
func isManifest(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// identity tells whether a file is the one that was read.
type identity struct {
	dev, inode   uint64
	size         int64
	mtime, ctime time.Time
}

func identityOf(info fs.FileInfo) identity {
	id := identity{size: info.Size(), mtime: info.ModTime()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		id.dev, id.inode = uint64(stat.Dev), stat.Ino
		id.ctime = time.Unix(stat.Ctim.Unix())
	}
	return id
}

// settled reports whether a change after now would show.
func (i identity) settled(now time.Time) bool {
	return now.Sub(i.mtime) > unsettled && now.Sub(i.ctime) > unsettled
}

// content is a file as it was read.
type content struct {
	identity identity
	text     []byte
}

// readFile reads a file. The error is errNoFile or errBusy, or says why the
// file is unreadable. With force set it reads what there is even while the file
// is being written.
func readFile(path string, force bool) (content, error) {
	// Opening anything but a regular file may block or have effects.
	info, err := os.Stat(path)
	if err != nil {
		return content{}, statError(path, err)
	}
	if info.IsDir() {
		return content{}, errNoFile
	}
	if !info.Mode().IsRegular() {
		return content{}, errors.New("not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return content{}, statError(path, err)
	}
	defer f.Close()
	if !force && isBeingWritten(f) {
		return content{}, errBusy
	}
	return readOpen(f, force)
}

func readOpen(f *os.File, force bool) (content, error) {
	before, err := f.Stat()
	if err != nil {
		return content{}, cause(err)
	}
	if !before.Mode().IsRegular() {
		return content{}, errors.New("not a regular file")
	}
	if before.Size() > maxFileSize {
		return content{}, fmt.Errorf("%d MiB is larger than the limit of %d MiB", before.Size()>>20, maxFileSize>>20)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return content{}, cause(err)
	}
	after, err := f.Stat()
	if err != nil {
		return content{}, cause(err)
	}
	c := content{identity: identityOf(after), text: text}
	if !force && (c.identity != identityOf(before) || c.identity.size != int64(len(text))) {
		return content{}, errBusy
	}
	return c, nil
}

// targetOf returns the directory of the file that a symbolic link leads to,
// empty where path is none or leads nowhere.
func targetOf(path string) string {
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return ""
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	return filepath.Dir(target)
}

// statError tells a file that is gone from a symbolic link that leads nowhere.
func statError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return errors.New("a symbolic link to a file that does not exist")
		}
		return errNoFile
	}
	return cause(err)
}

// cause returns what the system said, without the operation and the path.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
