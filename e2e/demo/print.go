// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// printer writes what the demo shows, in colour on a terminal.
type printer struct {
	w      io.Writer
	colour bool
}

func newPrinter(f *os.File) *printer {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &printer{w: f, colour: err == nil && os.Getenv("NO_COLOR") == ""}
}

func (p *printer) paint(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) red(s string) string { return p.paint("31", s) }

// headline starts the demo.
func (p *printer) headline(format string, args ...any) {
	fmt.Fprintln(p.w, p.paint("1", fmt.Sprintf(format, args...)))
}

// passed says that a claim holds, and what was measured.
func (p *printer) passed(claim, detail string) {
	if detail != "" {
		detail = ": " + p.paint("1", detail)
	}
	fmt.Fprintf(p.w, "%s %s%s\n", p.paint("32", "ok"), claim, detail)
}

// line prints something to look at below a claim.
func (p *printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, strings.TrimRight("     "+fmt.Sprintf(format, args...), " "))
}

// bar draws a count, one mark for each four.
func (p *printer) bar(n int) string {
	return p.paint("36", strings.Repeat("#", (n+3)/4)) + fmt.Sprintf(" %d", n)
}

// pad fills s, which may hold colours, up to width characters as seen.
func (p *printer) pad(s string, width int) string {
	seen := len(s)
	if p.colour {
		seen -= len(p.paint("36", ""))
	}
	return s + strings.Repeat(" ", max(width-seen, 1))
}

// ms writes a duration in milliseconds, with a digit behind the point while
// that says something.
func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}
