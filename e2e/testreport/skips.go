// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"fairlead/e2e/uml/gotest"
)

// probeTimeout bounds one probe command.
const probeTimeout = 30 * time.Second

// skipList says which tests may be skipped, and how to find out that they must.
type skipList struct {
	file   string
	probes map[testID]string
}

// readSkips reads a list as e2e/skips.txt describes.
func readSkips(file string) (skipList, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return skipList{}, fmt.Errorf("read list of skips: %w", err)
	}
	list := skipList{file: file, probes: map[testID]string{}}
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, probe, err := parseSkip(line)
		if err == nil && list.probes[id] != "" {
			err = fmt.Errorf("%s %s is listed twice", id.pkg, id.test)
		}
		if err != nil {
			return skipList{}, fmt.Errorf("read list of skips: %s:%d: %w", file, i+1, err)
		}
		list.probes[id] = probe
	}
	return list, nil
}

// parseSkip parses one entry. The probe may have pipes in it.
func parseSkip(line string) (id testID, probe string, err error) {
	test, rest, found := strings.Cut(line, "|")
	end := strings.LastIndex(rest, "|")
	names := strings.Fields(test)
	if !found || end < 0 || len(names) != 2 {
		return id, "", errors.New(`want "import/path TestName | probe command | reason"`)
	}
	probe = strings.TrimSpace(rest[:end])
	if probe == "" || strings.TrimSpace(rest[end+1:]) == "" {
		return id, "", errors.New("probe command or reason is empty")
	}
	return testID{pkg: names[0], test: names[1]}, probe, nil
}

// check returns what is wrong with each of the skips that neither the list
// justifies nor that the test has passed in another kernel.
func (l skipList) check(ctx context.Context, skips []skip, passed map[testID]bool) (problems []string) {
	seen := map[testID]bool{} // with -count a test is skipped more than once
	results := map[string]string{}
	single := slices.ContainsFunc(skips, func(s skip) bool { return s.test == gotest.NoKernel })
	for _, s := range skips {
		if seen[s.testID] || passed[s.elsewhere()] {
			continue
		}
		seen[s.testID] = true
		probe, listed := l.probes[s.testID]
		if !listed && single {
			continue // whether there is no second kernel is for NoKernel's probe to say
		}
		if !listed {
			problems = append(problems, fmt.Sprintf("%s %s was skipped and is not in %s: let it run, "+
				"or list it there with a command that shows what the kernel lacks", s.pkg, s.test, l.file))
			continue
		}
		if _, known := results[probe]; !known {
			results[probe] = runProbe(ctx, probe)
		}
		if result := results[probe]; result != "" {
			problems = append(problems, fmt.Sprintf("%s %s was skipped, and its probe in %s, %q, %s", s.pkg, s.test, l.file, probe, result))
		}
	}
	return problems
}

// runProbe runs a probe command and returns what is wrong with it, nothing if it
// shows that the kernel lacks what it asks for.
func runProbe(ctx context.Context, probe string) string {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", probe)
	cmd.WaitDelay = time.Second
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "succeeds: the kernel has what the test needs, so let it run and remove the entry"
	case !errors.As(err, &exit):
		return fmt.Sprintf("cannot be run: %v", err)
	case exit.ExitCode() == 126 || exit.ExitCode() == 127 || exit.ExitCode() < 0:
		// Not found, not executable, or killed: says nothing about the kernel.
		return fmt.Sprintf("cannot be run (%v), mend it: %s", err, strings.TrimSpace(string(output)))
	}
	return ""
}
