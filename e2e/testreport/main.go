// SPDX-License-Identifier: Apache-2.0

// Testreport reads the output of go test -json from standard input and prints
// what a reader needs of it: a line for each package, the output of what failed,
// every skipped test with its reason, and as the last line how many tests and
// subtests passed, failed and were skipped.
//
// It exits with 1 if anything failed, did not finish, did not build, or if no
// test ran at all. With -strict it also does so for skipped tests, except those
// that have passed in the other kernel, where e2e/uml ran them, and those that the
// list of -skips names and whose reason it finds to be true: see the head of
// e2e/skips.txt.
//
//	go test -json ./... | go run ./e2e/testreport -strict
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
)

func main() {
	strict := flag.Bool("strict", false, "fail for skipped tests that the list does not justify")
	skips := flag.String("skips", "e2e/skips.txt", "list of tests that may be skipped with -strict")
	flag.Parse()
	// An interrupt is meant for go test, whose last output is worth reading.
	signal.Ignore(os.Interrupt)
	if !*strict {
		*skips = ""
	}
	ok, err := run(context.Background(), os.Stdin, os.Stdout, *skips)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run reports the events of in to out, and whether all is well. skipsFile is the
// list of tests that may be skipped, empty if any may.
func run(ctx context.Context, in io.Reader, out io.Writer, skipsFile string) (ok bool, err error) {
	r := newReport(out)
	if err := r.read(in); err != nil {
		return false, err
	}
	r.finish()
	ok = r.ok()
	if skipsFile != "" {
		list, err := readSkips(skipsFile)
		if err != nil {
			return false, err
		}
		for _, problem := range list.check(ctx, r.skips, r.passes) {
			ok = false
			fmt.Fprintln(out, "FAIL:", problem)
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skips))
	return ok, nil
}
