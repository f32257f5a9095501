// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// binDirVariable is the environment variable that names the directory of the
// programs, for test binaries that run away from the source tree.
const binDirVariable = "FAIRLEAD_TOOLS_BIN"

// binaries are the absolute names of the programs.
type binaries struct{ etcd, apiServer string }

// findBinaries looks in dir or, if that is empty, in the places that
// Config.BinDir tells. The error for a missing one is an os.ErrNotExist.
func findBinaries(dir string) (binaries, error) {
	if dir == "" {
		dir = os.Getenv(binDirVariable)
	}
	if dir == "" {
		top, err := moduleDir()
		if err != nil {
			return binaries{}, fmt.Errorf("find programs of the cluster, %s is not set: %w", binDirVariable, err)
		}
		dir = filepath.Join(top, ".cache", "bin")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, fmt.Errorf("find programs of the cluster: %w", err)
	}
	b := binaries{etcd: filepath.Join(dir, "etcd"), apiServer: filepath.Join(dir, "kube-apiserver")}
	for _, name := range []string{b.etcd, b.apiServer} {
		if _, err := os.Stat(name); err != nil {
			return binaries{}, fmt.Errorf("find program of the cluster (`make tools` builds it): %w", err)
		}
	}
	return b, nil
}

// moduleDir returns the directory of the go.mod around the working directory.
func moduleDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return dir, err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod around the working directory: %w", os.ErrNotExist)
		}
		dir = parent
	}
}
