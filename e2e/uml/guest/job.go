// SPDX-License-Identifier: Apache-2.0

// Package guest is what runs inside of the second kernel, as its first process:
// it makes a file system that may be written to, loads modules, runs one
// command, and switches the machine off.
package guest

import (
	"encoding/json"
	"fmt"
	"os"
)

// JobEnv is the environment variable, set on the kernel's command line, that
// names the file with the job. A kernel hands what it does not know to its first
// process.
const JobEnv = "FAIRLEAD_UML_JOB"

// Job is what a guest is to do.
type Job struct {
	Args []string
	Env  []string
	// Dir is the working directory.
	Dir string
	// Modules are loaded before the command runs.
	Modules []string
	// Shared are directories of the machine that the command may write to. All
	// else that it writes is in the guest's memory, and gone with it.
	Shared []string
}

// The guest's terminals, which machine connects to pipes.
const (
	ttyOut    = "/dev/tty1"
	ttyErr    = "/dev/tty2"
	ttyStatus = "/dev/tty3"
)

// Status is what a guest says of itself, one line of JSON each.
type Status struct {
	// Running is said when the command starts.
	Running bool `json:",omitempty"`
	// Exited is said when it has ended, with Code as a shell has it: 128 and the
	// signal's number if a signal ended it.
	Exited bool `json:",omitempty"`
	Code   int  `json:",omitempty"`
	// Error says why the command could not be run.
	Error string `json:",omitempty"`
}

// Write writes the job to a file, for the guest to find by JobEnv.
func (j Job) Write(file string) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

func readJob(file string) (Job, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Job{}, fmt.Errorf("read job: %w", err)
	}
	var j Job
	if err := json.Unmarshal(text, &j); err != nil {
		return Job{}, fmt.Errorf("read job: %w", err)
	}
	return j, nil
}
